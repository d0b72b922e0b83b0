"""Do predicted matches come true? The index against the engine's own `cached_tokens`, response by response.

The commonest failure of a KV-aware router is a silent one: a chat template that is not applied, tools left out of the
hash, the blocks of an engine that was restarted. Each shows here and nowhere else.

Two figures are kept per worker and model over the last WINDOW responses: the share that was predicted to the token (what
operators see), and the share of the promised tokens that the engine really had. The second falls only when the index promises
too much, and below HONOURED_MIN the worker's credit is withheld until it recovers (the comparison goes on meanwhile).
Promising too little misroutes nobody; it raises an alarm alone.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection
from dataclasses import dataclass, field

WINDOW = 200
SAMPLES_MIN = 30
"""Responses, and among them promises, before either figure is judged."""
HONOURED_MIN = 0.6
HONOURED_AGAIN = 0.8
"""Credit is withheld below the first and given again above the second."""
BROKEN_MIN = 0.1
"""Share of promises that must have been broken for that. A full cache evicts a long prefix now and then between decision and
prefill; two such in a window outweigh a hundred short ones that were kept, and are no sign of a wrong index."""
UNPROMISED_MAX = 0.5
"""Share of the engine's cached tokens that nobody predicted, above which hashes are probably made differently."""
PAIRS_MAX = 10_000
"""(worker, model) pairs kept."""


@dataclass(slots=True)
class _Window:
    samples: deque[tuple[int, int]] = field(default_factory=lambda: deque(maxlen=WINDOW))  # (predicted, cached)
    equal: int = 0
    promises: int = 0
    promised: int = 0
    honoured: int = 0
    broken: int = 0
    cached: int = 0
    withheld: bool = False

    def add(self, predicted: int, cached: int) -> None:
        samples = self.samples
        if len(samples) == WINDOW:
            self._count(*samples[0], -1)
        samples.append((predicted, cached))
        self._count(predicted, cached, 1)

    def judge(self) -> None:
        """Decides `withheld`."""
        if self.promises >= SAMPLES_MIN:
            share = self.honoured / self.promised
            self.withheld = (
                share < (HONOURED_AGAIN if self.withheld else HONOURED_MIN) and self.broken > BROKEN_MIN * self.promises
            )

    def _count(self, predicted: int, cached: int, sign: int) -> None:
        self.cached += sign * cached
        if predicted == cached:
            self.equal += sign
        if predicted > 0:
            self.promises += sign
            self.promised += sign * predicted
            if predicted > cached:
                self.broken += sign
                self.honoured += sign * cached
            else:
                self.honoured += sign * predicted


@dataclass(frozen=True, slots=True)
class Verdict:
    """Of one worker, over its models. match_ratio: None where nothing was compared. alarm: empty, or a sentence."""

    match_ratio: float | None
    samples: int
    credit: bool
    alarm: str


class SelfCheck:
    def __init__(self) -> None:
        self._windows: dict[tuple[str, str], _Window] = {}
        self._epochs: dict[str, int] = {}
        self._doubted: dict[str, set[str]] = {}  # worker -> models whose promises do not come true
        self._doubted_elsewhere: frozenset[str] = frozenset()

    def compare(self, worker: str, epoch: int, model: str, predicted: int, cached: int) -> bool:
        """One response, in tokens. Another epoch than before starts afresh. Returns whether the worker's credit stands."""
        if self._epochs.get(worker) != epoch:
            self.forget(worker)
            self._epochs[worker] = epoch
        window = self._windows.get((worker, model))
        if window is None:
            if len(self._windows) >= PAIRS_MAX:
                self._drop(next(iter(self._windows)))
            window = self._windows[(worker, model)] = _Window()
        window.add(predicted, cached)
        window.judge()
        if window.withheld:
            self._doubted.setdefault(worker, set()).add(model)
        elif self._doubted:
            self._doubted.get(worker, set()).discard(model)
        if self._doubted_elsewhere and worker in self._doubted_elsewhere and window.promises < SAMPLES_MIN:
            return False
        return not self._doubted.get(worker)

    @property
    def doubted(self) -> tuple[str, ...]:
        """Workers whose credit is withheld by what was seen here."""
        return tuple([worker for worker, models in self._doubted.items() if models])

    def doubt_elsewhere(self, workers: Collection[str]) -> dict[str, bool]:
        """Another control plane withholds the credit of these. What was seen here goes before it, once it is enough to judge.
        Returns whether the credit of each worker stands for which that has changed."""
        before, self._doubted_elsewhere = self._doubted_elsewhere, frozenset(workers)
        changed = before.symmetric_difference(self._doubted_elsewhere)
        return {worker: not self._doubted.get(worker) and worker not in self._doubted_elsewhere for worker in changed}

    def forget(self, worker: str) -> None:
        """Another run of its engine or agent, or gone for good."""
        self._epochs.pop(worker, None)
        self._doubted.pop(worker, None)
        for key in [key for key in self._windows if key[0] == worker]:
            self._drop(key)

    def _drop(self, key: tuple[str, str]) -> None:
        del self._windows[key]
        self._doubted.get(key[0], set()).discard(key[1])

    def ratios(self) -> dict[tuple[str, str], float]:
        """(worker, model) -> share of recent responses that were predicted to the token."""
        return {key: window.equal / len(window.samples) for key, window in self._windows.items() if window.samples}

    def verdict(self, worker: str, epoch: int) -> Verdict:
        """Of this run of it."""
        if self._epochs.get(worker) != epoch:
            return Verdict(None, 0, True, "")
        windows = [window for (name, _), window in self._windows.items() if name == worker]
        samples = sum(len(window.samples) for window in windows)
        if not samples:
            return Verdict(None, 0, True, "")
        ratio = sum(window.equal for window in windows) / samples
        alarm = next((text for window in windows if (text := _alarm(window))), "")
        return Verdict(ratio, samples, not any(window.withheld for window in windows), alarm)


def _alarm(window: _Window) -> str:
    if window.withheld:
        share = window.honoured / window.promised if window.promised else 0.0
        return f"predicted matches do not come true ({share:.0%} of the promised tokens): its prefix credit is withheld"
    unpromised = window.cached - window.honoured
    if len(window.samples) >= SAMPLES_MIN and unpromised > UNPROMISED_MAX * window.cached > 0:
        return f"the engine finds cached tokens that were not predicted ({unpromised} of {window.cached})"
    return ""
