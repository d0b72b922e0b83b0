"""`python -m worker_agent` as a process: its ready line, its end, and what it says to wrong settings."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import pytest

from contract.keyspace import EngineState
from tests.waiting import until
from tests.worker_agent.conftest import WAIT_S, Rig, hashes, prompt

ROOT = Path(__file__).parents[2]


async def spawn(*arguments: str) -> asyncio.subprocess.Process:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HEADWAY_") and name != "REDIS_URL"}
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "worker_agent", *arguments, cwd=ROOT, env=environment, stderr=asyncio.subprocess.PIPE
    )


async def line_with(process: asyncio.subprocess.Process, text: str) -> str:
    assert process.stderr is not None
    async with asyncio.timeout(WAIT_S):
        async for line in process.stderr:
            if text in line.decode():
                return line.decode()
    raise AssertionError(f"ended without a line with {text!r}")


async def test_it_says_when_it_is_registered_and_leaves_in_order(rig: Rig) -> None:
    process = await spawn("--worker", "w1", "--engine-url", rig.engine.url, "--redis-url", rig.url)
    try:
        await line_with(process, "ready: worker w1")
        await rig.engine.ranks[0].send(rig.engine.stored(prompt(1, 2)))
        await rig.reaches(rig.reader(), hashes(prompt(1, 2)))
        process.terminate()
        assert await asyncio.wait_for(process.wait(), WAIT_S) == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert await rig.record() is None
    report = await rig.report()
    assert report is not None
    assert report.state == EngineState.LEAVING


async def test_it_waits_for_an_engine_and_a_redis_that_come_later(rig: Rig) -> None:
    await rig.engine.stop()
    process = await spawn("--worker", "w1", "--engine-url", rig.engine.url, "--redis-url", rig.url)
    try:
        await line_with(process, "cannot be reached")
        for rank in rig.engine.ranks:
            rank.open()
        await rig.engine.start()
        await line_with(process, "ready: worker w1")
    finally:
        process.kill()
        await process.wait()

    async def there() -> bool:
        return await rig.record() is not None

    await until(there, "the registration")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ((), "--worker"),
        (("--worker", "a b"), "is no name"),
        (("--worker", "w", "--engine-url", "localhost:1"), "--engine-url"),
        (("--worker", "w", "--redis-url", "http://x"), "--redis-url"),
        (("--worker", "w", "--kv-events", "5557"), "--kv-events"),
        (("--worker", "w", "--ttl-ms", "100"), "--ttl-ms"),
        (("--worker", "w", "--colour", "red"), "unrecognized"),
    ],
)
async def test_wrong_settings_are_one_line_and_exit_code_2(arguments: tuple[str, ...], complaint: str) -> None:
    process = await spawn(*arguments)
    _, said = await asyncio.wait_for(process.communicate(), WAIT_S)
    assert process.returncode == 2
    assert complaint in said.decode()
    assert said.decode().count("\n") == 1
