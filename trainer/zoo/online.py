"""The linear model learned one sample at a time, in the order of time: recursive least squares that forgets.

It is what a control plane that learns online could have known at the end of the training data.
"""

from __future__ import annotations

import numpy as np

from prediction.linear import inputs
from trainer.zoo.kind import Floats, Progress, Training
from trainer.zoo.linear import file_of, standardise

FORGET = 0.9995
"""A sample 1,400 samples ago counts half."""
PRIOR = 1.0
"""Variance of a weight before the first sample."""
TRACE_MAX = 1e4
"""Forgetting without news makes the covariance grow: from here on it is held."""
TELL_EVERY = 500


class OnlineLinear:
    """weights: of standardised inputs, the last one the intercept's."""

    def __init__(self, width: int) -> None:
        self.weights = np.zeros(width + 1)
        self._covariance = np.eye(width + 1) * PRIOR

    def learn(self, standard: Floats, log_ttft: float) -> None:
        """standard: (width,)."""
        row = np.append(standard, 1.0)
        moved = self._covariance @ row
        gain = moved / (FORGET + row @ moved)
        self.weights += gain * (log_ttft - row @ self.weights)
        self._covariance -= np.outer(gain, moved)
        if np.trace(self._covariance) < TRACE_MAX:
            self._covariance /= FORGET


def fit(training: Training, seed: int, progress: Progress) -> dict[str, bytes]:
    del seed  # nothing is drawn
    columns = inputs(training.rows)
    mean, scale = standardise(columns)
    model = OnlineLinear(columns.shape[1])
    for place, (row, log_ttft) in enumerate(zip((columns - mean) / scale, training.log_ttft, strict=True)):
        model.learn(row, float(log_ttft))
        if place % TELL_EVERY == 0:
            progress(place / len(training))
    progress(1.0)
    return file_of(mean, scale, model.weights[:-1], float(model.weights[-1]))
