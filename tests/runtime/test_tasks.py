"""Cancellation that comes in the very moment of what was waited for."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable

import pytest
import uvloop

from runtime.tasks import LATE_S, happened, in_thread, stop_if_cancelled, within
from tests.waiting import turns


async def forgets_a_cancellation(event: asyncio.Event) -> None:
    """What redis-py does on Python 3.11 (by way of wait_for) when a send ends as its caller is cancelled."""
    try:
        await event.wait()
    except asyncio.CancelledError:
        return


async def test_a_wait_says_whether_it_happened() -> None:
    event = asyncio.Event()
    assert not await happened(event, 0.01)
    event.set()
    assert await happened(event, 0.01)
    assert await happened(event, None)


async def test_a_cancellation_in_the_moment_of_the_event_is_not_forgotten() -> None:
    event = asyncio.Event()
    waiting = asyncio.create_task(happened(event, 10))
    await turns()
    event.set()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting


async def test_a_loop_over_calls_that_forget_cancellations_ends() -> None:
    event = asyncio.Event()
    rounds = 0

    async def loop() -> None:
        nonlocal rounds
        while True:
            stop_if_cancelled()
            rounds += 1
            await forgets_a_cancellation(event)

    running = asyncio.create_task(loop())
    await turns()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert rounds == 1


@pytest.mark.parametrize("later", range(6))
async def test_a_loop_that_is_cancelled_in_the_moment_of_an_event_ends(later: int) -> None:
    event = asyncio.Event()

    async def loop() -> None:
        while True:
            event.clear()
            await happened(event, 60.0)

    task = asyncio.create_task(loop())
    await turns(2)
    event.set()
    await turns(later)
    task.cancel()
    assert await asyncio.wait({task}, timeout=1.0) == ({task}, set())


async def test_a_call_in_a_thread_is_over_when_its_cancelled_caller_is() -> None:
    begun, go_on, over = threading.Event(), threading.Event(), threading.Event()

    def call() -> None:
        begun.set()
        assert go_on.wait(10)
        over.set()

    calling = asyncio.create_task(in_thread(call))
    assert await asyncio.to_thread(begun.wait, 10)
    calling.cancel()
    await turns()
    calling.cancel()
    await turns()
    assert not calling.done()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await calling
    assert over.is_set()


async def test_a_call_in_a_thread_returns_and_raises_as_it_would_here() -> None:
    assert await in_thread(max, 3, 4) == 4
    with pytest.raises(ZeroDivisionError):
        await in_thread(divmod, 1, 0)


LOOPS = pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
BOUND_S = 0.2
STILL_S = BOUND_S + 2 * LATE_S


@LOOPS
def test_what_came_while_the_process_stood_still_was_in_time(new_loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    async def wait() -> bytes:
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair()
        with ours, theirs:
            ours.setblocking(False)

            def stand_still() -> None:
                theirs.send(b"in time")
                time.sleep(STILL_S)  # the process stands still, which is what is tested

            loop.call_later(BOUND_S / 4, stand_still)
            async with within(BOUND_S):
                return await loop.sock_recv(ours, 100)

    with asyncio.Runner(loop_factory=new_loop) as runner:
        assert runner.run(wait()) == b"in time"


@LOOPS
@pytest.mark.parametrize("still_s", [0.0, STILL_S])
def test_what_does_not_come_is_not_waited_for_without_end(
    still_s: float, new_loop: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    async def wait() -> float:
        loop = asyncio.get_running_loop()
        loop.call_later(BOUND_S / 4, time.sleep, still_s)
        began = time.monotonic()
        with pytest.raises(TimeoutError):
            async with within(BOUND_S):
                await asyncio.Event().wait()
        return time.monotonic() - began

    with asyncio.Runner(loop_factory=new_loop) as runner:
        took_s = runner.run(wait())
    assert took_s >= BOUND_S - 0.01
    if still_s:
        assert took_s >= still_s + BOUND_S / 2


async def test_a_cancellation_within_a_bound_is_one() -> None:
    async def wait() -> None:
        async with within(60):
            await asyncio.Event().wait()

    waiting = asyncio.create_task(wait())
    await turns()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
