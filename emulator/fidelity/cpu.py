"""`tiny-cpu` against the real vLLM on the CPU.

Free constants: six of `BatchingLatency`, its `request_s`, and what contention costs (five points). Each run of the recording
also has a speed of its own, because the machine had. The preset is fitted on all load levels. What is compared is not: the
constants for each half of the levels come from the other half, and a run's speed from those of its requests that are left out
of the comparison.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from emulator.fidelity.fit import Fit, fit
from emulator.fidelity.machine import KNOTS_CPU, Contention, Machine, contention
from emulator.fidelity.recording import Floats, Recording
from emulator.fidelity.replay import Timings, Undisturbed, replay
from emulator.latency import BatchingLatency
from emulator.presets import TINY_CPU

CONSTANTS = (
    "step_s_base",
    "prefill_s_base",
    "prefill_s_per_token",
    "attention_s_per_pair",
    "decode_s_per_sequence",
    "context_s_per_token",
    "request_s",
)
"""The first fields of `BatchingLatency`, in their order."""
QUIET_CPU_MAX = 0.15
"""A run is quiet where other processes used less than this of two cores."""
CURVE_START = (1.2, 1.5, 2.0, 3.0, 5.0)
_FLOOR_S = 1e-3
"""Recorded gaps are those between socket reads: several tokens in one read are 0 apart."""
_WEIGHTS = (1.0, 1.0, 0.5, 0.7)
"""Of TTFT, ITL, TPOT and prefill time in the loss."""
ITERATIONS = 6

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Calibration:
    """latency: what was fitted; curve: slowdown at KNOTS_CPU[1:]; speeds: by run; fitted: levels it was fitted on."""

    latency: BatchingLatency
    curve: Floats
    speeds: Floats
    fitted: frozenset[str]
    spread: float
    """Median absolute residual of log TTFT on the fitted levels."""


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
        ttft50, ttft90, itl = (abs(ratio - 1) for ratio in self.ratios)
        return ttft50 <= 0.15 and ttft90 <= 0.15 and itl <= 0.10


def levels(recording: Recording) -> list[str]:
    """In the order of kind, then of load."""
    return sorted(set(recording.levels), key=lambda name: (name.split("_")[0], float(name.split("_")[1])))


def halves(recording: Recording) -> tuple[frozenset[str], frozenset[str]]:
    """Every other level, and the rest."""
    names = levels(recording)
    return frozenset(names[::2]), frozenset(names[1::2])


def of_levels(recording: Recording, names: frozenset[str]) -> Mask:
    return np.array([level in names for level in recording.levels])


def quiet(recording: Recording) -> Mask:
    """Requests of quiet runs."""
    rows: Mask = (recording.run_cpu() < QUIET_CPU_MAX)[recording.runs]
    return rows


def latency_of(constants: Sequence[float] | Floats) -> BatchingLatency:
    base, start, token, pair, sequence, context, request = (float(value) for value in constants)
    return BatchingLatency(base, start, token, pair, sequence, context, request)


def constants_of(latency: BatchingLatency) -> Floats:
    return np.array([getattr(latency, name) for name in CONSTANTS])


def calibrate(recording: Recording, names: frozenset[str], start: BatchingLatency = TINY_CPU.batching) -> Calibration:
    """On the levels of these names; about a minute of CPU time. The unit of speed is the median of their quiet runs."""
    runs = contention(recording)
    rows = of_levels(recording, names)
    count = len(CONSTANTS)
    first = np.concatenate([constants_of(start), CURVE_START])
    found = _fit(recording, runs, first, np.ones(recording.num_runs), rows, free=range(len(first)))
    still = np.unique(recording.runs[rows & quiet(recording)])
    unit = float(np.median(found.factors[still]))
    constants = found.constants.copy()
    constants[:count] *= unit
    curve = constants[count:]
    speeds = run_speeds(recording, latency_of(constants[:count]), curve)
    timings = replay(recording, TINY_CPU, latency_of(constants[:count]), Machine(runs, speeds, curve))
    residuals = np.log(timings.ttft_s / recording.ttft_s)[rows]
    return Calibration(latency_of(constants[:count]), curve, speeds, names, float(np.median(np.abs(residuals))))


def run_speeds(recording: Recording, latency: BatchingLatency, curve: Floats) -> Floats:
    """Each run's own factor, from its requests with even numbers."""
    constants = np.concatenate([constants_of(latency), curve])
    even = np.arange(len(recording)) % 2 == 1
    ones = np.ones(recording.num_runs)
    return _fit(recording, contention(recording), constants, ones, even, free=()).factors


