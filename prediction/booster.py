"""LightGBM text models, scored through the C API's matrix call by ctypes on one thread.

The Python wrapper checks, copies and starts threads for every call; for the eight rows of a decision that costs more than the
trees. The library is the one in the `lightgbm` package, loaded without the package, whose import takes a second and brings in
whatever else is installed. Two threads may score one model at once.
"""

from __future__ import annotations

import ctypes
import math
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from prediction import derive, few, trees
from prediction.bundle import Bundle
from prediction.errors import BundleError

if TYPE_CHECKING:
    from prediction._trees import Trees

Floats = npt.NDArray[np.float64]

P50_FILE = "p50.txt"
SPREAD_FILE = "spread.txt"
PROOF_ROWS = 64
"""On which a model of two outputs is held against the two."""

_FLOAT64 = 1
_ROW_MAJOR = 1
_PREDICT_NORMAL = 0
_ALL_ITERATIONS = -1
_PARAMETERS = b"num_threads=1"


@cache
def _library(kind: type[ctypes.CDLL] = ctypes.CDLL) -> Any:
    """kind: PyDLL keeps the interpreter through a call. That is for calls of a microsecond: whoever gives it away may get it
    back late. BundleError: LightGBM is not installed."""
    spec = find_spec("lightgbm")
    for root in () if spec is None else spec.submodule_search_locations or ():
        for path in sorted(Path(root).glob("lib/lib_lightgbm.*")) + sorted(Path(root).glob("bin/lib_lightgbm.*")):
            library = kind(str(path))
            library.LGBM_GetLastError.restype = ctypes.c_char_p
            return library
    raise BundleError("LightGBM's library is not installed")


class Booster:
    """One model of one or more outputs a row."""

    def __init__(self, text: str, *, columns: int) -> None:
        """columns: of the rows it is to score. BundleError: not a model text, or one of another number of columns."""
        self.library, self.held = _library(), _library(ctypes.PyDLL)
        handle = ctypes.c_void_p()
        iterations = ctypes.c_int()
        if not text.startswith("tree"):
            raise BundleError("not a LightGBM model text")
        self.check(
            self.library.LGBM_BoosterLoadModelFromString(
                ctypes.c_char_p(text.encode()), ctypes.byref(iterations), ctypes.byref(handle)
            )
        )
        self.handle: ctypes.c_void_p | None = handle
        found, outputs = ctypes.c_int(), ctypes.c_int()
        self.check(self.library.LGBM_BoosterGetNumFeature(handle, ctypes.byref(found)))
        self.check(self.library.LGBM_BoosterGetNumClasses(handle, ctypes.byref(outputs)))
        if found.value != columns:
            raise BundleError(f"a LightGBM model of {found.value} columns, the rows have {columns}")
        self.columns, self.outputs = columns, int(outputs.value)

    def predict(self, rows: Floats) -> Floats:
        """rows: C-contiguous float64 (n, columns). (n,), or (n, outputs) where there are several."""
        count, columns = rows.shape
        answer = np.empty(count * self.outputs)
        length = ctypes.c_int64()
        code = self.library.LGBM_BoosterPredictForMat(
            self.handle,
            ctypes.c_void_p(rows.ctypes.data),
            _FLOAT64,
            ctypes.c_int32(count),
            ctypes.c_int32(columns),
            _ROW_MAJOR,
            _PREDICT_NORMAL,
            0,
            _ALL_ITERATIONS,
            _PARAMETERS,
            ctypes.byref(length),
            ctypes.c_void_p(answer.ctypes.data),
        )
        if code:
            self.check(code)
        return answer if self.outputs == 1 else answer.reshape(count, self.outputs)

    def check(self, code: int) -> None:
        """BundleError: the library said that something was wrong."""
        if code:
            raise BundleError(f"LightGBM: {self.library.LGBM_GetLastError().decode(errors='replace')}")

    def __del__(self) -> None:
        handle = getattr(self, "handle", None)
        if handle is not None:
            self.handle = None
            self.library.LGBM_BoosterFree(handle)


class BoosterQuantiles:
    """A model of the median of log (seconds / estimate) over derive.COLUMNS, and one of how far above it the p90 is."""

    def __init__(
        self,
        p50: Booster,
        spread: Booster,
        both: Booster | None = None,
        bounds: tuple[float, float] = (math.inf, math.inf),
        walked: tuple[Trees | None, Trees | None] = (None, None),
    ) -> None:
        """both: the two as one of two outputs, for few rows at a time; None: there is no such thing. bounds: what each of the
        two can say at most; walked: each of the two for compiled code."""
        self.walked = walked
        self.bounds = bounds
        self.p50 = p50
        self.spread = spread
        self.both = both

    def log_quantiles(self, rows: Floats) -> tuple[Floats, Floats]:
        columns = derive.inputs(rows)
        start = derive.log_estimate(columns)
        middle = self.p50.predict(columns) + start
        return middle, middle + np.maximum(0.0, self.spread.predict(columns))


def text_of(bundle: Bundle, name: str) -> str:
    """BundleError: there is no such file, or it is no text."""
    data = bundle.files.get(name)
    if data is None:
        raise BundleError(f"model {bundle.manifest.model_id} has no {name}")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise BundleError(f"model {bundle.manifest.model_id}: {name}: {error}") from error


def load(bundle: Bundle) -> BoosterQuantiles:
    """BundleError: a file is missing or no LightGBM model."""
    texts = text_of(bundle, P50_FILE), text_of(bundle, SPREAD_FILE)
    p50, spread = (Booster(text, columns=len(derive.COLUMNS)) for text in texts)
    if p50.outputs != 1 or spread.outputs != 1:
        raise BundleError(f"model {bundle.manifest.model_id}: a booster of more than one output")
    bounds = few.most(texts[0]), few.most(texts[1])
    walked = trees.read(texts[0], p50), trees.read(texts[1], spread)
    return BoosterQuantiles(p50, spread, _both(*texts, p50, spread), bounds, walked)


def _both(p50_text: str, spread_text: str, p50: Booster, spread: Booster) -> Booster | None:
    """None where the library does not read it as what it is: then there is no way for few rows, and nothing else is lost."""
    try:
        made = Booster(few.side_by_side(p50_text, spread_text), columns=p50.columns)
    except BundleError:
        return None
    if made.outputs != 2:
        return None
    rows = np.random.default_rng(0).lognormal(sigma=4.0, size=(PROOF_ROWS, p50.columns))
    alone = np.column_stack([p50.predict(rows), spread.predict(rows)])
    return made if np.array_equal(made.predict(rows), alone) else None
