"""What Python 3.11 leaves to its users about cancellation.

`asyncio.wait_for` of Python 3.11 forgets a cancellation that comes in the very moment in which what it waits for is done. A
loop that waits that way, itself or inside a library (redis-py sends so), then goes on for ever, and whoever cancelled it
waits for ever. So: wait with `happened`, and let loops over a library's calls look at `cancelled`.

A thread cannot be cancelled: `asyncio.to_thread` leaves it running, outside whatever lock its caller held. `in_thread` waits.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


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
