"""LightGBM: a model of the median of log (ttft / estimate), and a small one of how far above it the 90th percentile is.

Sizes are bought with the time of every decision: 8 rows through both cost 20 us where they are like those before, 45 where a
processor cannot foretell their branches. Larger trees gain little, since the estimate already carries what trees are bad at.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightgbm
import numpy as np

from prediction.booster import P50_FILE, SPREAD_FILE
from trainer.split import folds
from trainer.zoo.kind import THREADS, Floats, Progress, Training

TREES = 100
LEAVES = 31
SPREAD_TREES = 40
SPREAD_LEAVES = 15

MEDIAN: dict[str, Any] = {"objective": "regression_l1", "num_leaves": LEAVES, "learning_rate": 0.25}
SPREAD: dict[str, Any] = {"objective": "quantile", "alpha": 0.9, "num_leaves": SPREAD_LEAVES, "learning_rate": 0.1}
_COMMON: dict[str, Any] = {"verbose": -1, "num_threads": THREADS, "deterministic": True, "force_row_wise": True}
SAMPLES_A_LEAF = 20
FOLDS = 2
"""What the spread learns from is predicted by models of the other fold."""


def parameters(own: dict[str, Any], *, seed: int, samples: int) -> dict[str, Any]:
    """Leaves of few samples where there are few."""
    return _COMMON | {"seed": seed, "min_data_in_leaf": max(1, min(SAMPLES_A_LEAF, samples // 50))} | own


def booster(
    columns: Floats, target: Floats, own: dict[str, Any], trees: int, *, seed: int, progress: Progress
) -> lightgbm.Booster:
    """columns: (n, any); target: (n,)."""

    def tell(env: Any) -> None:
        progress((env.iteration + 1) / trees)

    data = lightgbm.Dataset(columns, target, free_raw_data=False)
    return lightgbm.train(parameters(own, seed=seed, samples=len(target)), data, trees, callbacks=[tell])


def text(model: lightgbm.Booster) -> bytes:
    return str(model.model_to_string()).encode()


def fit(training: Training, seed: int, progress: Progress) -> dict[str, bytes]:
    fits = FOLDS + 2

    def part(number: int) -> Progress:
        return lambda done: progress((number + done) / fits)

    median = booster(training.columns, training.target, MEDIAN, TREES, seed=seed, progress=part(0))
    above = training.target - _unseen(training, seed, part)
    spread = booster(training.columns, above, SPREAD, SPREAD_TREES, seed=seed, progress=part(FOLDS + 1))
    return {P50_FILE: text(median), SPREAD_FILE: text(spread)}


def _unseen(training: Training, seed: int, part: Callable[[int], Progress]) -> Floats:
    """The median of each sample, by a model that other moments taught: one that has seen a sample is nearer to it than it will
    be to those it has not."""
    fold = folds(training.decided_at, FOLDS)
    found = np.empty(len(training))
    for number in range(FOLDS):
        held, taught = fold == number, fold != number
        if held.any() and taught.any():
            columns, target = training.columns[taught], training.target[taught]
            model = booster(columns, target, MEDIAN, TREES, seed=seed, progress=part(1 + number))
            found[held] = model.predict(training.columns[held], num_threads=THREADS)
    return found
