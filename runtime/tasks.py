"""What Python 3.11 leaves to its users about cancellation.

`asyncio.wait_for` of Python 3.11 forgets a cancellation that comes in the very moment in which what it waits for is done. A
loop that waits that way, itself or inside a library (redis-py sends so), then goes on for ever, and whoever cancelled it
waits for ever. So: wait with `happened`, and let loops over a library's calls look at `cancelled`.

Timers of a loop are looked at before its sockets. A process that stood still, as its whole machine may, finds every deadline
over before it sees what came in time: where that would be taken for somebody's failure, wait `within`.

A thread cannot be cancelled: `asyncio.to_thread` leaves it running, outside whatever lock its caller held. `in_thread` waits.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

LATE_S = 0.25
"""A timer that fires later than that fires in a process that stood still."""


def cancelled() -> bool:
    """Whether the running task was asked to end, even if no exception told it."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def stop_if_cancelled() -> None:
    """For the top of a loop. CancelledError: the running task was asked to end."""
    if cancelled():
        raise asyncio.CancelledError


async def happened(event: asyncio.Event, seconds_max: float | None) -> bool:
    """Until the event is set (True), or for so long (False). None: without a bound."""
    try:
        async with asyncio.timeout(seconds_max):
            await event.wait()
    except TimeoutError:
        return False
    return True


@asynccontextmanager
async def within(seconds: float) -> AsyncIterator[None]:
    """As `asyncio.timeout`, but time in which this process stood still does not count: what waits gets it again, as long again
    as `seconds` at most."""
    loop = asyncio.get_running_loop()
    due, spare_s = loop.time() + seconds, seconds
    timer: asyncio.TimerHandle

    def expire() -> None:
        nonlocal due, spare_s, timer
        late_s = loop.time() - due
        if late_s > LATE_S and spare_s > 0:
            again_s = min(late_s, spare_s)
            due, spare_s = loop.time() + again_s, spare_s - again_s
            timer = loop.call_later(again_s, expire)
        else:
            bound.reschedule(loop.time())

    async with asyncio.timeout(None) as bound:
        timer = loop.call_later(seconds, expire)
        try:
            yield
        finally:
            timer.cancel()


async def in_thread(call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """What the call returns, made in a thread. Cancelled, it ends when the call has: what the thread touches is at rest."""
    future = asyncio.get_running_loop().run_in_executor(None, partial(call, *args, **kwargs))
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        while not future.done():
            try:
                await asyncio.wait([future])
            except asyncio.CancelledError:
                continue
        if not future.cancelled():
            future.exception()  # seen: nobody is left to be told
        raise
