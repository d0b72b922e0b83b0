"""What goes wrong, when, and for how long. A plan is data: written by hand, or drawn from a seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random


@dataclass(frozen=True, slots=True)
class KillEngine:
    """Connections reset, cache gone; another engine after `down_s`."""

    at_s: float
    worker: int
    down_s: float


@dataclass(frozen=True, slots=True)
class HangEngine:
    """No progress for `for_s`, and every sign of health. rank: of one data-parallel rank alone; -1: of all."""

    at_s: float
    worker: int
    for_s: float
    rank: int = -1


@dataclass(frozen=True, slots=True)
class SlowEngine:
    """Iterations take `factor` times as long from here on."""

    at_s: float
    worker: int
    factor: float


@dataclass(frozen=True, slots=True)
class SilenceAgent:
    """Nothing is heard of a worker that works."""

    at_s: float
    worker: int
    for_s: float


@dataclass(frozen=True, slots=True)
class LoseDeltas:
    """The next `count` block deltas never arrive."""

    at_s: float
    worker: int
    count: int


@dataclass(frozen=True, slots=True)
class CutStream:
    """Data plane and control plane do not reach each other for `for_s`."""

    at_s: float
    for_s: float


@dataclass(frozen=True, slots=True)
class RestartControl:
    """The control plane is gone for `for_s`, and then knows nothing."""

    at_s: float
    for_s: float


Fault = KillEngine | HangEngine | SlowEngine | SilenceAgent | LoseDeltas | CutStream | RestartControl


def draw(rng: Random, *, workers: int, duration_s: float, count: int) -> tuple[Fault, ...]:
    """`count` faults of all kinds over `duration_s`; at least one worker is never killed or hung."""
    faults = (_draw_one(rng, workers, duration_s) for _ in range(count))
    return tuple(sorted(faults, key=lambda fault: fault.at_s))


def _draw_one(rng: Random, workers: int, duration_s: float) -> Fault:
    at_s = rng.uniform(0.0, duration_s)
    worker = rng.randrange(workers)
    mortal = rng.randrange(max(1, workers - 1))
    kind = rng.randrange(7)
    if kind == 0:
        return KillEngine(at_s, mortal, rng.uniform(0.05, 8.0))
    if kind == 1:
        return HangEngine(at_s, mortal, rng.uniform(0.5, 30.0))
    if kind == 2:
        return SlowEngine(at_s, worker, rng.choice((1.0, 2.5, 5.0)))
    if kind == 3:
        return SilenceAgent(at_s, worker, rng.uniform(0.2, 10.0))
    if kind == 4:
        return LoseDeltas(at_s, worker, rng.randint(1, 20))
    if kind == 5:
        return CutStream(at_s, rng.uniform(0.01, 20.0))
    return RestartControl(at_s, rng.uniform(0.05, 3.0))


def slow(factors: Sequence[tuple[int, float]]) -> tuple[Fault, ...]:
    """Workers that are slow from the start: (number, factor)."""
    return tuple(SlowEngine(0.0, worker, factor) for worker, factor in factors)
