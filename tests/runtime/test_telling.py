"""A process that is asked by SIGUSR1 what it waits for says so, and goes on."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest

from runtime.telling import PART_CHARS_MAX, SIGNAL

PROGRAM = """
import asyncio, sys, threading
from runtime import log
from runtime.service import run

async def waits_for_nobody():
    await asyncio.Event().wait()

def stands():
    threading.Event().wait()

async def main(life):
    life.tells["parcels"] = lambda: {"lost": 3, "where": {"kiel": 2}}
    life.tells["broken"] = lambda: 1 / 0
    life.tells["much"] = lambda: "x" * 100_000
    tasks = [asyncio.create_task(waits_for_nobody(), name=f"parcel-{number}") for number in range(5)]
    threading.Thread(target=stands, daemon=True).start()
    life.ready("it lives")
    await life.ending.wait()
    print("ended in order", flush=True)

log.configure("post")
run(main, "post")
"""


@pytest.fixture
def process() -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", PROGRAM]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as started:
        yield started
        started.kill()


def test_it_tells_its_state_its_tasks_and_the_stacks_of_its_threads(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    while "it lives" not in process.stdout.readline():
        pass
    for _ in range(2):  # and again
        process.send_signal(SIGNAL)
        lines: list[str] = []
        while not any("5 of task parcel-*" in line for line in lines):
            line = process.stdout.readline()
            assert line, lines
            lines.append(line)
        told = "".join(lines)
        assert 'state of parcels: {"lost":3,"where":{"kiel":2}}' in told
        assert "state of broken: cannot be told: ZeroDivisionError" in told
        assert "waits_for_nobody" in told
        assert "in stands" in told  # by faulthandler, of a thread that the loop knows nothing of
        assert max(map(len, lines)) < PART_CHARS_MAX + 200
    process.terminate()
    assert "ended in order" in process.stdout.read()
    assert process.wait() == 0
