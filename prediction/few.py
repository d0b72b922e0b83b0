"""A few rows at a time, without numpy: for the handful of candidates of a decision, what an array operation costs whatever its
length costs more than the arithmetic.

The caller writes rows of derive.COLUMNS into `Few.rows`, and says of each where the model starts. Both boosters are one model
of two outputs here, so that one call of the library answers. Predictions are those of `Calibrated.predict`, but for the last
bits of logarithms.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Sequence
from math import exp
from typing import TYPE_CHECKING

from prediction import zones
from prediction.calibration import LOG_TTFT_BOUNDS, Calibration
from prediction.errors import BundleError

if TYPE_CHECKING:
    from prediction.booster import Booster

_FLOAT64 = 1
_ROW_MAJOR = 1
_PREDICT_NORMAL = 0
_ALL_ITERATIONS = -1
_PARAMETERS = b"num_threads=1"

_FIRST_TREE = "\nTree=0\n"
_LAST_TREE = "\nend of trees"
_CHANGED = ("num_class=", "num_tree_per_iteration=", "objective=", "tree_sizes=")
"""Lines of a model's head that are others where there are two outputs. Without an objective answers are as the trees add up."""
_NO_TREE = (
    "num_leaves=1\nnum_cat=0\nsplit_feature=\nsplit_gain=\nthreshold=\ndecision_type=\nleft_child=\nright_child=\n"
    "leaf_value=0\nleaf_weight=\nleaf_count=\ninternal_value=\ninternal_weight=\ninternal_count=\nis_linear=0\nshrinkage=1"
)
_MEDIUM, _HIGH = (float(edge) for edge in zones.LOG_EDGES)


def side_by_side(first: str, second: str) -> str:
    """Two LightGBM models of one output over the same columns, as one of two outputs. BundleError: not such texts."""
    head, trees = _parts(first)
    _, others = _parts(second)
    count = max(len(trees), len(others))
    pairs = zip(_padded(trees, count), _padded(others, count), strict=True)
    every = [tree for pair in pairs for tree in pair]
    lines = [line for line in head.split("\n") if not line.startswith(_CHANGED)]
    lines[1:1] = ["num_class=2", "num_tree_per_iteration=2"]
    numbered = "\n\n".join(f"Tree={number}\n{tree}" for number, tree in enumerate(every))
    return "\n".join(lines) + f"\n\n{numbered}\n\nend of trees\n\nparameters:\nend of parameters\n"


def _parts(text: str) -> tuple[str, list[str]]:
    """Head and trees, without their numbers."""
    head, first, rest = text.partition(_FIRST_TREE)
    body, last, _ = rest.partition(_LAST_TREE)
    if not first or not last:
        raise BundleError("not a LightGBM model text")
    return head, [tree.strip("\n") for tree in re.split(r"\nTree=\d+\n", body)]


def _padded(trees: list[str], count: int) -> list[str]:
    return trees + [_NO_TREE] * (count - len(trees))


class Few:
    """At most `most` rows a call, in memory of its own; one thread."""

    __slots__ = (
        *("_answers", "_answers_at", "_booster", "_columns", "_counts"),
        *("_data", "_length", "_offsets", "_predict", "_unknown", "rows"),
    )

    def __init__(self, booster: Booster, calibration: Calibration, most: int) -> None:
        """booster: of two outputs, see `side_by_side`."""
        self.rows = bytearray(8 * booster.columns * most)
        """C-contiguous float64 (most, len(derive.COLUMNS)): whoever asks writes there."""
        self._booster = booster  # whose handle lives as long as this
        self._offsets, self._unknown = calibration.offsets, calibration.unknown
        self._predict = booster.library.LGBM_BoosterPredictForMat
        self._data = ctypes.byref((ctypes.c_char * len(self.rows)).from_buffer(self.rows))
        self._answers = (ctypes.c_double * (2 * most))()
        self._answers_at = ctypes.byref(self._answers)
        self._length = ctypes.byref(ctypes.c_int64())
        self._counts = [ctypes.c_int32(count) for count in range(most + 1)]
        self._columns = ctypes.c_int32(booster.columns)

    def predict(self, starts: Sequence[float], unknown: Sequence[bool]) -> tuple[list[float], list[float]]:
        """Of the first len(starts) rows. starts: log of the estimate (derive.log_estimate); unknown: whose endpoint's speed is
        not known. Seconds, as Predictor.predict."""
        count = len(starts)
        code = self._predict(
            *(self._booster.handle, self._data, _FLOAT64, self._counts[count], self._columns, _ROW_MAJOR),
            *(_PREDICT_NORMAL, 0, _ALL_ITERATIONS, _PARAMETERS, self._length, self._answers_at),
        )
        if code:
            self._booster.check(code)
        raw = self._answers[: 2 * count]
        low, high = LOG_TTFT_BOUNDS
        offsets, beyond = self._offsets, self._unknown
        p50_s, p90_s = [], []
        at = 0
        for start, strange in zip(starts, unknown, strict=True):
            middle, spread = raw[at] + start, raw[at + 1]
            at += 2
            upper = middle + spread if spread > 0.0 else middle
            if middle < low:
                middle = low
            elif middle > high:
                middle = high
            upper += offsets[0 if middle < _MEDIUM else 1 if middle < _HIGH else 2]
            if upper < middle:
                upper = middle
            if strange and beyond > 0.0 and upper < middle + beyond:
                upper = middle + beyond
            p50_s.append(exp(middle))
            p90_s.append(exp(upper if upper < high else high))
        return p50_s, p90_s
