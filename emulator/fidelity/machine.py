"""The machine under a recording, as far as the recording tells: it was shared, and its speed is no property of the engine.

Three things slow steps down, and none is the emulator's to predict:

* what other processes took of the two cores. Each row says how much on average over its request's life; many overlapping
  requests give that as a function of time (non-negative least squares over bins, lightly smoothed). A curve says what it costs.
* what cannot be seen from inside (neighbours of a virtual machine, clock, temperature): one factor a run.
* heavy contention does not slow every step, it stops the engine for whole time slices: beyond PACE_MAX the recorded median gap
  between tokens hardly rises while their mean multiplies. A `Timeline` has such stops, a slowness has not.

Rates are engine seconds a second: 1 on the machine that the preset describes, 0 while it is stopped.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from emulator.fidelity.recording import Floats, Ints, Recording

BIN_S = 0.25
KNOTS_CPU = (0.1, 0.5, 0.9, 1.3, 1.6, 1.8)
"""Cores used by others where the curve is given; below the first it is 1."""
PACE_MAX = 1.4
"""A step that is not stopped takes at most this many times as long. With STOP_S: least error of the median gap."""
STOP_S = 0.05
_STOPPED = 1e-9
_CPU_MAX = 1.95
_SAMPLE_S = 0.05
"""Half of the recorder's sampling interval: its averages reach that far beyond a request."""
_SMOOTH = 0.25
_SWEEPS = 200


@dataclass(frozen=True, slots=True)
class Contention:
    """Cores that others used during one run, in bins of BIN_S from `begin_s` on."""

    begin_s: float
    cpu: Floats


def contention(recording: Recording) -> list[Contention]:
    """One for each run."""
    return [_of_run(recording, np.flatnonzero(recording.runs == number)) for number in range(recording.num_runs)]


def _of_run(recording: Recording, rows: Ints) -> Contention:
    origin = float(recording.send_s[rows].min())
    begin = recording.send_s[rows] - origin - _SAMPLE_S
    end = begin + recording.e2e_s[rows] + 2 * _SAMPLE_S
    num_bins = int(end.max() / BIN_S) + 1
    share = overlap(begin, end, num_bins)
    share /= share.sum(axis=1, keepdims=True)
    weight = np.sqrt(np.clip(end - begin, _SAMPLE_S, 2.0))
    smooth = _SMOOTH * np.diff(np.eye(num_bins), axis=0)
    matrix = np.vstack([share * weight[:, None], smooth])
    wanted = np.concatenate([recording.other_cpu[rows] * weight, np.zeros(len(smooth))])
    return Contention(origin, np.minimum(_non_negative(matrix, wanted), _CPU_MAX))


def overlap(begin_s: Floats, end_s: Floats, num_bins: int) -> Floats:
    """Seconds that each interval (rows) spends in each bin of a run (columns). Times since the run's beginning."""
    bins = np.arange(num_bins) * BIN_S
    shared: Floats = np.maximum(np.minimum(bins + BIN_S, end_s[:, None]) - np.maximum(bins, begin_s[:, None]), 0.0)
    return shared


def _non_negative(matrix: Floats, wanted: Floats) -> Floats:
    """Least squares with x >= 0, by coordinate descent."""
    gram, target = matrix.T @ matrix, matrix.T @ wanted
    x = np.full(len(target), max(0.0, float(np.mean(wanted))))
    for _ in range(_SWEEPS):
        for index in range(len(x)):
            x[index] = max(0.0, x[index] + (target[index] - gram[index] @ x) / gram[index, index])
    return x


def rates_of(runs: Sequence[Contention], speeds: Floats, curve: Floats) -> list[Floats]:
    """By run and bin. speeds: by run, how many times as long every step takes; curve: the same at KNOTS_CPU[1:]."""
    logs = np.concatenate([[0.0], np.log(curve)])
    return [np.exp(-np.interp(run.cpu, KNOTS_CPU, logs)) / speed for run, speed in zip(runs, speeds, strict=True)]


class Timeline:
    """Turns engine seconds into recorded seconds. Asked in the order of time."""

    def __init__(self, times: Sequence[float], rates: Sequence[float]) -> None:
        """Each rate holds from its time, ascending, to the next one; the last for ever."""
        self._times, self._rates = list(times), list(rates)
        self._known = np.array(self._times)
        self._done = np.concatenate([[0.0], np.cumsum(np.diff(self._known) * self._rates[:-1])])
        self._at = 0

    def end_s(self, begin_s: float, work_s: float) -> float:
        """When `work_s` of the preset's machine, begun at `begin_s`, is done."""
        times, rates, at = self._times, self._rates, self._at
        last = len(times) - 1
        while at < last and times[at + 1] <= begin_s:
            at += 1
        self._at = at
        now = begin_s
        while at < last and (times[at + 1] - now) * rates[at] < work_s:
            work_s -= (times[at + 1] - now) * rates[at]
            at += 1
            now = times[at]
        return float(now + work_s / rates[at])

    def work_s(self, times: Floats) -> Floats:
        """Engine seconds that could have been done until each of these times."""
        at = np.clip(np.searchsorted(self._known, times, side="right") - 1, 0, len(self._known) - 1)
        done: Floats = self._done[at] + (times - self._known[at]) * np.array(self._rates)[at]
        return done


def slowness(runs: Sequence[Contention], rates: Sequence[Floats]) -> Timeline:
    """Every step of a bin takes as many times as long."""
    times, values = [], []
    for run, by_bin in _ordered(runs, rates):
        times.extend((run.begin_s + BIN_S * np.arange(len(by_bin))).tolist())
        values.extend(by_bin.tolist())
    return Timeline(times, values)


def stopping(runs: Sequence[Contention], rates: Sequence[Floats], *, seed: int = 0) -> Timeline:
    """Steps take at most PACE_MAX times as long; what is slower than that was stopped, STOP_S at a time. seed: of when."""
    rng = random.Random(seed)
    times: list[float] = []
    values: list[float] = []
    for run, by_bin in _ordered(runs, rates):
        for index, rate in enumerate(by_bin.tolist()):
            begin = run.begin_s + BIN_S * index
            going = min(1.0, rate * PACE_MAX)
            if going == 1.0:
                times.append(begin)
                values.append(rate)
                continue
            count = max(1, round(BIN_S * (1 - going) / STOP_S))
            for number in range(count):
                at, length = begin + BIN_S * number / count, BIN_S / count
                first, then = (1 / PACE_MAX, _STOPPED), (_STOPPED, 1 / PACE_MAX)
                values.extend(first if (goes_first := rng.random() < 0.5) else then)
                times.extend((at, at + length * (going if goes_first else 1 - going)))
        # Whatever is left when the recorded run was over goes on as it did last, without stops.
        times.append(run.begin_s + BIN_S * len(by_bin))
        values.append(float(by_bin[-1]))
    return Timeline(times, values)


def _ordered(runs: Sequence[Contention], rates: Sequence[Floats]) -> list[tuple[Contention, Floats]]:
    return sorted(zip(runs, rates, strict=True), key=lambda pair: pair[0].begin_s)
