"""The machine under a recording, as far as the recording tells: it was shared, and its speed is no property of the engine.

Two things slow every step down, and neither is the emulator's to predict:

* what other processes took of the two cores. Each row says how much on average over its request's life; many overlapping
  requests give that as a function of time (non-negative least squares over bins, lightly smoothed). `curve` says what it costs.
* what cannot be seen from inside (neighbours of a virtual machine, clock, temperature): one factor a run.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from emulator.fidelity.recording import Floats, Ints, Recording

BIN_S = 0.25
KNOTS_CPU = (0.1, 0.5, 0.9, 1.3, 1.6, 1.8)
"""Cores used by others where the curve is given; below the first it is 1."""
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
    bins = np.arange(int(end.max() / BIN_S) + 1) * BIN_S
    cover = np.minimum(bins + BIN_S, end[:, None]) - np.maximum(bins, begin[:, None])
    share = np.maximum(cover, 0.0)
    share /= share.sum(axis=1, keepdims=True)
    weight = np.sqrt(np.clip(end - begin, _SAMPLE_S, 2.0))
    smooth = _SMOOTH * np.diff(np.eye(len(bins)), axis=0)
    matrix = np.vstack([share * weight[:, None], smooth])
    wanted = np.concatenate([recording.other_cpu[rows] * weight, np.zeros(len(smooth))])
    return Contention(origin, np.minimum(_non_negative(matrix, wanted), _CPU_MAX))


def _non_negative(matrix: Floats, wanted: Floats) -> Floats:
    """Least squares with x >= 0, by coordinate descent."""
    gram, target = matrix.T @ matrix, matrix.T @ wanted
    x = np.full(len(target), max(0.0, float(np.mean(wanted))))
    for _ in range(_SWEEPS):
        for index in range(len(x)):
            x[index] = max(0.0, x[index] + (target[index] - gram[index] @ x) / gram[index, index])
    return x


class Machine:
    """Turns engine seconds into recorded seconds. Asked in the order of time."""

    def __init__(self, runs: list[Contention], speeds: Floats, curve: Floats) -> None:
        """speeds: by run, how many times as long every step takes; curve: the same at KNOTS_CPU[1:]."""
        logs = np.concatenate([[0.0], np.log(curve)])
        times: list[float] = []
        rates: list[float] = []
        for run, speed in zip(runs, speeds, strict=True):
            slow = speed * np.exp(np.interp(run.cpu, KNOTS_CPU, logs))
            times.extend(run.begin_s + BIN_S * np.arange(len(run.cpu)))
            rates.extend(1.0 / slow)
        order = np.argsort(times, kind="stable")
        self._times = np.array(times)[order].tolist()
        self._rates = np.array(rates)[order].tolist()
        self._at = 0

    def end_s(self, begin_s: float, work_s: float) -> float:
        """When `work_s` of an undisturbed machine, begun at `begin_s`, is done."""
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
