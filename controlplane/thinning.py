"""How many records of good ends are written: all of them, up to a rate; above it so many a second, one as good as another.

A record of a request costs as much as deciding it, here, in Redis and in the trainer, which keeps a bounded sample of what it
reads anyway. Failures are never left out: they are few, or they are the news.
"""

from __future__ import annotations

BURST_S = 0.05
"""Room for so much of a second's records at once: ends come in messages of many."""
PER_S_MAX = 2000
"""More than a trainer keeps of what it reads."""


class Thinning:
    """A token bucket. per_s_max: 0: nothing is left out. Pure; `now` is monotonic seconds."""

    __slots__ = ("_at", "_burst", "_per_s", "_tokens", "left_out")

    def __init__(self, per_s_max: float) -> None:
        self._per_s = per_s_max
        self._burst = max(1.0, per_s_max * BURST_S)
        self._tokens = self._burst
        self._at = 0.0
        self.left_out = 0

    def takes_of(self, count: int, now: float) -> int:
        """Of so many of one moment, how many are written: the first of them."""
        if not self._per_s:
            return count
        if now > self._at:
            self._tokens = min(self._burst, self._tokens + (now - self._at) * self._per_s)
            self._at = now
        taken = min(count, int(self._tokens))
        self._tokens -= taken
        self.left_out += count - taken
        return taken

    def takes(self, now: float) -> bool:
        """Whether one more is written now."""
        if not self._per_s:
            return True
        if now > self._at:  # the ends of one message have one moment
            self._tokens = min(self._burst, self._tokens + (now - self._at) * self._per_s)
            self._at = now
        if self._tokens < 1.0:
            self.left_out += 1
            return False
        self._tokens -= 1.0
        return True
