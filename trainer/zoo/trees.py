"""CART and random forests of scikit-learn, exported as flat arrays with two quantiles a leaf."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.ensemble import RandomForestRegressor
from sklearn.tree import DecisionTreeRegressor

from prediction.tree import FILE, Trees, join
from trainer.zoo.kind import THREADS, Floats, Progress, Training

LEAF_SAMPLES_MIN = 10
TREE_LEAVES = 512
FOREST_TREES = 40
FOREST_LEAVES = 512
FOREST_SHARE = 0.5
"""Of the columns, looked at for each split."""


def flat(tree: Any, leaves: npt.NDArray[np.intp], target: Floats, *, middle: Floats | None = None) -> Trees:
    """tree: a fitted sklearn `tree_`; leaves: (n,) where each sample ends; target: (n,) what the leaves' quantiles are of.

    middle: (n,) what their medians are of instead, where another model teaches.
    sklearn numbers nodes depth first, so children come after their parents.
    """
    count = tree.node_count
    own = np.arange(count, dtype=np.int32)
    is_leaf = tree.children_left < 0
    p50, p90 = np.zeros(count), np.zeros(count)
    middle = target if middle is None else middle
    order = np.argsort(leaves, kind="stable")
    found, begins = np.unique(leaves[order], return_index=True)
    for leaf, samples in zip(found, np.split(order, begins[1:]), strict=True):
        p50[leaf] = np.median(middle[samples])
        p90[leaf] = np.quantile(target[samples], 0.9)
    return Trees(
        feature=np.where(is_leaf, 0, tree.feature).astype(np.int32),
        threshold=np.where(is_leaf, 0.0, tree.threshold).astype(np.float64),
        left=np.where(is_leaf, own, tree.children_left).astype(np.int32),
        right=np.where(is_leaf, own, tree.children_right).astype(np.int32),
        p50=p50,
        p90=p90,
        roots=np.zeros(1, dtype=np.int32),
    )


def fit_tree(training: Training, seed: int, progress: Progress) -> dict[str, bytes]:
    model = DecisionTreeRegressor(max_leaf_nodes=TREE_LEAVES, min_samples_leaf=_leaf_min(training), random_state=seed)
    model.fit(training.columns, training.target)
    progress(0.8)
    trees = flat(model.tree_, model.apply(training.columns), training.target)
    progress(1.0)
    return {FILE: trees.encode()}


def fit_forest(training: Training, seed: int, progress: Progress) -> dict[str, bytes]:
    model = RandomForestRegressor(
        n_estimators=FOREST_TREES,
        max_leaf_nodes=FOREST_LEAVES,
        min_samples_leaf=_leaf_min(training),
        max_features=FOREST_SHARE,
        n_jobs=THREADS,
        random_state=seed,
    )
    model.fit(training.columns, training.target)
    progress(0.8)
    ends = model.apply(training.columns)
    trees = [flat(one.tree_, ends[:, place], training.target) for place, one in enumerate(model.estimators_)]
    progress(1.0)
    return {FILE: join(trees).encode()}


def _leaf_min(training: Training) -> int:
    return max(1, min(LEAF_SAMPLES_MIN, len(training) // 50))
