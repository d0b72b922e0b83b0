"""`python -m emulator` from outside: settings, ports, signals."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator

import pytest

from emulator.settings import Settings
from runtime.settings import SettingsError
from runtime.settings import parse as parse_settings
from tests.emulator.captures import exchange, parse
from tests.emulator.conftest import Launch
from tests.emulator.test_server import completion, raw_post


@contextlib.asynccontextmanager
async def process(*flags: str) -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    """A running emulator and its address."""
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "emulator", "--port", "0", *flags, stderr=asyncio.subprocess.PIPE
    )
    try:
        assert child.stderr is not None
        line = (await asyncio.wait_for(child.stderr.readline(), 30)).decode()
        assert "ready: " in line, line
        yield child, line.split("ready: ")[1].split()[0]
    finally:
        with contextlib.suppress(ProcessLookupError):
            child.kill()
        await child.wait()


async def open_stream(url: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A stream whose first event has arrived but was not read."""
    host, port = url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(raw_post("/v1/completions", completion(3_000, stream=True)))
    return reader, writer


async def test_sigterm_ends_streams_with_abort_and_done() -> None:
    async with process() as (child, url):
        reader, writer = await open_stream(url)
        head = await asyncio.wait_for(reader.readuntil(b"data: "), 20)
        child.send_signal(signal.SIGTERM)
        answer = parse(head + await asyncio.wait_for(reader.read(), 10))
        assert answer.events[-2]["choices"][0]["finish_reason"] == "abort"
        assert answer.events[-1] == "data: [DONE]"
        assert await asyncio.wait_for(child.wait(), 10) == 0
        writer.close()


async def test_sigterm_with_a_timeout_lets_streams_end_and_aborts_new_requests() -> None:
    async with process("--shutdown-timeout", "60", "--speed", "0.5") as (child, url):
        host, port = url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(raw_post("/v1/completions", completion(150, stream=True)))
        head = await asyncio.wait_for(reader.readuntil(b"data: "), 20)
        child.send_signal(signal.SIGTERM)
        for _ in range(200):
            late = await exchange(url, raw_post("/v1/completions", completion(1, stream=True)))
            if late.events[0]["choices"][0]["finish_reason"] == "abort":
                break
        assert late.status == 200
        assert late.events[0]["choices"][0] | {"text": ""} == late.events[0]["choices"][0]
        answer = parse(head + await asyncio.wait_for(reader.read(), 10))
        assert answer.events[-2]["choices"][0]["finish_reason"] == "length"
        assert await asyncio.wait_for(child.wait(), 10) == 0
        writer.close()


async def test_a_dead_engine_takes_its_process_along() -> None:
    async with process("--faults") as (child, url):
        answer = await exchange(url, raw_post("/emulator/faults", {"kind": "die", "seconds": 0.05}))
        assert answer.status == 200
        assert await asyncio.wait_for(child.wait(), 10) == 1


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--preset", "gpt"), "--preset: 'gpt' is not one of"),
        (("--speed", "0"), "--speed"),
        (("--speed", "inf"), "finite"),
        (("--speed", "fast"), "is not a number"),
        (("--lora", "a,a"), "--lora"),
        (("--num-blocks", "-1"), "--num-blocks"),
        (("--kv-events-port", "70000"), "not a TCP port"),
        (("--kv-event-port", "7"), "--kv-event-port"),
    ],
)
def test_a_bad_setting_is_named(flags: tuple[str, ...], said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        parse_settings(Settings, "emulator", flags, {})


async def test_sizes_that_do_not_fit_are_one_line_and_exit_code_2() -> None:
    code, lines = await _fails("--max-model-len", "999999")
    assert (code, lines) == (2, ["emulator: max_model_len is 999999 tokens, the KV cache holds 22368"])


async def test_an_occupied_port_is_one_line_and_exit_code_2() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        code, lines = await _fails("--port", str(taken.getsockname()[1]))
    assert code == 2
    assert "taken" in lines[-1]


async def test_an_occupied_port_for_kv_events_is_an_os_error(launch: Launch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(OSError, match="Address already in use") as refused:
            await launch(kv_events_port=taken.getsockname()[1])
    assert refused.value.errno == errno.EADDRINUSE


async def _fails(*flags: str) -> tuple[int, list[str]]:
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "emulator", *flags), stderr=asyncio.subprocess.PIPE, env=environment
    )
    try:
        _, stderr = await asyncio.wait_for(child.communicate(), 30)
    finally:
        with contextlib.suppress(ProcessLookupError):
            child.kill()
    assert child.returncode is not None
    return child.returncode, [line for line in stderr.decode().splitlines() if line.strip()]
