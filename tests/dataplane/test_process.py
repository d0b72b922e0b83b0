"""`python -m dataplane`: starts, says so, shares a port, ends in order, refuses mistakes in one line."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from tests.dataplane.client import Client, Truncated, ask, chat, request
from tests.fakes.backend import STREAM_HEAD, Backend, Seen, Wire, chunk, delta, event, stream_events
from tests.waiting import until

WAIT_S = 60.0
Launch = Callable[..., Awaitable[asyncio.subprocess.Process]]


@pytest.fixture
async def launch(short_dir: Path) -> AsyncIterator[Launch]:
    started: list[asyncio.subprocess.Process] = []

    async def start(*argv: str) -> asyncio.subprocess.Process:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "dataplane",
            "--control",
            f"unix:{short_dir}/absent.sock",
            *argv,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGKILL)
            await process.wait()


async def until_ready(port: int) -> None:
    async def ready() -> bool:
        try:
            return (await ask(port, request(path="/ready", method="GET"))).status == 200
        except (OSError, Truncated):
            return False

    await until(ready, "the data plane is ready")


@pytest.mark.parametrize("processes", ["1", "2"])
async def test_it_serves_and_ends_within_its_drain_with_requests_finished(
    launch: Launch, backend: Backend, free_port: int, processes: str
) -> None:
    go_on = asyncio.Event()

    async def step(seen: Seen, wire: Wire) -> None:
        await wire.send(STREAM_HEAD + chunk(event(delta("a"))))
        await go_on.wait()
        await wire.send(b"".join(map(chunk, stream_events(["b"])[1:])) + b"0\r\n\r\n")

    backend.script(step)
    process = await launch("--port", str(free_port), "--processes", processes, "--endpoint", f"m={backend.url}")
    await until_ready(free_port)
    client = await Client.connect(free_port)
    await client.send(request(chat(stream=True)))
    await backend.until(lambda backend: len(backend.requests) == 1)
    process.terminate()
    go_on.set()
    assert (await client.read()).text == "ab"
    async with asyncio.timeout(WAIT_S):
        assert await process.wait() == 0
    client.close()


@pytest.mark.parametrize("processes", ["1", "2"])
async def test_an_occupied_port_is_one_line_and_code_2(launch: Launch, processes: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        process = await launch("--port", str(taken.getsockname()[1]), "--processes", processes)
        async with asyncio.timeout(WAIT_S):
            _, error = await process.communicate()
    assert process.returncode == 2
    assert len(error.decode().splitlines()) == 1
    assert "taken" in error.decode()


@pytest.mark.parametrize("processes", ["1", "2"])
async def test_it_says_where_it_is_found_as_a_url(launch: Launch, free_port: int, processes: str) -> None:
    if not has_ipv6():
        pytest.skip("no IPv6 here")
    process = await launch("--host", "::1", "--port", str(free_port), "--processes", processes)
    assert process.stderr is not None
    async with asyncio.timeout(WAIT_S):
        while b"ready:" not in (line := await process.stderr.readline()):
            assert line, "it ended at start"
    assert f"http://[::1]:{free_port}" in line.decode()


async def test_a_mistyped_flag_is_one_line_and_code_2(launch: Launch) -> None:
    process = await launch("--prot", "8000")
    async with asyncio.timeout(WAIT_S):
        _, error = await process.communicate()
    assert process.returncode == 2
    assert error.decode() == "dataplane: unrecognized arguments: --prot 8000\n"


@pytest.mark.parametrize("processes", ["1", "2"])
@pytest.mark.parametrize(
    "wrong",
    [
        ("--keys-file", "/absent"),
        ("--upstream-keys-file", "/absent"),
        ("--tls-cert", "/absent", "--tls-key", "/absent"),
        ("--control-ca", "/absent"),
        ("--upstream-ca", "/absent"),
        ("--access-log", "/absent/log"),
        ("--endpoint", "m=ftp://engine"),
        ("--endpoint", "m=http://engine:port"),
    ],
    ids=" ".join,
)
async def test_what_cannot_be_used_is_one_line_and_code_2(
    launch: Launch, free_port: int, wrong: tuple[str, ...], processes: str
) -> None:
    process = await launch("--port", str(free_port), "--processes", processes, *wrong)
    async with asyncio.timeout(WAIT_S):
        _, error = await process.communicate()
    assert process.returncode == 2
    assert len(error.decode().splitlines()) == 1
    assert wrong[1].removeprefix("m=") in error.decode()


@pytest.mark.parametrize("processes", ["1", "2"])
async def test_an_admin_port_that_is_taken_is_one_line_and_code_2(launch: Launch, free_port: int, processes: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        admin = taken.getsockname()[1] - int(processes) + 1  # of the last process
        process = await launch("--port", str(free_port), "--admin-port", str(admin), "--processes", processes)
        async with asyncio.timeout(WAIT_S):
            _, error = await process.communicate()
    assert process.returncode == 2
    assert "taken" in error.decode().splitlines()[-1]


async def test_a_process_that_dies_is_started_again(launch: Launch, backend: Backend, free_port: int) -> None:
    process = await launch("--port", str(free_port), "--processes", "2", "--endpoint", f"m={backend.url}")
    await until_ready(free_port)
    assert process.stderr is not None
    children = _children(process.pid)
    assert len(children) == 2
    os.kill(children[0], signal.SIGKILL)
    await until(lambda: len(set(_children(process.pid)) - {children[0]}) == 2, "a new child")
    await until_ready(free_port)


async def test_the_processes_of_one_that_is_killed_end_in_order_and_free_its_port(
    launch: Launch, backend: Backend, free_port: int
) -> None:
    """Nobody would end them, nor start those anew that die, and whoever starts the next finds the port taken."""
    go_on = asyncio.Event()

    async def step(seen: Seen, wire: Wire) -> None:
        first, *others = stream_events(["a", "b"])
        await wire.send(STREAM_HEAD + chunk(first) + chunk(others[0]))
        await go_on.wait()
        await wire.send(b"".join(map(chunk, others[1:])) + b"0\r\n\r\n")

    backend.script(step)
    arguments = ("--port", str(free_port), "--processes", "2", "--endpoint", f"m={backend.url}")
    process = await launch(*arguments)
    await until_ready(free_port)
    children = _children(process.pid)
    client = await Client.connect(free_port)
    await client.send(request(chat(stream=True)))
    assert b'"a"' in await client.reader.readuntil(b'"a"')
    process.kill()
    await process.wait()
    await until(lambda: is_refused(free_port), "its processes take nobody any more")
    successor = await launch(*arguments)
    await until_ready(free_port)  # while the stream goes on
    assert successor.returncode is None
    go_on.set()
    assert b"[DONE]" in await client.reader.readuntil(b"0\r\n\r\n")
    client.close()
    await until(lambda: not any(map(lives, children)), "they have ended")


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probing:
            probing.bind(("::1", 0))
    except OSError:
        return False
    return True


def is_refused(port: int) -> bool:
    with socket.socket() as probing:
        return probing.connect_ex(("127.0.0.1", port)) != 0


def lives(pid: int) -> bool:
    try:
        return bool(Path(f"/proc/{pid}/cmdline").read_bytes())
    except OSError:
        return False


def _children(pid: int) -> list[int]:
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return [int(text) for text in file.read().split()]
