"""Virtual time: a queue of what happens next. Events of one moment happen in the order in which they were scheduled."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Any

UNIX_OFFSET_S = 1_700_000_000.0
"""What `unix` adds to virtual seconds, so that it looks like a time of this century."""


class Endless(Exception):
    """More events than a run may have: two parts keep waking each other."""


class Timeline:
    """A `runtime.clock.Clock` that jumps from event to event."""

    def __init__(self, *, events_max: int = 1_000_000_000) -> None:
        self._now = 0.0
        self._queue: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._scheduled = 0
        self._events_max = events_max
        self.events = 0
        """How many have happened."""

    def now(self) -> float:
        return self._now

    def unix(self) -> float:
        return self._now + UNIX_OFFSET_S

    def at(self, when_s: float, action: Callable[..., None], *args: Any) -> None:
        """action(*args) at virtual second `when_s`. AssertionError: that is in the past."""
        assert when_s >= self._now, f"an event for {when_s} s at {self._now} s"
        self._scheduled += 1
        heapq.heappush(self._queue, (when_s, self._scheduled, action, args))

    def after(self, delay_s: float, action: Callable[..., None], *args: Any) -> None:
        self.at(self._now + delay_s, action, *args)

    def run(self, done: Callable[[], bool]) -> None:
        """Until `done()` or until nothing is left to happen. Endless: the bound on events is reached."""
        queue = self._queue
        while queue and not done():
            if self.events >= self._events_max:
                raise Endless(f"{self.events} events and no end at {self._now:.3f} s of virtual time")
            self.events += 1
            self._now, _, action, args = heapq.heappop(queue)
            action(*args)
