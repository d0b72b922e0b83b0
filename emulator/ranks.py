"""Data-parallel ranks: several engines behind one HTTP server, and who gets which request.

A request that names a rank in X-data-parallel-rank goes there; else to the rank with the least requests, as vLLM's own balancer
(0.32) counts them: those of this server that have not ended, or what the coordinator's last word says is running and waiting,
whichever is more; those waiting weigh up to four times as much where the KV cache is more than half used; among equals the one
whose turn it is. It knows nothing of caches. Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

from emulator import calls
from emulator.driver import Driver
from emulator.errors import invalid

RANK_HEADER = "X-data-parallel-rank"
HEADER_PATHS = (calls.CHAT, calls.COMPLETIONS, calls.MESSAGES)
"""Where it is read. Responses and embeddings are balanced whatever it says."""
NEWS_S = 0.1
"""How often the coordinator says what the engines do."""
_USAGE_FREE = 0.5
_WEIGHT = 6.0


class Figures(NamedTuple):
    """What an engine says of itself: requests, and the share of its KV cache that they use."""

    waiting: float
    running: float
    usage: float


class Balancer:
    """figures: asked of each engine, by rank, when the coordinator speaks."""

    def __init__(self, figures: Sequence[Callable[[], Figures]]) -> None:
        self._figures = tuple(figures)
        self._inside = [0] * len(figures)
        self._told = [Figures(0.0, 0.0, 0.0)] * len(figures)
        self._turn = 0
        self._told_at = float("-inf")

    def __len__(self) -> int:
        return len(self._figures)

    def choose(self, rank: int | None, now: float) -> int:
        """Where a request goes. rank: that it names; None: none."""
        if rank is None:
            rank = self._least(now) if len(self) > 1 else 0
        self._inside[rank] += 1
        return rank

    def ended(self, rank: int) -> None:
        """One that was chosen for has ended."""
        self._inside[rank] -= 1

    def _least(self, now: float) -> int:
        if now - self._told_at >= NEWS_S:
            self._told_at = now
            self._told = [figures() for figures in self._figures]
        count = len(self)
        order = [(self._turn + step) % count for step in range(count)]
        self._turn = (self._turn + 1) % count
        least = min(order, key=self._score)
        told = self._told[least]
        self._told[least] = told._replace(waiting=told.waiting + 1)
        return least

    def _score(self, rank: int) -> float:
        waiting, running, usage = self._told[rank]
        crowded = waiting * _WEIGHT * max(0.0, usage - _USAGE_FREE)
        return max(self._inside[rank], waiting + running) + crowded


class Ranks(Balancer):
    """drivers: by rank."""

    def __init__(self, drivers: Sequence[Driver]) -> None:
        super().__init__([partial(_figures, driver) for driver in drivers])
        self.drivers = tuple(drivers)

    def named(self, header: str | None) -> int | None:
        """The rank that a request asks for; None: it does not, or not in numbers. ApiError 400: there is no such rank."""
        try:
            rank = None if header is None else int(header)
        except ValueError:
            return None
        if rank is not None and not 0 <= rank < len(self.drivers):
            raise invalid(f"data_parallel_rank {rank} is out of range [0, {len(self.drivers)}).")
        return rank


def _figures(driver: Driver) -> Figures:
    metrics = driver.metrics
    return Figures(metrics.waiting.value, metrics.running.value, metrics.usage.value)
