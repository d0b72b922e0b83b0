"""What one task waits for, at most so long.

As `runtime.tasks.happened` over an asyncio.Event, in half the calls: an agent waits twice in every tick, and code that the
processor's caches have forgotten since the tick before costs by the function.
"""

from __future__ import annotations

import asyncio


class Bell:
    """Rung before anybody waits, it is heard by the next `wait`. Not for several tasks that wait at once."""

    __slots__ = ("_rung", "_waiting")

    def __init__(self) -> None:
        self._rung = False
        self._waiting: asyncio.Future[bool] | None = None

    def ring(self) -> None:
        waiting = self._waiting
        if waiting is None:
            self._rung = True
        elif not waiting.done():
            waiting.set_result(True)

    def hush(self) -> None:
        """Forget that it was rung."""
        self._rung = False

    async def wait(self, seconds_max: float) -> bool:
        """Until it is rung (True), or for so long (False). A cancellation is never lost."""
        if self._rung:
            self._rung = False
            return True
        assert self._waiting is None, "one task waits already"
        loop = asyncio.get_running_loop()
        waiting: asyncio.Future[bool] = loop.create_future()
        self._waiting = waiting
        timer = loop.call_later(seconds_max, _give_up, waiting)
        try:
            return await waiting
        finally:
            timer.cancel()
            self._waiting = None


def _give_up(waiting: asyncio.Future[bool]) -> None:
    if not waiting.done():
        waiting.set_result(False)
