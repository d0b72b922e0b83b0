"""Long prompts in a process of their own: the same as in a thread, and served whatever becomes of that process."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from contract import blocks, tokens
from dataplane.app import App
from dataplane.metrics import Metrics
from dataplane.prompt_messages import NOT_DONE, SUSPECT, Answer
from dataplane.prompt_process import APART_BYTES_MIN, PromptProcess
from dataplane.prompts import ModelSeen
from tests.dataplane.client import Client, Response, ask, request
from tests.dataplane.conftest import Proxy, StartProxy
from tests.fakes.backend import Backend
from tests.fakes.control import Control
from tests.waiting import until

CHAT = "/v1/chat/completions"
MODEL = ModelSeen("m", "m", False, tokens.BUILTIN, (16,))
TEXT = "It never rains but it pours. " * (APART_BYTES_MIN // 24)
FIELDS = {"model": "m", "messages": [{"role": "user", "content": TEXT}], "max_tokens": 7}
BODY = json.dumps(FIELDS).encode()
NOT_STARTED = (sys.executable, "-c", "import sys; sys.stdin.buffer.read()")
"""In its place: a process that says nothing."""

StartProcess = Callable[..., Awaitable[PromptProcess]]


@pytest.fixture
async def start_process() -> AsyncIterator[StartProcess]:
    started: list[PromptProcess] = []

    async def start(metrics: Metrics | None = None, **more: Any) -> PromptProcess:
        process = PromptProcess(metrics or Metrics(), **more)
        started.append(process)
        process.see([MODEL], "m")
        await until(lambda: process.pid is not None if more.get("command") else process.ready, "it has started")
        return process

    yield start
    for process in started:
        pid = process.pid
        await process.stop()
        assert pid is None or not _lives(pid)


async def submit(process: PromptProcess, body: bytes = BODY) -> Answer:
    answered: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
    process.submit(CHAT, body, answered.set_result)
    return await answered


def _lives(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def process_of(app: App) -> PromptProcess:
    assert app.gateway.prompt_process is not None
    return app.gateway.prompt_process


@pytest.fixture
async def long_proxy(start_proxy: StartProxy, backend: Backend, control: Control) -> Proxy:
    """A data plane whose process for long prompts is ready."""
    control.serve("m", backend.url, tokenizer=tokens.BUILTIN)
    proxy = await start_proxy(control=control)
    await proxy.until(lambda app: app.prompts.status(app.gateway.fleet.view.models) == {"m": "ready"})
    await proxy.until(lambda app: process_of(app).ready)
    return proxy


def asked(control: Control, number: int = -1) -> tuple[int, int, bytes]:
    """A question's limit, tokens and hashes."""
    question = control.questions[number]
    return question.max_tokens, question.input_tokens, question.chains[0].hashes if question.chains else b""


def expected() -> tuple[int, int, bytes]:
    flat = tokens.load(tokens.BUILTIN).prompts(CHAT, FIELDS)[0]
    return 7, len(flat) // 4, blocks.chain(flat, 16, blocks.root_hash("m")).tobytes()


def beside(proxy: Proxy) -> dict[str, float]:
    """How many prompts were prepared by what."""
    return {by: proxy.count("prompts_beside", by) for by in ("process", "thread")}


async def test_a_long_prompt_is_prepared_there_and_passed_on_as_it_came(
    long_proxy: Proxy, backend: Backend, control: Control
) -> None:
    assert (await ask(long_proxy.port, request(BODY))).status == 200
    assert asked(control) == expected()
    assert backend.requests[0].body == BODY
    assert beside(long_proxy) == {"process": 1, "thread": 0}
    page = (await ask(long_proxy.port, request(path="/metrics", method="GET"))).body.decode()
    assert 'headway_proxy_prompts_beside_total{by="process"} 1.0' in page
    assert "headway_proxy_prompt_process_seconds_count 1.0" in page
    assert "headway_proxy_prompt_process_ready 1.0" in page


async def test_a_compressed_one_too(long_proxy: Proxy, backend: Backend, control: Control) -> None:
    compressed = request(gzip.compress(BODY), headers={"content-encoding": "gzip"})
    assert (await ask(long_proxy.port, compressed)).status == 200
    assert asked(control) == expected()
    assert backend.requests[0].body == BODY
    assert beside(long_proxy) == {"process": 1, "thread": 0}


