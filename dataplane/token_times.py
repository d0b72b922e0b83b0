"""When tokens came from each engine last: it tells a control plane how far the step is that an engine is in.

A read of a stream is noted with the time, and nothing more; what has changed since is said with the next questions. Nobody
reads it under a policy that looks at no engine, so the fleet view says whether it is wanted. Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

AGE_S_MAX = 60.0
"""Older than that is left out: a step is not as long."""


class TokenTimes:
    """now: the clock, seconds. Readers of streams write to `at` themselves while `wanted`: a call would cost as much again."""

    __slots__ = ("at", "now", "wanted")

    def __init__(self, now: Callable[[], float]) -> None:
        self.now = now
        self.wanted = False
        self.at: dict[str, float] = {}  # by base URL, of those that are not told yet

    def told(self, numbers: Mapping[str, int]) -> list[tuple[int, float]]:
        """Endpoint number and age in seconds of what is new; numbers: by base URL. It is not new the next time."""
        if not self.at:
            return []
        now = self.now()
        ages = [(numbers[url], now - at) for url, at in self.at.items() if url in numbers and now - at < AGE_S_MAX]
        self.at.clear()
        return ages
