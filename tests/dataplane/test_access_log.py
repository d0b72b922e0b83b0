"""The access log: one JSON line for whatever a caller was answered, the same by both ways, and nobody waits for it."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from dataplane.access_log import LINES_MAX, AccessLog, Line
from runtime.clock import ManualClock
from tests.dataplane.client import Client, ask, chat, request
from tests.dataplane.conftest import Proxy, StartBackend, StartProxy
from tests.dataplane.test_usual import CACHED, STEPS, USUAL, WARMING, observe
from tests.fakes.backend import STREAM_HEAD, Backend, chat_json, chat_stream, chunk, delta, event, hangs, raw, resets
from tests.fakes.control import Control
from tests.waiting import until

BOTH_WAYS = pytest.mark.parametrize("warm", [False, True], ids=["", "warm"], indirect=True)
QUESTION = request(chat("what nobody shall read"), headers={"x-request-id": "mine", "authorization": "Bearer sk-secret"})


async def lines_of(path: Path, count: int) -> list[dict[str, Any]]:
    """Once there are so many."""
    await until(lambda: path.exists() and path.read_bytes().count(b"\n") >= count)
    found = written(path)
    assert len(found) == count
    return found


def written(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@BOTH_WAYS
async def test_an_answer_is_one_line(start_proxy: StartProxy, backend: Backend, control: Control, short_dir: Path) -> None:
    path = short_dir / "access.jsonl"
    backend.script(chat_json("hello", usage_of=CACHED))
    control.serve("m", backend.url)
    proxy = await start_proxy(control=control, access_log=str(path))
    response = await ask(proxy.port, request(chat("what nobody shall read")))
    (line,) = await lines_of(path, 1)
    assert line.pop("time").endswith("Z")
    assert 0 < line.pop("duration_s") < 10
    assert line == {
        "request_id": response.headers["x-request-id"],
        "client": "127.0.0.1",
        "method": "POST",
        "path": "/v1/chat/completions",
        "status": 200,
        "end": "complete",
        "model": "m",
        "worker": response.headers["x-headway-worker"],
        "policy": response.headers["x-headway-policy"],
        "decision": response.headers["x-headway-decision"],
        "attempts": 1,
        "prompt_tokens": 9,
        "matched_tokens": int(response.headers["x-headway-matched-tokens"]),
        "cached_tokens": 8,
        "output_tokens": 4,
    }


@BOTH_WAYS
async def test_a_stream_says_when_its_first_token_came(
    start_proxy: StartProxy, backend: Backend, control: Control, short_dir: Path
) -> None:
    path = short_dir / "access.jsonl"
    backend.script(chat_stream(["a", "b", "c"]))
    control.serve("m", backend.url)
    proxy = await start_proxy(control=control, access_log=str(path))
    await ask(proxy.port, request(chat(stream=True)))
    (line,) = await lines_of(path, 1)
    assert line["stream"] is True
    assert 0 < line["ttft_s"] <= line["duration_s"]
    await control.until(lambda control: len(control.outcomes) == 1)
    assert line["output_tokens"] == control.outcomes[0].output_tokens  # counted here: the engine did not say
    assert "cached_tokens" not in line


@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize("name", STEPS)
async def test_it_changes_nothing_and_misses_nothing_whatever_an_engine_does(
    name: str, streams: bool, start_proxy: StartProxy, start_backend: StartBackend, short_dir: Path
) -> None:
    path, found = short_dir / "access.jsonl", []
    for target in ("", str(path)):
        bad, good = await start_backend(), await start_backend()
        for backend in (bad, good):
            backend.script(*[raw(USUAL)] * (WARMING // 2), STEPS[name])
        control = await Control.start(f"unix:{short_dir}/c{bool(target)}.sock")
        control.serve("m", bad.url, good.url)
        proxy = await start_proxy(control=control, access_log=target)
        seen = await observe(proxy, control, streams)
        addresses = {bad.url: "bad", good.url: "good", str(bad.port): "bad", str(good.port): "good"}
        text = repr(seen)
        for address, where in addresses.items():
            text = text.replace(address, where)
        found.append(text)
        await control.stop()
    assert found[0] == found[1]
    lines = await lines_of(path, WARMING + 2)
    statuses = [each[1][0] if each[0] == "truncated" else each[0] for each in seen["seen"]]
    assert [line["status"] for line in lines] == statuses
    assert sum(line["attempts"] for line in lines) == sum(seen["counted"]["attempts"].values())


async def test_the_last_attempt_is_the_one_that_is_told(
    start_proxy: StartProxy, start_backend: StartBackend, control: Control, short_dir: Path
) -> None:
    path = short_dir / "access.jsonl"
    backends = [await start_backend() for _ in range(2)]
    backends[0].script(resets())
    backends[1].script(chat_json("fine"))
    control.serve("m", *[backend.url for backend in backends])
    proxy = await start_proxy(control=control, access_log=str(path))
    response = await ask(proxy.port, request(chat()))
    (line,) = await lines_of(path, 1)
    assert (line["status"], line["end"], line["attempts"]) == (200, "complete", 2)
    assert line["worker"] == response.headers["x-headway-worker"]


async def test_what_failed_everywhere_says_how_it_ended_and_what_the_caller_was_told(
    start_proxy: StartProxy, backend: Backend, control: Control, short_dir: Path
) -> None:
    path = short_dir / "access.jsonl"
    backend.script(resets())
    control.serve("m", backend.url)
    proxy = await start_proxy(control=control, access_log=str(path), attempts_max=1)
    response = await ask(proxy.port, request(chat()))
    (line,) = await lines_of(path, 1)
    assert (line["status"], line["end"], line["error"]) == (502, "reset", response.json["error"]["code"])
    assert not {"prompt_tokens", "output_tokens", "cached_tokens"} & set(line)


@pytest.mark.parametrize("sent", [b"", STREAM_HEAD + chunk(event(delta("a")))], ids=["silent", "first token"])
@BOTH_WAYS
async def test_a_caller_that_left_is_a_499(
    sent: bytes, start_proxy: StartProxy, backend: Backend, control: Control, short_dir: Path
) -> None:
    path = short_dir / "access.jsonl"
    backend.script(hangs(sent))
    control.serve("m", backend.url)
    proxy = await start_proxy(control=control, access_log=str(path))
    client = await Client.connect(proxy.port)
    await client.send(request(chat(stream=True)))
    if sent:
        await client.read(head_only=True)
    else:
        await backend.until(lambda backend: len(backend.requests) == 1)
    client.close()
    (line,) = await lines_of(path, 1)
    assert (line["status"], line["end"], line["client"]) == (499, "client_gone", "127.0.0.1")
    assert ("ttft_s" in line) is bool(sent)


async def test_what_is_refused_or_answered_here_is_there_too_but_for_probes(
    start_proxy: StartProxy, backend: Backend, control: Control, short_dir: Path
) -> None:
    path = short_dir / "access.jsonl"
    control.serve("m", backend.url)
    proxy = await start_proxy(control=control, access_log=str(path))
    asked = [
        (request(b"{"), 400, "refused", "invalid_json"),
        (request(chat(model="none")), 404, "refused", "model_not_found"),
        (request(method="GET", path="/v1/models"), 200, "answered", None),
        (request(method="GET", path="/nowhere?q=what+nobody+shall+read"), 404, "refused", "unknown_url"),
        (b"GARBAGE\r\n\r\n", 400, "refused", "invalid_http"),
    ]
    for data, *_ in asked:
        await ask(proxy.port, data)
    for probe in ("/health", "/ready", "/metrics"):
        assert (await ask(proxy.port, request(method="GET", path=probe))).status == 200
    lines = await lines_of(path, len(asked))
    assert [(line["status"], line["end"], line.get("error")) for line in lines] == [tuple(rest) for _, *rest in asked]
    assert lines[3]["path"] == "/nowhere"


async def test_nothing_secret_and_no_prompt_is_in_it(
    start_proxy: StartProxy, backend: Backend, control: Control, short_dir: Path
) -> None:
    path = short_dir / "access.jsonl"
    backend.script(chat_json("the answer"))
    control.serve("m", backend.url)
    proxy = await start_proxy(control=control, access_log=str(path))
    await ask(proxy.port, QUESTION)
    (line,) = await lines_of(path, 1)
    assert line["request_id"] == "mine"
    for secret in ("nobody", "sk-secret", "the answer"):
        assert secret not in repr(line)


async def test_a_file_that_was_moved_away_is_begun_anew(start_proxy: StartProxy, backend: Backend, short_dir: Path) -> None:
    path = short_dir / "access.jsonl"
    proxy = await start_proxy(backend, access_log=str(path))
    await ask(proxy.port, request(chat()))
    await lines_of(path, 1)
    os.rename(path, short_dir / "access.jsonl.1")
    await ask(proxy.port, request(chat()))
    await lines_of(path, 1)


async def test_a_full_disk_costs_lines_and_no_request(
    start_proxy: StartProxy, backend: Backend, caplog: pytest.LogCaptureFixture
) -> None:
    proxy = await start_proxy(backend, access_log="/dev/full")
    for _ in range(3):
        assert (await ask(proxy.port, request(chat()))).status == 200
    await until(lambda: dropped(proxy) == 3)
    page = (await ask(proxy.port, request(method="GET", path="/metrics"))).body
    assert b"\nheadway_proxy_access_log_dropped 3.0\n" in page
    assert [record.message for record in caplog.records].count("the access log cannot be written") == 1


def dropped(proxy: Proxy) -> int:
    assert proxy.app.gateway.access_log is not None
    return proxy.app.gateway.access_log.dropped


async def test_without_it_the_server_is_the_plain_one(proxy: Proxy) -> None:
    assert proxy.app.gateway.access_log is None
    assert type(proxy.app.server).__name__ == "Server"


def line(number: int = 0) -> Line:
    return Line("2026-01-01T00:00:00.000Z", f"{number}", "", "POST", "/", 200, "complete", 0.1)


def test_lines_that_nobody_takes_are_bounded(tmp_path: Path) -> None:
    log = AccessLog(str(tmp_path / "log"), ManualClock().unix)  # its thread is not started
    for number in range(LINES_MAX + 5):
        log.add(line(number))
    assert log.dropped == 5
    log.start()
    log.close()
    assert len((tmp_path / "log").read_bytes().splitlines()) == LINES_MAX


def test_a_second_writer_adds_to_the_file(tmp_path: Path) -> None:
    for number in range(2):
        log = AccessLog(str(tmp_path / "log"), ManualClock().unix)
        log.start()
        log.add(line(number))
        log.close()
    assert [json.loads(each)["request_id"] for each in (tmp_path / "log").read_text().splitlines()] == ["0", "1"]
    assert os.stat(tmp_path / "log").st_mode & 0o007 == 0  # who called what when is not for everybody


def test_the_time_is_utc_to_the_millisecond(tmp_path: Path) -> None:
    log = AccessLog(str(tmp_path / "log"), ManualClock(unix_offset=1_700_000_000.0625).unix)
    assert log.now() == "2023-11-14T22:13:20.062Z"


@pytest.mark.parametrize("target", ["", "/no/such/directory/access.jsonl"])
def test_a_place_that_cannot_be_written_is_said_at_once(target: str, tmp_path: Path) -> None:
    target = target or str(tmp_path)
    with pytest.raises(ValueError, match=f"^--access-log: cannot write {target}: "):
        AccessLog(target, ManualClock().unix)


async def test_on_stdout_it_is_all_there_is(backend: Backend) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "dataplane", "--port", "0", "--endpoint", f"m={backend.url}", "--access-log", "-"),
        *("--control", "unix:/absent.sock", "--drain-timeout-s", "0.2"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stderr is not None
    port = 0
    async with asyncio.timeout(30):
        while not port:
            said = await process.stderr.readline()
            assert said, "the data plane ended at start"
            if b"ready: http://" in said:
                port = int(said.strip().rsplit(b":", 1)[1])
    assert (await ask(port, request(chat()))).status == 200
    process.terminate()
    out, _ = await process.communicate()
    (only,) = [json.loads(each) for each in out.splitlines()]
    assert (only["status"], only["end"]) == (200, "complete")
