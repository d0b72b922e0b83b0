"""Local bounds: how many requests at once, and how many retries. Pure."""

from __future__ import annotations

from dataclasses import dataclass

RETRY_TOKENS_MAX = 100.0


@dataclass(slots=True)
class Concurrency:
    """Requests in flight in this process."""

    requests_max: int
    in_flight: int = 0

    def enter(self) -> bool:
        """False: full. Each True needs one `leave`."""
        if self.in_flight >= self.requests_max:
            return False
        self.in_flight += 1
        return True

    def leave(self) -> None:
        assert self.in_flight > 0, f"{self.in_flight} requests in flight, and one more left"
        self.in_flight -= 1


class RetryBudget:
    """A token bucket that requests and time fill: retries stay a small share of the traffic when everything fails."""

    def __init__(self, *, ratio: float, per_s: float, now: float) -> None:
        self._ratio = ratio
        self._per_s = per_s
        self._at = now
        self.tokens = min(RETRY_TOKENS_MAX, 10 * per_s)

    def earn(self) -> None:
        """A request came in."""
        if self.tokens < RETRY_TOKENS_MAX:
            self.tokens = min(RETRY_TOKENS_MAX, self.tokens + self._ratio)

    def take(self, now: float) -> bool:
        """One retry, if the budget has it."""
        self.tokens = min(RETRY_TOKENS_MAX, self.tokens + (now - self._at) * self._per_s)
        self._at = now
        if self.tokens < 1:
            return False
        self.tokens -= 1
        return True