async def test_what_is_not_a_long_prompt_stays_here(long_proxy: Proxy) -> None:
    short = json.dumps(FIELDS | {"messages": [{"role": "user", "content": "x"}]}).encode()
    for body, path in ((short, CHAT), (BODY, "/tokenize")):
        assert (await ask(long_proxy.port, request(body, path))).status == 200
    form = b'--x\r\nContent-Disposition: form-data; name="model"\r\n\r\nm\r\n--x--\r\n' + b" " * APART_BYTES_MIN
    assert (
        await ask(long_proxy.port, request(form, headers={"Content-Type": "multipart/form-data; boundary=x"}))
    ).status == 200
    assert beside(long_proxy) == {"process": 0, "thread": 0}


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (BODY[:-1], "invalid_json"),
        (b"[" + BODY + b"]", "not_an_object"),
        (BODY.replace(b'"m"', b"17", 1), "model_invalid"),
        (BODY.replace(b"model", b"modem", 1), "model_missing"),
        (BODY[:-20] + b"\xff" + BODY[-20:], "invalid_utf8"),
    ],
)
async def test_a_mistake_is_said_as_without_it(long_proxy: Proxy, start_proxy: StartProxy, body: bytes, code: str) -> None:
    found: list[Response] = []
    for settings in ({}, {"prompt_process": False}):
        port = long_proxy.port if not settings else (await start_proxy(**settings)).port
        found.append(await ask(port, request(body)))
    assert found[0].status == found[1].status == 400
    assert found[0].json == found[1].json
    assert found[0].json["error"]["code"] == code


async def test_while_it_starts_a_thread_does_it(start_proxy: StartProxy, backend: Backend, control: Control) -> None:
    control.serve("m", backend.url, tokenizer=tokens.BUILTIN)
    proxy = await start_proxy(control=control, connected=False)
    proxy.app.gateway.prompt_process = silent = PromptProcess(proxy.app.gateway.metrics, command=NOT_STARTED)
    await proxy.until(lambda app: app.control.connected and app.gateway.fleet.view is not None)
    await proxy.until(lambda app: app.prompts.status(app.gateway.fleet.view.models) == {"m": "ready"})
    await proxy.until(lambda app: silent.pid is not None)
    assert (await ask(proxy.port, request(BODY))).status == 200
    assert asked(control) == expected()
    assert beside(proxy) == {"process": 0, "thread": 1}


async def test_it_can_be_switched_off(start_proxy: StartProxy, backend: Backend, control: Control) -> None:
    control.serve("m", backend.url, tokenizer=tokens.BUILTIN)
    proxy = await start_proxy(control=control, prompt_process=False)
    await proxy.until(lambda app: app.prompts.status(app.gateway.fleet.view.models) == {"m": "ready"})
    assert (await ask(proxy.port, request(BODY))).status == 200
    assert asked(control) == expected()
    assert beside(proxy) == {"process": 0, "thread": 1}


async def test_a_policy_that_reads_no_prompt_starts_none(start_proxy: StartProxy, backend: Backend, control: Control) -> None:
    control.serve("m", backend.url, tokenizer=tokens.BUILTIN)
    control.view.without_chains = True
    proxy = await start_proxy(control=control)
    await proxy.until(lambda app: app.prompts.status(app.gateway.fleet.view.models) == {"m": "ready"})
    assert process_of(proxy.app).pid is None


async def test_killed_amid_requests_it_fails_none_and_is_started_again(
    long_proxy: Proxy, backend: Backend, control: Control
) -> None:
    process = process_of(long_proxy.app)
    pid = process.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)  # so that they are there when it dies
    clients = [await Client.connect(long_proxy.port) for _ in range(4)]
    for client in clients:
        await client.send(request(BODY))
    await long_proxy.until(lambda app: process.pending == len(clients))
    os.kill(pid, signal.SIGKILL)
    for client in clients:
        assert (await client.read()).status == 200
        client.close()
    assert [asked(control, number) for number in range(len(clients))] == [expected()] * len(clients)
    assert beside(long_proxy) == {"process": 0, "thread": len(clients)}
    await long_proxy.until(lambda app: process.ready)
    assert process.pid != pid
    assert (await ask(long_proxy.port, request(BODY))).status == 200
    assert beside(long_proxy)["process"] == 1
    assert long_proxy.count("prompt_process_ends") == 1


