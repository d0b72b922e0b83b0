"""Other ways to score LightGBM trees, for comparison with the one that serves."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np

from controlplane.predictor import Floats

Predict = Callable[[Floats], Any]


class FlatTrees:
    """All trees as arrays (trees, nodes), walked level by level with numpy. Leaves point at themselves."""

    def __init__(self, text: str) -> None:
        trees = lightgbm.Booster(model_str=text).dump_model()["tree_info"]
        nodes: list[list[tuple[int, float, int, int, float]]] = [_flat(tree["tree_structure"]) for tree in trees]
        width = max(map(len, nodes))
        padded = [tree + [(0, np.inf, 0, 0, 0.0)] * (width - len(tree)) for tree in nodes]
        self._feature, self._left, self._right = (np.array([[node[i] for node in t] for t in padded]) for i in (0, 2, 3))
        self._bound, self._value = (np.array([[node[i] for node in tree] for tree in padded]) for i in (1, 4))
        self._depth = max(_depth(tree["tree_structure"]) for tree in trees)

    def predict(self, rows: Floats) -> Floats:
        trees = np.arange(len(self._feature))[:, None]
        each = np.arange(len(rows))[None, :]
        at = np.zeros((len(self._feature), len(rows)), dtype=np.intp)
        for _ in range(self._depth):
            below = rows[each, self._feature[trees, at]] <= self._bound[trees, at]
            at = np.where(below, self._left[trees, at], self._right[trees, at])
        return np.asarray(self._value[trees, at].sum(axis=0))


def _flat(root: dict[str, Any]) -> list[tuple[int, float, int, int, float]]:
    """(feature, bound, left, right, value) a node; a leaf's children are itself."""
    found: list[tuple[int, float, int, int, float]] = []

    def add(node: dict[str, Any]) -> int:
        at = len(found)
        found.append((0, np.inf, at, at, float(node.get("leaf_value", 0.0))))
        if "split_feature" in node:
            left, right = add(node["left_child"]), add(node["right_child"])
            found[at] = (node["split_feature"], float(node["threshold"]), left, right, 0.0)
        return at

    add(root)
    return found


def _depth(node: dict[str, Any]) -> int:
    return 1 + max(_depth(node["left_child"]), _depth(node["right_child"])) if "split_feature" in node else 0


def treelite(text: str, _width: int) -> Predict:
    import treelite as library

    model = library.frontend.from_lightgbm(lightgbm.Booster(model_str=text))
    return lambda rows: library.gtil.predict(model, rows, nthread=1)


def lleaves(text: str, _width: int) -> Predict:
    import lleaves as library

    with tempfile.TemporaryDirectory(prefix="hw-") as directory:
        path = Path(directory) / "model.txt"
        path.write_text(text)
        model = library.Model(model_file=str(path))
        model.compile()
    return lambda rows: model.predict(rows, n_jobs=1)


def onnx(text: str, width: int) -> Predict:
    import onnxruntime
    from onnxmltools import convert_lightgbm
    from onnxmltools.convert.common.data_types import FloatTensorType

    made = convert_lightgbm(
        lightgbm.Booster(model_str=text), initial_types=[("rows", FloatTensorType([None, width]))], zipmap=False
    )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(made.SerializeToString(), options)
    return lambda rows: session.run(None, {"rows": rows.astype(np.float32)})[0]
