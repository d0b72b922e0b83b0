"""Decision trees as flat arrays: one tree, a forest's mean, or a tree distilled from a larger model.

A node i goes to left[i] where column feature[i] <= threshold[i], else to right[i]; a leaf's children are itself. Children
come after their parents, so that every walk ends. Leaves hold the median and the 90th percentile of log (seconds /
estimate) of what reached them in training.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from prediction import derive
from prediction.arrays import pack, unpack
from prediction.bundle import Bundle
from prediction.errors import BundleError

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int32]

FILE = "trees.npz"
_FLOAT32_MAX = float(np.finfo(np.float32).max)


@dataclass(frozen=True, slots=True)
class Trees:
    """feature, left, right: (nodes,) int32; threshold, p50, p90: (nodes,) float64; roots: (trees,) int32, one a tree."""

    feature: Ints
    threshold: Floats
    left: Ints
    right: Ints
    p50: Floats
    p90: Floats
    roots: Ints

    def encode(self) -> bytes:
        return pack(**{name: getattr(self, name) for name in self.__slots__})

    def leaves(self, columns: Floats) -> Ints:
        """columns: (n, len(derive.COLUMNS)). The leaf each row ends in, (n, trees)."""
        columns = np.minimum(columns, _FLOAT32_MAX).astype(np.float32)  # as they were when the thresholds were found
        rows = np.arange(len(columns))[:, None]
        at = np.broadcast_to(self.roots, (len(columns), len(self.roots)))
        while True:
            goes_left = columns[rows, self.feature[at]] <= self.threshold[at]
            below = np.where(goes_left, self.left[at], self.right[at])
            if np.array_equal(below, at):
                return below
            at = below

    def log_quantiles(self, rows: Floats) -> tuple[Floats, Floats]:
        columns = derive.inputs(rows)
        start = derive.log_estimate(columns)
        leaves = self.leaves(columns)
        return start + self.p50[leaves].mean(axis=1), start + self.p90[leaves].mean(axis=1)


def join(trees: list[Trees]) -> Trees:
    """One forest of them."""
    shifts = np.cumsum([0, *(len(tree.feature) for tree in trees[:-1])]).astype(np.int32)
    moved: dict[str, Any] = {
        name: np.concatenate([getattr(tree, name) + shift for tree, shift in zip(trees, shifts, strict=True)])
        for name in ("left", "right", "roots")
    }
    kept: dict[str, Any] = {
        name: np.concatenate([getattr(tree, name) for tree in trees]) for name in ("feature", "threshold", "p50", "p90")
    }
    return Trees(**kept, **moved)


def load(bundle: Bundle) -> Trees:
    """BundleError: no such file, or arrays that are no trees."""
    found = unpack(bundle, FILE, *Trees.__slots__)
    nodes = len(found["feature"])
    indices: dict[str, Any] = {name: found[name].astype(np.int32) for name in ("feature", "left", "right", "roots")}
    floats: dict[str, Any] = {name: found[name].astype(np.float64) for name in ("threshold", "p50", "p90")}
    places = np.arange(nodes)
    whole = (
        nodes > 0
        and len(indices["roots"]) > 0
        and all(array.shape == (nodes,) for name, array in (indices | floats).items() if name != "roots")
        and all(np.all((array >= 0) & (array < nodes)) for name, array in indices.items() if name != "feature")
        and np.all((indices["feature"] >= 0) & (indices["feature"] < len(derive.COLUMNS)))
        and np.all((indices["left"] > places) == (indices["right"] > places))
        and np.all(indices["left"] >= places)
        and np.all(indices["right"] >= places)
    )
    if not whole:
        raise BundleError(f"model {bundle.manifest.model_id}: {FILE} holds no trees over {len(derive.COLUMNS)} columns")
    return Trees(**indices, **floats)
