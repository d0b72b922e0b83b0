"""How far a model is off at each worker, lately: one factor a worker, learned from every first token.

The residual of a request is log(TTFT / predicted median). Two exponentially weighted means of it run per worker: a slow one,
steady enough to rank by, and a fast one. Where they stand further apart than the residuals' own noise explains, the worker
has changed (a throttled GPU, a neighbour), and the slow mean is moved to the fast one at once: a worker that became 2.5 times
slower is corrected within a handful of its requests, and one that did not is not shaken by each of them. A single residual
counts for at most STEP_MAX, so that one request that was preempted teaches little.

A worker without requests of its own starts from the prior: the mean of the workers of its accelerator and model, else of the
fleet. Another run of the engine, or another address, starts again. Pure; one thread.
"""

from __future__ import annotations

import math
from collections.abc import Hashable

FACTOR_MAX = 8.0
"""And 1 / FACTOR_MAX: a model further off than that has to be replaced, not corrected."""
STEP_MAX = math.log(4.0)
"""Of one residual from the mean it moves."""
SLOW_WEIGHT = 0.05
FAST_WEIGHT = 0.3
"""Of the newest residual. The fast mean has gone 83 % of the way after five."""
APART_MAX = 1.5
"""Fast from slow mean, in mean absolute deviations of the residuals, before the slow one is moved."""
SPREAD_START = 0.3
"""Mean absolute deviation of the residuals, before it is known."""
SPREAD_MIN = 0.05
PRIOR_SAMPLES = 2
"""The prior counts as many of a worker's own residuals."""
SAMPLES_MIN = 4
"""Of its own, before a worker counts in the priors of others."""

_BOUND = math.log(FACTOR_MAX)


class Correction:
    """Of one worker. All in log seconds; `log_factor` is what is added to log predictions, `factor` what seconds are times."""

    __slots__ = ("_fast", "_slow", "_spread", "error", "factor", "log_factor", "samples")

    def __init__(self, prior: float = 0.0) -> None:
        self._slow = self._fast = prior
        self._spread = SPREAD_START
        self.samples = 0
        self.error = 0.0
        """Mean of |log(TTFT / corrected prediction)|; 0 before the first."""
        self._set(prior)

    @property
    def spread(self) -> float:
        """Mean absolute deviation of the residuals from their mean."""
        return self._spread

    def add(self, residual: float) -> None:
        """log(TTFT / the model's own median) of one request. Not finite: ignored."""
        if not math.isfinite(residual):
            return
        self.samples += 1
        weight = max(SLOW_WEIGHT, 1.0 / (PRIOR_SAMPLES + self.samples))
        off = residual - self.log_factor
        self.error += max(SLOW_WEIGHT, 1.0 / self.samples) * (abs(off) - self.error)
        deviation = min(abs(residual - self._fast), STEP_MAX)
        self._fast += max(FAST_WEIGHT, weight) * _step(residual - self._fast)
        self._slow += weight * _step(residual - self._slow)
        if abs(self._fast - self._slow) > APART_MAX * max(self._spread, SPREAD_MIN):
            self._slow = self._fast
        self._spread += weight * (deviation - self._spread)
        self._set(self._slow)

    def _set(self, log_factor: float) -> None:
        self.log_factor = min(_BOUND, max(-_BOUND, log_factor))
        self.factor = math.exp(self.log_factor)


def _step(difference: float) -> float:
    return min(STEP_MAX, max(-STEP_MAX, difference))


class Corrections:
    """By endpoint (any key that identifies one). Its `run` is whatever changes when it is no longer the same (epoch, URL);
    its `kind` is what makes two of them alike (accelerator, model)."""

    def __init__(self) -> None:
        self._known: dict[Hashable, tuple[Hashable, Hashable, Correction]] = {}

    def of(self, key: Hashable, run: Hashable, kind: Hashable) -> Correction:
        """The living one, made from the prior where there is none of this run."""
        found = self._known.get(key)
        if found is not None and found[0] == run:
            return found[2]
        self.forget(key)
        made = Correction(self.prior(kind))
        self._known[key] = run, kind, made
        return made

    def prior(self, kind: Hashable) -> float:
        """Mean log factor of those of this kind, of all where there is none, 0 where nobody knows."""
        known = [(k, one.log_factor) for _, k, one in self._known.values() if one.samples >= SAMPLES_MIN]
        alike = [log_factor for other, log_factor in known if other == kind]
        means = alike or [log_factor for _, log_factor in known]
        return sum(means) / len(means) if means else 0.0

    def forget(self, key: Hashable) -> None:
        self._known.pop(key, None)

    def clear(self) -> None:
        """Another model: what was learned of the one before says nothing."""
        self._known.clear()
