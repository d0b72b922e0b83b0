"""How tests wait: for an event where there is one; else here, where every wait has a bound and a name.

What is waited for with `until` and `wait_until` is in another process, in the kernel or deep in a task, and has no event that
a test could await: it is asked again and again. What must *not* happen has no event at all: `meanwhile` lets the time pass in
which it would have. `turns` lets everything run that is ready to; no time passes.
"""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Callable
from typing import Any

WAIT_S_MAX = 20.0
POLL_S = 0.005
ELSEWHERE_POLL_S = 0.05
"""Of questions that cost something: those to other processes."""


async def until(
    condition: Callable[[], Any], what: str = "", *, seconds_max: float = WAIT_S_MAX, poll_s: float = POLL_S
) -> Any:
    """The first truthy value of `condition`, a function or a coroutine function. AssertionError: not in time, naming `what`."""
    deadline = time.monotonic() + seconds_max
    while True:
        found = condition()
        if inspect.isawaitable(found):
            found = await found
        if found:
            return found
        assert time.monotonic() < deadline, f"not within {seconds_max:g} s: {what or inspect.getsource(condition).strip()}"
        await asyncio.sleep(poll_s)


async def until_elsewhere(condition: Callable[[], Any], *, what: str, seconds_max: float = WAIT_S_MAX) -> Any:
    """The same for a condition that blocks: it is asked in a thread."""
    return await asyncio.to_thread(wait_until, condition, what=what, seconds_max=seconds_max)


def wait_until(condition: Callable[[], Any], *, what: str, seconds_max: float = WAIT_S_MAX) -> Any:
    """The same without an event loop."""
    deadline = time.monotonic() + seconds_max
    while True:
        found = condition()
        if found:
            return found
        assert time.monotonic() < deadline, f"not within {seconds_max:g} s: {what}"
        time.sleep(ELSEWHERE_POLL_S)


async def turns(count: int = 1) -> None:
    """So many turns of the event loop."""
    for _ in range(count):
        await asyncio.sleep(0)


async def meanwhile(seconds: float) -> None:
    """The time in which something would happen that must not."""
    await asyncio.sleep(seconds)
