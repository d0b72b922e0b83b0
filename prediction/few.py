"""A few rows at a time, without numpy: for the handful of candidates of a decision, what an array operation costs whatever its
length costs more than the arithmetic.

The caller writes rows of derive.COLUMNS into memory that is there for them, and says of each where the model starts.
Predictions are those of `Calibrated.predict`, but for the last bits of logarithms.

Few      all rows in one call of the library: both boosters are one model of two outputs here
Single   row by row, and of each no more than is asked for: what a call costs whatever its length is a tenth of that
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable, Sequence
from functools import partial
from math import exp, inf
from typing import TYPE_CHECKING

from prediction import zones
from prediction.calibration import LOG_TTFT_BOUNDS, Calibration
from prediction.errors import BundleError

if TYPE_CHECKING:
    from prediction._trees import Trees
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
_LEAST, _MOST = LOG_TTFT_BOUNDS


def side_by_side(first: str, second: str) -> str:
    """Two LightGBM models of one output over the same columns, as one of two outputs. BundleError: not such texts."""
    head, trees = parts(first)
    _, others = parts(second)
    count = max(len(trees), len(others))
    pairs = zip(_padded(trees, count), _padded(others, count), strict=True)
    every = [tree for pair in pairs for tree in pair]
    lines = [line for line in head.split("\n") if not line.startswith(_CHANGED)]
    lines[1:1] = ["num_class=2", "num_tree_per_iteration=2"]
    numbered = "\n\n".join(f"Tree={number}\n{tree}" for number, tree in enumerate(every))
    return "\n".join(lines) + f"\n\n{numbered}\n\nend of trees\n\nparameters:\nend of parameters\n"


def most(text: str) -> float:
    """The most that a LightGBM model of one output can say of any row: all of its trees at their highest leaves. Infinity where
    leaves are more than numbers."""
    if "\nis_linear=1" in text:
        return inf
    return sum(max(map(float, leaves.split())) for leaves in re.findall(r"^leaf_value=(.+)$", text, re.MULTILINE))


def parts(text: str) -> tuple[str, list[str]]:
    """Head and trees, without their numbers."""
    head, first, rest = text.partition(_FIRST_TREE)
    body, last, _ = rest.partition(_LAST_TREE)
    if not first or not last:
        raise BundleError("not a LightGBM model text")
    return head, [tree.strip("\n") for tree in re.split(r"\nTree=\d+\n", body)]


def _padded(trees: list[str], count: int) -> list[str]:
    return trees + [_NO_TREE] * (count - len(trees))


def cut(middle: float) -> float:
    """Log seconds to what is served."""
    return _LEAST if middle < _LEAST else _MOST if middle > _MOST else middle


def _upper(middle: float, spread: float, offsets: Sequence[float], beyond: float) -> float:
    """The p90, log seconds. middle: not cut; beyond: how far it is above the median at least."""
    upper = middle + spread if spread > 0.0 else middle
    middle = cut(middle)
    upper += offsets[0 if middle < _MEDIUM else 1 if middle < _HIGH else 2]
    if upper < middle + beyond:
        upper = middle + beyond
    return upper if upper < _MOST else _MOST


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
        offsets, beyond = self._offsets, self._unknown
        p50_s, p90_s = [], []
        at = 0
        for start, strange in zip(starts, unknown, strict=True):
            middle = raw[at] + start
            p50_s.append(exp(cut(middle)))
            p90_s.append(exp(_upper(middle, raw[at + 1], offsets, beyond if strange else 0.0)))
            at += 2
        return p50_s, p90_s


class Single:
    """One row a call, of at most `most` in memory of its own; one thread."""

    __slots__ = ("_above", "_offsets", "_ways", "asks", "beyond", "highest", "rows", "widest")

    def __init__(
        self,
        median: Booster,
        spread: Booster,
        calibration: Calibration,
        most: int,
        bounds: tuple[float, float],
        trees: tuple[Trees | None, Trees | None] = (None, None),
    ) -> None:
        """bounds: what the boosters can say at most; trees: the same models for compiled code. BundleError: there are none, and
        the library does not do that."""
        self.highest = bounds[0]
        """What a median can be above where the model starts, at most, log."""
        self.widest = max(0.0, bounds[1]) + max(calibration.offsets)
        """How far a p90 can be above its median at most where the endpoint's speed is known, log: by the leaves themselves."""
        self.beyond = calibration.unknown
        """How far the p90 is above the median where an endpoint's speed is not known, at least and as far as is served, log."""
        self.rows = bytearray(8 * median.columns * most)
        """As those of Few."""
        self._offsets = calibration.offsets
        self._ways = [
            _Way(booster, self.rows) if walked is None else walked
            for booster, walked in zip((median, spread), trees, strict=True)
        ]
        self.asks, self._above = ([way.ask(self.rows, place) for place in range(most)] for way in self._ways)
        """asks: for the median of each row, what to call: how far it is above where the model starts. BundleError."""

    def median(self, place: int, start: float) -> float:
        """Log seconds, not cut to what is served (see `cut`). start: log of the estimate."""
        return self.asks[place]() + start

    def p90(self, place: int, middle: float, *, unknown: bool) -> float:
        """Log seconds. middle: as `median` said; unknown: whether the endpoint's speed is not known."""
        return _upper(middle, self._above[place](), self._offsets, self.beyond if unknown else 0.0)


class _Way:
    """What the library remembers of a booster whose rows come one by one."""

    __slots__ = ("_answer", "_booster", "_free", "_length", "_memory", "config")

    def __init__(self, booster: Booster, rows: bytearray) -> None:
        """BundleError: the library does not do that."""
        self._booster = booster  # whose handle lives as long as this
        self._answer = ctypes.c_double()
        self._length = ctypes.byref(ctypes.c_int64())
        self._memory = (ctypes.c_char * len(rows)).from_buffer(rows)
        self.config = ctypes.c_void_p()
        self._free = booster.library.LGBM_FastConfigFree
        booster.check(
            booster.library.LGBM_BoosterPredictForMatSingleRowFastInit(
                *(booster.handle, _PREDICT_NORMAL, 0, _ALL_ITERATIONS, _FLOAT64),
                *(ctypes.c_int32(booster.columns), _PARAMETERS, ctypes.byref(self.config)),
            )
        )

    def ask(self, rows: bytearray, place: int) -> Callable[[], float]:
        """rows: those that it was made for."""
        booster, answer = self._booster, self._answer
        predict = partial(
            booster.held.LGBM_BoosterPredictForMatSingleRowFast,
            *(self.config, ctypes.byref(self._memory, 8 * booster.columns * place), self._length, ctypes.byref(answer)),
        )

        def asked() -> float:
            if code := predict():
                booster.check(code)
            return answer.value

        return asked

    def __del__(self) -> None:
        self._free(self.config)
