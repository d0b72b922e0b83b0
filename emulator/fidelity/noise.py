"""How well the recording knows its own quantiles: what chance alone would give by the criterion of `compare`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from emulator.fidelity.compare import BOUNDS, Level, levels, of_levels, quantiles
from emulator.fidelity.recording import Ints, Recording

SAMPLES = 1_000
SPLITS = 200
_SHARE = (0.025, 0.975)
NAMES = ("TTFT p50", "TTFT p90", "ITL p50")

Bounds = tuple[tuple[float, float], tuple[float, float], tuple[float, float]]
"""(low, high) as shares of the recorded quantile, in the order of NAMES."""


def bounds(recording: Recording, *, samples: int = SAMPLES, seed: int = 1) -> dict[str, Bounds]:
    """By level: the middle 95 % of each recorded quantile over as many requests drawn from the level's again and again."""
    rng = np.random.default_rng(seed)
    found = {}
    for name, rows in _by_level(recording).items():
        drawn = np.array([quantiles([recording], rng.choice(rows, len(rows))) for _ in range(samples)])
        low, high = np.quantile(drawn / quantiles([recording], rows), _SHARE, axis=0).tolist()
        found[name] = ((low[0], high[0]), (low[1], high[1]), (low[2], high[2]))
    return found


def significant(level: Level, known: Bounds) -> list[str]:
    """Quantiles beyond the target and beyond what the recording knows."""
    together = zip(NAMES, level.ratios, BOUNDS, known, strict=True)
    return [name for name, ratio, bound, (low, high) in together if abs(ratio - 1) > bound and not low <= ratio <= high]


@dataclass(frozen=True, slots=True)
class Halves:
    """Levels at which two halves of one recording meet the target against each other. alternate: every other request;
    random: mean over random halves."""

    alternate: int
    random: float


def halves(recording: Recording, *, splits: int = SPLITS, seed: int = 1) -> Halves:
    rng = np.random.default_rng(seed)
    by_level = _by_level(recording)
    met = 0
    for _ in range(splits):
        for rows in by_level.values():
            mixed = rng.permutation(rows)
            met += _within(recording, mixed[::2], mixed[1::2])
    return Halves(sum(_within(recording, rows[::2], rows[1::2]) for rows in by_level.values()), met / splits)


def _within(recording: Recording, one: Ints, other: Ints) -> bool:
    first, second = quantiles([recording], one), quantiles([recording], other)
    return all(abs(a / b - 1) <= bound for a, b, bound in zip(first, second, BOUNDS, strict=True))


def _by_level(recording: Recording) -> Mapping[str, Ints]:
    return {name: np.flatnonzero(of_levels(recording, frozenset((name,)))) for name in levels(recording)}
