"""The machine's speed over time, told by requests other than those that are compared.

A shared machine changes speed within a second, and what the recording says about other processes is an average over each
request's life. But every request is a clock: between sending, first and last token the engine did a known amount of work. From
the work of overlapping requests follow the rates of a run, bin by bin (least squares, smooth where nothing is known, close to
what contention alone would give). The work depends on who was batched with whom, and that on the rates: replay and least
squares take turns until they agree.

Requests of one fold get their speed from those of the other folds, so no request tells its own. What is tested is then whether
an engine on that machine would have treated these requests so; `cpu.controls` shows that a wrong engine does not pass.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from emulator.fidelity.machine import Contention, Timeline, contention, overlap, rates_of, stopping
from emulator.fidelity.recording import Floats, Recording
from emulator.fidelity.replay import Timings, replay
from emulator.latency import BatchingLatency
from emulator.presets import TINY_CPU, Preset

FOLDS = 2
DRAWS = 5
ROUNDS = 12
_DAMPING = 0.6
_SCALES = (1.0, 0.15)
"""Relative errors beyond this count less and less, from the first round to the last."""
_SMOOTH, _PRIOR = 0.5, 0.1
_RATE_MIN, _RATE_MAX = 0.03, 1.5
_SHORT_S = 0.02
"""Work below this is not known to a constant relative error."""
_REWEIGHTED = 3
_LOSS_SCALE = 0.12

Mask = npt.NDArray[np.bool_]


def crossed(
    recording: Recording, latency: BatchingLatency, curve: Floats, *, preset: Preset = TINY_CPU, draws: int = DRAWS
) -> list[Timings]:
    """Each request as emulated on a machine whose speed the requests of the other folds told, once for each draw of the
    moments at which the machine stops. curve: cost of contention."""
    runs = contention(recording)
    base = rates_of(runs, np.ones(len(runs)), curve)
    fold = np.arange(len(recording)) % FOLDS
    rates = [measure(recording, latency, runs, base, fold != number, preset=preset) for number in range(FOLDS)]
    found = []
    for seed in range(draws):
        folds = [replay(recording, preset, latency, stopping(runs, told, seed=seed)) for told in rates]
        columns = (np.choose(fold, [getattr(one, name) for one in folds]) for name in Timings.__dataclass_fields__)
        found.append(Timings(*columns))
    return found


def measure(
    recording: Recording,
    latency: BatchingLatency,
    runs: Sequence[Contention],
    base: Sequence[Floats],
    rows: Mask,
    *,
    preset: Preset = TINY_CPU,
    rounds: int = ROUNDS,
) -> list[Floats]:
    """Rates by run and bin, from the requests in `rows`; `base` where they say nothing. The best of all rounds, run by run."""
    rates = [np.clip(one, _RATE_MIN, _RATE_MAX) for one in base]
    best = [one.copy() for one in rates]
    least = np.full(len(runs), np.inf)
    for scale in np.geomspace(_SCALES[0], _SCALES[1], rounds):
        timeline = stopping(runs, rates)
        timings = replay(recording, preset, latency, timeline)
        losses = np.bincount(recording.runs, _losses(recording, timings) * rows, minlength=len(runs))
        for number in np.flatnonzero(losses < least).tolist():
            best[number], least[number] = rates[number], losses[number]
        phases = _phases(recording, timings, timeline)
        for number, run in enumerate(runs):
            here = np.flatnonzero(rows & (recording.runs == number))
            wanted = _solve([phase[here] for phase in phases], run, base[number], rates[number], float(scale))
            rates[number] = rates[number] ** (1 - _DAMPING) * wanted**_DAMPING
    return best


def _losses(recording: Recording, timings: Timings) -> Floats:
    """By request: pseudo-Huber on logarithms of TTFT, prefill and time per token."""
    total = np.zeros(len(recording))
    for name, weight in (("ttft_s", 1.0), ("prefill_s", 0.5), ("tpot_s", 1.0)):
        ratio = np.maximum(getattr(timings, name), 1e-3) / np.maximum(getattr(recording, name), 1e-3)
        total += np.sqrt(1 + (weight * np.nan_to_num(np.log(ratio)) / _LOSS_SCALE) ** 2) - 1
    return total


def _phases(recording: Recording, timings: Timings, timeline: Timeline) -> list[Floats]:
    """Sending to first token, prefill, decoding: recorded begin and end (s), and the work in it as emulated (s); by request."""
    recorded = _marks(recording, recording)
    done = [timeline.work_s(one) for one in _marks(recording, timings)]
    pairs = ((0, 2), (1, 2), (2, 3))
    return [np.array([recorded[a], recorded[b], done[b] - done[a]]).T for a, b in pairs]


def _marks(recording: Recording, timings: Recording | Timings) -> list[Floats]:
    """When each request was sent, scheduled, and got its first and its last token."""
    first = recording.send_s + timings.ttft_s
    last = first + np.nan_to_num(timings.tpot_s) * (recording.max_tokens - 1)
    return [recording.send_s, first - timings.prefill_s, first, last]


def _solve(phases: Sequence[Floats], run: Contention, base: Floats, rates: Floats, scale: float) -> Floats:
    """Rates at which each phase's work takes the time that it took."""
    blocks, targets = [], []
    for phase in phases:
        begin, end, work = phase.T
        known = (end - begin > 1e-3) & (work > 1e-4)
        weight = 1 / np.hypot(work[known], _SHORT_S)
        shared = overlap(begin[known] - run.begin_s, end[known] - run.begin_s, len(base))
        blocks.append(shared * weight[:, None])
        targets.append(work[known] * weight)
    # Unknowns are rates over base ones, so that smoothness and closeness mean the same at every speed.
    blocks = [block * base for block in blocks]
    blocks += [_SMOOTH * np.diff(np.eye(len(base)), axis=0), _PRIOR * np.eye(len(base))]
    targets += [np.zeros(len(base) - 1), np.full(len(base), _PRIOR)]
    matrix, target = np.vstack(blocks), np.concatenate(targets)
    x = rates / base
    for _ in range(_REWEIGHTED):
        weight = (1 + ((matrix @ x - target) / scale) ** 2) ** -0.5
        weighted = matrix * weight[:, None]
        x = np.linalg.solve(weighted.T @ matrix, weighted.T @ target)
        x = np.clip(x * base, _RATE_MIN, _RATE_MAX) / base
    return x * base
