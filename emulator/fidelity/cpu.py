"""`tiny-cpu` against the real vLLM on the CPU.

Free constants: six of `BatchingLatency`, its `request_s`, and what contention costs (five points). Each run of the recording
also has a speed of its own, because the machine had. The preset is fitted on all load levels. What is compared is not: the
constants for each half of the levels come from the other half, and a run's speed from those of its requests that are left out
of the comparison.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from emulator.fidelity.compare import Mask, compare, levels, of_levels, quiet
from emulator.fidelity.fit import Fit, fit
from emulator.fidelity.machine import KNOTS_CPU, Contention, Timeline, contention, rates_of, slowness, stopping
from emulator.fidelity.pace import DRAWS, crossed, measure
from emulator.fidelity.recording import Floats, Recording
from emulator.fidelity.replay import Timings, Undisturbed, replay, retimed
from emulator.latency import BatchingLatency
from emulator.presets import TINY_CPU, Preset

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
CURVE_START = (1.2, 1.5, 2.0, 3.0, 5.0)
_FLOOR_S = 1e-3
"""Recorded gaps are those between socket reads: several tokens in one read are 0 apart."""
_WEIGHTS = (1.0, 1.0, 0.5, 0.7)
"""Of TTFT, ITL, TPOT and prefill time in the loss."""
ITERATIONS = 6


@dataclass(frozen=True, slots=True)
class Calibration:
    """latency: what was fitted; curve: slowdown at KNOTS_CPU[1:]; speeds: by run; fitted: levels it was fitted on."""

    latency: BatchingLatency
    curve: Floats
    speeds: Floats
    fitted: frozenset[str]
    spread: float
    """Median absolute residual of log TTFT on the fitted levels."""


def halves(recording: Recording) -> tuple[frozenset[str], frozenset[str]]:
    """Every other level, and the rest."""
    names = levels(recording)
    return frozenset(names[::2]), frozenset(names[1::2])


def latency_of(constants: Sequence[float] | Floats) -> BatchingLatency:
    base, start, token, pair, sequence, context, request = (float(value) for value in constants)
    return BatchingLatency(base, start, token, pair, sequence, context, request)


def constants_of(latency: BatchingLatency) -> Floats:
    return np.array([getattr(latency, name) for name in CONSTANTS])


def calibrate(recording: Recording, names: frozenset[str], *, iterations: int = ITERATIONS) -> Calibration:
    """On the levels of these names, beginning at the preset; about a minute of CPU time."""
    latency, curve = fit_constants(recording, names, iterations=iterations)
    speeds = run_speeds(recording, latency, curve)
    timings = replay(recording, TINY_CPU, latency, _steady(contention(recording), speeds, curve))
    residuals = np.log(timings.ttft_s / recording.ttft_s)[of_levels(recording, names)]
    return Calibration(latency, curve, speeds, names, float(np.median(np.abs(residuals))))


def fit_constants(recording: Recording, names: frozenset[str], *, iterations: int) -> tuple[BatchingLatency, Floats]:
    """The engine's constants and the curve of contention. The unit of speed is the median of the quiet runs."""
    rows = of_levels(recording, names)
    count = len(CONSTANTS)
    first = np.concatenate([constants_of(TINY_CPU.batching), CURVE_START])
    ones = np.ones(recording.num_runs)
    found = _fit(recording, contention(recording), first, ones, rows, range(len(first)), iterations)
    still = np.unique(recording.runs[rows & quiet(recording)])
    unit = float(np.median(found.factors[still]))
    return latency_of(found.constants[:count] * unit), found.constants[count:]


def run_speeds(recording: Recording, latency: BatchingLatency, curve: Floats) -> Floats:
    """Each run's own factor, from its requests with even numbers."""
    constants = np.concatenate([constants_of(latency), curve])
    even = np.arange(len(recording)) % 2 == 1
    ones = np.ones(recording.num_runs)
    return _fit(recording, contention(recording), constants, ones, even, (), ITERATIONS).factors


def _fit(
    recording: Recording,
    runs: list[Contention],
    constants: Floats,
    speeds: Floats,
    rows: Mask,
    free: Sequence[int],
    iterations: int,
) -> Fit:
    recorded = _logs(recording)
    count = len(CONSTANTS)

    def residuals(x: Floats, v: Floats) -> Floats:
        timings = replay(recording, TINY_CPU, latency_of(x[:count]), _steady(runs, v, x[count:]))
        return np.array(_WEIGHTS)[:, None] * np.nan_to_num(_logs(timings) - recorded)

    return fit(residuals, constants, speeds, recording.runs, rows, free=free, iterations=iterations)


def _steady(runs: list[Contention], speeds: Floats, curve: Floats) -> Timeline:
    return slowness(runs, rates_of(runs, speeds, curve))


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


@dataclass(frozen=True, slots=True)
class Perfect:
    """Levels that an engine without any error meets by this comparison: the preset against recordings of itself.

    over_time: each of several recordings made on the recorded machine's speed over time, told as the real one is told; untold:
    on quiet runs that each have their own speed, told nothing, with its number of levels.
    """

    over_time: list[int]
    untold: tuple[int, int]