async def test_a_caller_that_leaves_is_asked_nothing_about(long_proxy: Proxy, control: Control) -> None:
    process = process_of(long_proxy.app)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGSTOP)
    client = await Client.connect(long_proxy.port)
    await client.send(request(BODY))
    await long_proxy.until(lambda app: process.pending == 1)
    client.close()
    await long_proxy.until(lambda app: not app.gateway.exchanges)
    os.kill(process.pid, signal.SIGCONT)
    assert (await ask(long_proxy.port, request(BODY))).status == 200
    assert len(control.questions) == 1


async def test_one_that_hangs_is_killed_and_what_it_began_goes_without_hashes(start_process: StartProcess) -> None:
    metrics = Metrics()
    process = await start_process(metrics, answer_s_max=0.1)
    pid = process.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    answers = await asyncio.gather(*(submit(process) for _ in range(3)))
    assert answers == [SUSPECT, SUSPECT, NOT_DONE]
    await until(lambda: process.ready and process.pid != pid, "another one")
    assert metrics.prompt_process_ends.values == {(): 1}


async def test_one_that_crashes_over_a_prompt_does_not_take_the_data_plane_along(
    long_proxy: Proxy, backend: Backend, control: Control
) -> None:
    process = process_of(long_proxy.app)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGSTOP)
    client = await Client.connect(long_proxy.port)
    await client.send(request(BODY))
    await long_proxy.until(lambda app: process.pending == 1)
    os.kill(process.pid, signal.SIGSEGV)
    os.kill(process.pid, signal.SIGCONT)
    assert (await client.read()).status == 200
    client.close()
    assert asked(control) == (7, 0, b"")
    assert beside(long_proxy) == {"process": 0, "thread": 0}


async def test_signals_to_all_processes_of_a_terminal_or_unit_do_not_end_it_first(start_process: StartProcess) -> None:
    process = await start_process()
    pid = process.pid
    assert pid is not None
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        os.kill(pid, number)
    answer = await submit(process)
    assert answer.prompt is not None
    assert process.pid == pid


@pytest.mark.parametrize(
    "command",
    [
        (
            sys.executable,
            "-c",
            "import socket; socket.socket(fileno=0).sendall(b'\\1\\0\\0\\0\\0\\0\\0\\0?' * 9)\nwhile True: pass",
        ),
        (sys.executable, "-c", ""),
        (sys.executable, "-c", "import os; os.close(0)\nwhile True: pass"),
        ("/nowhere/python",),
    ],
)
async def test_what_is_no_such_process_is_tried_again_later_each_time(command: tuple[str, ...]) -> None:
    metrics = Metrics()
    process = PromptProcess(metrics, command=command, restart_s_min=0.01)
    process.see([MODEL], "m")
    await until(lambda: metrics.prompt_process_ends.values.get((), 0) >= 3, "three ends")
    assert not process.ready
    assert await submit(process) == NOT_DONE
    await process.stop()


async def test_models_that_come_later_are_known_there(start_process: StartProcess) -> None:
    process = await start_process()
    adapter = json.dumps(FIELDS | {"model": "tuned"}).encode()
    before = await submit(process, adapter)
    assert before.ask is not None
    assert before.prompt is None
    process.see([MODEL, ModelSeen("tuned", "m", False, tokens.BUILTIN, (16, 32))], "m")
    after = await submit(process, adapter)
    assert after.prompt is not None
    assert [size for size, _ in after.prompt.chains] == [16, 32]


async def test_every_turn_of_a_long_conversation_is_exact(start_process: StartProcess) -> None:
    process, tokenizer = await start_process(), tokens.load(tokens.BUILTIN)
    messages: list[dict[str, str]] = []
    for turn in range(10):
        messages.append({"role": "user", "content": f"{turn}: {os.urandom(16384).hex()}"})
        answer = await submit(process, json.dumps(FIELDS | {"messages": messages}).encode())
        assert answer.prompt is not None
        flat = tokenizer.prompts(CHAT, {"messages": messages})[0]
        assert answer.prompt.chains == ((16, blocks.chain(flat, 16, blocks.root_hash("m")).tobytes()),)
