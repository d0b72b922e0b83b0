"""Time as an argument: shells own a clock and pass `now` on, cores never look."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    def now(self) -> float:
        """Monotonic seconds; only differences mean anything."""

    def unix(self) -> float:
        """Seconds since 1970, for what leaves the process."""


class SystemClock:
    """The machine's own."""

    now = staticmethod(time.monotonic)
    unix = staticmethod(time.time)


class ManualClock:
    """Moves when told to: virtual time for simulations and tests."""

    def __init__(self, now: float = 0.0, unix_offset: float = 1_700_000_000.0) -> None:
        self._now = now
        self._unix_offset = unix_offset

    def now(self) -> float:
        return self._now

    def unix(self) -> float:
        return self._now + self._unix_offset

    def advance(self, seconds: float) -> None:
        """ValueError: backwards."""
        if seconds < 0:
            raise ValueError(f"a clock cannot go back ({seconds} s)")
        self._now += seconds