def _fit(
    recording: Recording, runs: list[Contention], constants: Floats, speeds: Floats, rows: Mask, free: Sequence[int]
) -> Fit:
    recorded = _logs(recording)
    count = len(CONSTANTS)

    def residuals(x: Floats, v: Floats) -> Floats:
        timings = replay(recording, TINY_CPU, latency_of(x[:count]), Machine(runs, v, x[count:]))
        return np.array(_WEIGHTS)[:, None] * np.nan_to_num(_logs(timings) - recorded)

    return fit(residuals, constants, speeds, recording.runs, rows, free=free, iterations=ITERATIONS)


def _logs(timings: Recording | Timings) -> Floats:
    columns = (timings.ttft_s, timings.itl_s, timings.tpot_s, timings.prefill_s)
    logs: Floats = np.log(np.maximum(np.array(columns), _FLOOR_S))
    return logs


def as_shipped(recording: Recording) -> Timings:
    """The preset alone, on a machine that nobody else uses."""
    return replay(recording, TINY_CPU, TINY_CPU.batching, Undisturbed())


def left_out(recording: Recording) -> Mask:
    """Requests with odd numbers: no run's speed was taken from them."""
    rows: Mask = np.arange(len(recording)) % 2 == 0
    return rows


def validate(recording: Recording) -> tuple[Timings, Floats, list[Calibration]]:
    """Every level as the constants of the other half of the levels say; the runs' speeds; both calibrations."""
    halves_of = halves(recording)
    found = [calibrate(recording, half) for half in halves_of]
    pairs = [replay(recording, TINY_CPU, c.latency, Machine(contention(recording), c.speeds, c.curve)) for c in found]
    # Levels of the first half come from the constants of the second.
    first = of_levels(recording, halves_of[0])
    merged = Timings(
        *(np.where(first, getattr(pairs[1], name), getattr(pairs[0], name)) for name in Timings.__dataclass_fields__)
    )
    runs_of_first = np.unique(recording.runs[first])
    speeds = np.where(np.isin(np.arange(recording.num_runs), runs_of_first), found[1].speeds, found[0].speeds)
    return merged, speeds, found


def compare(recording: Recording, timings: Timings, rows: Mask) -> list[Level]:
    """Levels that have such rows."""
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
                    recorded=_quantiles(recording, here),
                    emulated=_quantiles(timings, here),
                )
            )
    return found


def _quantiles(timings: Recording | Timings, rows: Mask) -> tuple[float, float, float]:
    ttft50, ttft90 = np.quantile(timings.ttft_s[rows], (0.5, 0.9))
    return float(ttft50), float(ttft90), float(np.nanmedian(timings.itl_s[rows]))


def sensitivity(recording: Recording, latency: BatchingLatency, rows: Mask, change: float = 0.05) -> dict[str, float]:
    """By level: how many per cent TTFT p50 changes where every step takes one per cent longer."""
    slow, fast = (
        replay(recording, TINY_CPU, latency_of(constants_of(latency) * factor), Undisturbed())
        for factor in (1 + change, 1 - change)
    )
    pairs = zip(compare(recording, slow, rows), compare(recording, fast, rows), strict=True)
    span = float(np.log((1 + change) / (1 - change)))
    return {high.name: float(np.log(high.emulated[0] / low.emulated[0]) / span) for high, low in pairs}


def describe(calibration: Calibration) -> str:
    """The constants as a person reads them."""
    lines = [f"  {name} = {value:.4g}" for name, value in zip(CONSTANTS, constants_of(calibration.latency), strict=True)]
    costs = ", ".join(f"{cpu} cores x{cost:.2f}" for cpu, cost in zip(KNOTS_CPU[1:], calibration.curve, strict=True))
    return "\n".join(
        [
            f"fitted on {', '.join(sorted(calibration.fitted))}",
            *lines,
            f"  contention: {costs}",
            f"  median |log TTFT residual| {calibration.spread:.3f}",
        ]
    )
