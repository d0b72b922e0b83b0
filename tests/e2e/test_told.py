"""A failed test shows what its stack waits for: here it is asked, while an engine stands still."""

from __future__ import annotations

import asyncio
import os
import signal

import aiohttp
import pytest

from tests.e2e.stack import TOLD, RunningStack, add_told
from tests.e2e.told import CHARS_MAX
from tests.waiting import until_elsewhere

REQUESTS = 12


async def _asked(stack: RunningStack, session: aiohttp.ClientSession) -> int:
    body = {"model": "llama-3.1-8b", "prompt": "Where is it?", "max_tokens": 2, "stream": True}
    async with session.post(stack.url + "/v1/completions", json=body) as reply:
        await reply.read()
        return reply.status


@pytest.mark.slow
async def test_requests_at_engines_that_stand_still_are_told_where_they_wait(stack: RunningStack) -> None:
    processes = stack.child_pids()
    engines = [pids[0] for name, pids in processes.items() if name.startswith("engine")]
    async with aiohttp.ClientSession() as session:
        for pid in engines:
            os.kill(pid, signal.SIGSTOP)
        try:
            asked = [asyncio.create_task(_asked(stack, session)) for _ in range(REQUESTS)]
            await until_elsewhere(lambda: _active(stack) == REQUESTS, what="all requests are at the engines")
            text = await asyncio.to_thread(stack.told)
        finally:
            for pid in engines:
                os.kill(pid, signal.SIGCONT)
        assert await asyncio.gather(*asked) == [200] * REQUESTS
    assert len(text) <= CHARS_MAX + 10
    for expected in (
        ": T, ",  # an engine is stopped
        '"requests":{"WAITING http://127.0.0.1:',
        f'"reservations":{REQUESTS}',
        "port ",
        "worker registered",  # of the log before
        "headway_proxy_requests_in_flight 12",
    ):
        assert expected in text, expected
    assert text in (stack.home / "told.txt").read_text()


def _active(stack: RunningStack) -> int:
    return sum(worker.active for worker in stack.list_workers().workers)


def test_it_is_shown_with_the_error_and_once(stack: RunningStack) -> None:
    error = AssertionError("something is wrong")
    add_told(error, stack)
    add_told(error, stack)
    (note,) = error.__notes__
    assert note.startswith(TOLD + stack.url)
    assert "state of requests" in note
