"""Least squares of log TTFT over log1p of the features: the plainest model, what every other has to beat."""

from __future__ import annotations

import msgspec
import numpy as np

from prediction.linear import FILE, LinearFile, inputs
from trainer.zoo.kind import Floats, Progress, Training

RIDGE = 1e-3
"""Of the mean square: features that repeat each other must not get weights of opposite signs without bound."""


def standardise(columns: Floats) -> tuple[Floats, Floats]:
    """Mean and scale of each column; constants have scale 1."""
    scale = columns.std(axis=0)
    return columns.mean(axis=0), np.where(scale > 1e-9, scale, 1.0)


def file_of(mean: Floats, scale: Floats, weights: Floats, intercept: float) -> dict[str, bytes]:
    """One line for both quantiles: the calibration lifts the upper one."""
    file = LinearFile(
        mean=mean.tolist(),
        scale=scale.tolist(),
        p50=weights.tolist(),
        p50_intercept=intercept,
        p90=weights.tolist(),
        p90_intercept=intercept,
    )
    return {FILE: msgspec.json.encode(file)}


def fit(training: Training, seed: int, progress: Progress) -> dict[str, bytes]:
    del seed  # nothing is drawn
    columns = inputs(training.rows)
    mean, scale = standardise(columns)
    standard = (columns - mean) / scale
    intercept = float(training.log_ttft.mean())
    gram = standard.T @ standard + RIDGE * len(standard) * np.eye(standard.shape[1])
    weights: Floats = np.linalg.solve(gram, standard.T @ (training.log_ttft - intercept)).astype(np.float64)
    progress(1.0)
    return file_of(mean, scale, weights, intercept)
