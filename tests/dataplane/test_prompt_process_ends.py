"""The process for long prompts ends with its data plane, however that ends."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from contract import tokens
from tests.dataplane_process import until_ready
from tests.waiting import until

WAIT_S = 60.0
Launch = Callable[..., Awaitable[asyncio.subprocess.Process]]


@pytest.fixture
async def launch(short_dir: Path, free_port: int) -> AsyncIterator[Launch]:
    """Starts data planes of one model with a tokenizer."""
    started: list[asyncio.subprocess.Process] = []

    async def start(processes: int) -> asyncio.subprocess.Process:
        settings = {
            "--port": str(free_port),
            "--control": f"unix:{short_dir}/absent.sock",
            "--processes": str(processes),
            "--endpoint": "m=http://127.0.0.1:9",
            "--tokenizer": f"m={tokens.BUILTIN}",
        }
        argv = [part for pair in settings.items() for part in pair]
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "dataplane", *argv, stderr=asyncio.subprocess.PIPE, start_new_session=True
        )
        started.append(process)
        await until_ready(process, processes)
        return process

    yield start
    for process in started:
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGKILL)
            await process.wait()


def workers(group: int) -> list[int]:
    """The processes for long prompts in a process group."""
    found = []
    for pid in map(int, filter(str.isdigit, os.listdir("/proc"))):
        try:
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
            state, _, process_group = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:3]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(process_group) == group and state != "Z" and b"dataplane.prompt_worker" in command:
            found.append(pid)
    return found


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
async def test_it_ends_with_its_data_plane(launch: Launch, processes: int, number: signal.Signals) -> None:
    process = await launch(processes)
    await until(lambda: len(workers(process.pid)) == processes, "each has one")
    if number == signal.SIGKILL:
        for pid in {process.pid, *map(parent, workers(process.pid))}:
            os.kill(pid, number)
    else:
        process.send_signal(number)
    async with asyncio.timeout(WAIT_S):
        assert await process.wait() == (-number if number == signal.SIGKILL else 0)
    await until(lambda: not workers(process.pid), "none is left")


async def test_a_data_plane_that_is_told_to_end_while_it_loads_a_tokenizer_ends_in_order(launch: Launch) -> None:
    for _ in range(5):
        process = await launch(1)
        process.terminate()
        async with asyncio.timeout(WAIT_S):
            assert await process.wait() == 0


async def test_even_where_it_is_amid_its_work(launch: Launch) -> None:
    process = await launch(1)
    await until(lambda: workers(process.pid), "there is one")
    (worker,) = workers(process.pid)
    os.kill(worker, signal.SIGSTOP)
    os.kill(process.pid, signal.SIGKILL)
    await process.wait()
    os.kill(worker, signal.SIGCONT)
    await until(lambda: not workers(process.pid), "none is left")