def perfect(recording: Recording, curve: Floats, speeds: Floats, *, recordings: int = 3) -> Perfect:
    """speeds: by run. A minute of CPU time."""
    latency, everything = TINY_CPU.batching, np.ones(len(recording), dtype=np.bool_)
    runs = contention(recording)
    told = measure(recording, latency, runs, rates_of(runs, np.ones(len(runs)), curve), everything)
    over_time = []
    for number in range(recordings):
        # Stopped at other moments than any draw that it is compared with.
        made = retimed(recording, replay(recording, TINY_CPU, latency, stopping(runs, told, seed=DRAWS + number)))
        over_time.append(sum(level.within for level in compare(made, crossed(made, latency, curve), everything)))
    still = quiet(recording)
    uneven = retimed(recording, replay(recording, TINY_CPU, latency, _steady(runs, speeds, np.ones(len(curve)))))
    untold = compare(uneven, [as_shipped(recording)], still)
    return Perfect(over_time, (sum(level.within for level in untold), len(untold)))


@dataclass(frozen=True, slots=True)
class Validation:
    """Every level as the constants of the other half of the levels say."""

    over_time: list[Timings]
    """On a machine whose speed over time the other half of the requests told; several draws."""
    by_run: Timings
    """On a machine with contention and one speed a run, from the requests with even numbers."""
    speeds: Floats
    calibrations: list[Calibration]


def validate(recording: Recording) -> Validation:
    """A few minutes of CPU time."""
    halves_of = halves(recording)
    found = [calibrate(recording, half) for half in halves_of]
    others = [of_levels(recording, half) for half in reversed(halves_of)]
    by_run = [replay(recording, TINY_CPU, c.latency, _steady(contention(recording), c.speeds, c.curve)) for c in found]
    over_time = [crossed(recording.only(rows), one.latency, one.curve) for one, rows in zip(found, others, strict=True)]
    runs = np.unique(recording.runs[others[1]])
    return Validation(
        over_time=[_merge(others, pair) for pair in zip(*over_time, strict=True)],
        by_run=_merge(others, [_only(timings, rows) for timings, rows in zip(by_run, others, strict=True)]),
        speeds=np.where(np.isin(np.arange(recording.num_runs), runs), found[1].speeds, found[0].speeds),
        calibrations=found,
    )


def _only(timings: Timings, rows: Mask) -> Timings:
    return Timings(*(getattr(timings, name)[rows] for name in Timings.__dataclass_fields__))


def _merge(rows: Sequence[Mask], parts: Sequence[Timings]) -> Timings:
    """Parts are of these rows, which have no row in common and leave none out."""
    columns = []
    for name in Timings.__dataclass_fields__:
        column = np.empty(len(rows[0]), getattr(parts[0], name).dtype)
        for here, part in zip(rows, parts, strict=True):
            column[here] = getattr(part, name)
        columns.append(column)
    return Timings(*columns)


def controls(recording: Recording, curve: Floats) -> dict[str, int]:
    """How many levels engines meet that are wrong in one respect, each given the machine's speed over time as the right one
    is. A few minutes of CPU time."""
    right = TINY_CPU.batching
    wrong: dict[str, tuple[Preset, BatchingLatency]] = {
        "none (the preset)": (TINY_CPU, right),
        "prefill a third cheaper": (TINY_CPU, replace(right, prefill_s_per_token=right.prefill_s_per_token * 2 / 3)),
        "decoding a third dearer": (TINY_CPU, replace(right, step_s_base=right.step_s_base * 4 / 3)),
        "context costs nothing to decode": (TINY_CPU, replace(right, context_s_per_token=0.0)),
        "16 seats, not 8": (replace(TINY_CPU, max_num_seqs=16), right),
        "no chunks: prompts of up to 4,096 tokens in one step": (replace(TINY_CPU, max_num_batched_tokens=4_096), right),
        "chunks of 256": (replace(TINY_CPU, max_num_batched_tokens=256), right),
        "a prefix cache of 140 blocks, not 700": (replace(TINY_CPU, num_blocks=140), right),
    }
    everything: Mask = np.ones(len(recording), dtype=np.bool_)
    return {
        what: sum(
            level.within for level in compare(recording, crossed(recording, latency, curve, preset=preset, draws=1), everything)
        )
        for what, (preset, latency) in wrong.items()
    }


def sensitivity(recording: Recording, latency: BatchingLatency, rows: Mask, change: float = 0.05) -> dict[str, float]:
    """By level: how many per cent TTFT p50 changes where every step takes one per cent longer."""
    slow, fast = (
        replay(recording, TINY_CPU, latency_of(constants_of(latency) * factor), Undisturbed())
        for factor in (1 + change, 1 - change)
    )
    pairs = zip(compare(recording, [slow], rows), compare(recording, [fast], rows), strict=True)
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
