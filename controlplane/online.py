"""Linear models of log TTFT that learn from every request: recursive least squares that forgets. Pure.

`linear_online` predicts from what stands before a request's first token; per-worker differences are the corrections' to learn.
`ZoneModel` is the middle layer of `hierarchical`: running requests and prompt length, learned from that zone alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from contract.features import INDEX, PAIRS_A_TOKEN

Floats = npt.NDArray[np.float64]

FORGET = 0.998
"""A sample 350 samples ago counts half."""
PRIOR_VARIANCE = 1.0
"""Of each weight about its prior, in units of the residuals' variance."""
TRACE_MAX = 1e4
"""Forgetting without news would let the covariance grow without bound."""
SPREAD_WEIGHT = 0.02
SPREAD_START = 0.4
"""Mean |residual| in log seconds, before it is known."""
P90_DEVIATIONS = 1.6
"""Mean absolute deviations from the median to the 90th percentile: 1.28 standard deviations of a normal distribution."""
LOG_BOUNDS = (math.log(1e-3), math.log(3_600.0))

_UNCACHED, _PREFILL, _PAIRS = INDEX["uncached_tokens"], INDEX["prefill_tokens"], INDEX["prefill_pairs"]
_ACTIVE, _QUEUED, _RUNNING = INDEX["active"], INDEX["no_first_byte"], INDEX["running"]
_INPUT = INDEX["input_tokens"]


class RecursiveLeastSquares:
    """target ~ row . weights. prior: the weights before the first sample, (k,)."""

    def __init__(self, prior: list[float], *, forget: float = FORGET) -> None:
        self.weights = np.array(prior, dtype=np.float64)
        self._covariance = np.eye(len(prior)) * PRIOR_VARIANCE
        self._forget = forget

    def learn(self, row: Floats, target: float) -> float:
        """row: (k,). Returns the error before it was learned."""
        moved = self._covariance @ row
        gain = moved / (self._forget + row @ moved)
        error = target - float(row @ self.weights)
        self.weights += gain * error
        self._covariance -= np.outer(gain, moved)
        if np.trace(self._covariance) < TRACE_MAX:
            self._covariance /= self._forget
        return error


class OnlineLinear:
    """A predictor (prediction.Predictor) over a few columns made of the feature rows."""

    def __init__(self, columns: Callable[[Floats], Floats], prior: list[float]) -> None:
        """columns: feature rows (n, len(FEATURES)) to (n, k), the last one 1; prior: (k,) weights of log seconds."""
        self._columns = columns
        self._squares = RecursiveLeastSquares(prior)
        self.plain_weights = list(prior)
        """As plain numbers."""
        self.spread = SPREAD_START
        """Mean |residual|, log seconds."""
        self.samples = 0

    @property
    def weights(self) -> Floats:
        return self._squares.weights

    @property
    def steady(self) -> bool:
        """Whether its predictions are numbers, whatever it is asked."""
        return math.isfinite(sum(self.plain_weights))

    @property
    def p90_ratio(self) -> float:
        """Of the 90th percentile to the median, of all its predictions."""
        return math.exp(P90_DEVIATIONS * self.spread)

    def predict(self, rows: Floats) -> tuple[Floats, Floats]:
        """As prediction.Predictor."""
        log_p50 = np.clip(self._columns(rows) @ self._squares.weights, *LOG_BOUNDS)
        p50 = np.exp(log_p50)
        return p50, p50 * self.p90_ratio

    def learn(self, row: Floats, ttft_s: float) -> None:
        """row: (len(FEATURES),), as it was when the request was placed."""
        if not 0.0 < ttft_s < math.inf:
            return
        error = self._squares.learn(self._columns(row[None, :])[0], math.log(ttft_s))
        self.plain_weights = self._squares.weights.tolist()
        self.samples += 1
        self.spread += max(SPREAD_WEIGHT, 1.0 / (self.samples + 10)) * (abs(error) - self.spread)


def work_columns(rows: Floats) -> Floats:
    """log1p of: prefill work ahead and own, this prompt's own share, requests that decode there; and 1."""
    uncached = rows[:, _UNCACHED]
    own = uncached + uncached * (rows[:, _INPUT] - 0.5 * uncached) / PAIRS_A_TOKEN
    out = np.empty((len(rows), 4))
    out[:, 0] = own + rows[:, _PREFILL] + rows[:, _PAIRS] / PAIRS_A_TOKEN
    out[:, 1] = own
    out[:, 2] = rows[:, _ACTIVE] - rows[:, _QUEUED]
    np.log1p(np.maximum(out[:, :3], 0.0), out=out[:, :3])
    out[:, 3] = 1.0
    return out


def running_columns(rows: Floats) -> Floats:
    """log1p of running requests and of prompt tokens; and 1."""
    out = np.empty((len(rows), 3))
    out[:, 0] = rows[:, _RUNNING]
    out[:, 1] = rows[:, _INPUT]
    np.log1p(np.maximum(out[:, :2], 0.0), out=out[:, :2])
    out[:, 2] = 1.0
    return out


WORK_PRIOR = [0.9, 0.05, 0.1, math.log(1e-4) * 0.9]
"""About 10,000 tokens a second, whatever is queued, and a little for who decodes there."""
RUNNING_PRIOR = [0.3, 0.3, -1.5]
"""More running, longer prompt: later. Of little weight: no decision is made by it before it has learned."""
