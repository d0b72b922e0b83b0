"""Recorded and emulated quantiles side by side, level by level; and the recorded engine beside itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import log

import numpy as np
import numpy.typing as npt

from emulator.fidelity.recording import Ints, Recording
from emulator.fidelity.replay import Timings

BOUNDS = (0.15, 0.15, 0.10)
"""How far TTFT p50, TTFT p90 and ITL p50 may be from the recorded ones."""
QUIET_CPU_MAX = 0.15
"""A run is quiet where other processes used less than this of two cores."""

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Level:
    """Recorded and emulated quantiles of one level. Times in seconds; ratios are emulated / recorded."""

    name: str
    requests: int
    runs: int
    other_cpu: float
    recorded: tuple[float, float, float]
    """TTFT p50, TTFT p90, ITL p50."""
    emulated: tuple[float, float, float]

    @property
    def ratios(self) -> tuple[float, float, float]:
        (a, b, c), (x, y, z) = self.recorded, self.emulated
        return x / a, y / b, z / c

    @property
    def within(self) -> bool:
        """TTFT p50 and p90 within 15 %, ITL p50 within 10 %."""
        return all(abs(ratio - 1) <= bound for ratio, bound in zip(self.ratios, BOUNDS, strict=True))

    @property
    def distance(self) -> float:
        """Of the ratio farthest from 1, as a logarithm, in bounds."""
        return max(abs(log(ratio)) / bound for ratio, bound in zip(self.ratios, BOUNDS, strict=True))


def levels(recording: Recording) -> list[str]:
    """In the order of kind, then of load."""
    return sorted(set(recording.levels), key=lambda name: (name.split("_")[0], float(name.split("_")[1])))


def of_levels(recording: Recording, names: frozenset[str]) -> Mask:
    return np.array([level in names for level in recording.levels])


def quiet(recording: Recording) -> Mask:
    """Requests of quiet runs."""
    rows: Mask = (recording.run_cpu() < QUIET_CPU_MAX)[recording.runs]
    return rows


def compare(recording: Recording, draws: Sequence[Timings], rows: Mask) -> list[Level]:
    """Levels that have such rows. Emulated quantiles are those of all draws together."""
    names = np.array(recording.levels)
    found = []
    for name in levels(recording):
        here = rows & (names == name)
        if here.any():
            found.append(
                Level(
                    name=name,
                    requests=int(here.sum()),
                    runs=len(np.unique(recording.runs[here])),
                    other_cpu=float(recording.other_cpu[here].mean()),
                    recorded=quantiles([recording], here),
                    emulated=quantiles(draws, here),
                )
            )
    return found


def quantiles(draws: Sequence[Timings | Recording], rows: Mask | Ints) -> tuple[float, float, float]:
    """TTFT p50, TTFT p90 and ITL p50 of these rows of all draws together."""
    ttft50, ttft90 = np.quantile(np.concatenate([one.ttft_s[rows] for one in draws]), (0.5, 0.9))
    return float(ttft50), float(ttft90), float(np.nanmedian(np.concatenate([one.itl_s[rows] for one in draws])))


def repeats(recording: Recording, rows: Mask) -> list[Level]:
    """The recorded engine against itself: by level, the run that is farthest from the level's other runs, as `emulated`."""
    found = []
    for name in levels(recording):
        here = rows & of_levels(recording, frozenset((name,)))
        pairs = [(here & (recording.runs == run), here & (recording.runs != run)) for run in np.unique(recording.runs[here])]
        compared = [
            Level(
                name=name,
                requests=int(one.sum()),
                runs=len(pairs),
                other_cpu=float(recording.other_cpu[here].mean()),
                recorded=quantiles([recording], rest),
                emulated=quantiles([recording], one),
            )
            for one, rest in pairs
            if rest.any()
        ]
        found += [max(compared, key=lambda level: level.distance)] if compared else []
    return found


def apart(recording: Recording, timings: Timings, rows: Mask) -> dict[str, tuple[float, float, float]]:
    """How far runs of a level are from each other when arrivals and prompts are taken out: largest over smallest ratio of what
    was recorded to what the same machine would have given, in TTFT p50, TTFT p90 and ITL p50; levels with several runs."""
    found = {}
    for name in levels(recording):
        here = rows & of_levels(recording, frozenset((name,)))
        runs = [here & (recording.runs == run) for run in np.unique(recording.runs[here])]
        if len(runs) > 1:
            ratios = np.array([np.divide(quantiles([recording], run), quantiles([timings], run)) for run in runs])
            first, second, third = (ratios.max(axis=0) / ratios.min(axis=0)).tolist()
            found[name] = (first, second, third)
    return found


def errors(recording: Recording, draws: Sequence[Timings]) -> dict[str, float]:
    """Of single requests: median absolute logarithm of emulated over recorded, by kind of time."""
    found = {}
    for name in ("ttft_s", "tpot_s", "itl_s"):
        recorded = np.maximum(getattr(recording, name), 1e-3)
        ratios = np.log(np.array([np.maximum(getattr(one, name), 1e-3) for one in draws]) / recorded)
        found[name] = float(np.nanmedian(np.abs(ratios)))
    return found
