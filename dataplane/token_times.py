"""When tokens came from each engine last: it tells a control plane how far the step is that an engine is in.

A read of a stream is noted with the time, and nothing more; what has changed since is said with the next questions. Nobody
reads it under a policy that looks at no engine, so the fleet view says whether it is wanted. All streams of an engine get their
tokens when its step ends, so one of them keeps the time for all until the next questions leave, or until it pauses or ends:
the others cost no look at the clock. Of an engine with data-parallel ranks each steps by itself, and a stream knows which one
it was steered to. Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from contract.routing import numbered
from dataplane.engines import Engines, Steps

AGE_S_MAX = 60.0
"""Older than that is left out: a step is not as long."""


class TokenTimes:
    """now: the clock, seconds. Readers of streams write to their engine's `tokens_at` while `wanted`: a call would cost as much
    again."""

    __slots__ = ("_engines", "now", "wanted")

    def __init__(self, now: Callable[[], float], engines: Engines) -> None:
        self.now = now
        self.wanted = False
        self._engines = engines

    def told(self, numbers: Mapping[str, int]) -> list[tuple[int, float]]:
        """Endpoint number, of a data-parallel rank its own (contract.routing.numbered), and age in seconds of what is new;
        numbers: by base URL. It is not new the next time."""
        if not self.wanted:
            return []
        now = self.now()
        ages: list[tuple[int, float]] = []
        for url, engine in self._engines.items():
            if engine.tokens_at or engine.streams:
                _tell(engine, numbers.get(url), now, ages)
            for rank, steps in engine.ranks.items():
                if steps.tokens_at or steps.streams:
                    _tell(steps, numbered(numbers[url], rank) if url in numbers else None, now, ages)
        return ages


def _tell(steps: Steps, number: int | None, now: float, ages: list[tuple[int, float]]) -> None:
    for stream in steps.streams:
        at = stream.take_at()
        if at:
            steps.tokens_at = max(steps.tokens_at, at)
            break  # all get theirs with the same step
    age_s = now - steps.tokens_at
    steps.tokens_at, steps.timekeeper = 0.0, None
    if number is not None and age_s < AGE_S_MAX:
        ages.append((number, age_s))
