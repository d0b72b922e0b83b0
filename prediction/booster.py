"""LightGBM text models, scored through the C API's matrix call by ctypes on one thread.

The Python wrapper checks, copies and starts threads for every call; for the eight rows of a decision that costs more than the
trees. The library is the one in the `lightgbm` package, loaded without the package, whose import takes a second and brings in
whatever else is installed. Two threads may score one model at once.
"""

from __future__ import annotations

import ctypes
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from prediction import derive
from prediction.bundle import Bundle
from prediction.errors import BundleError

Floats = npt.NDArray[np.float64]

P50_FILE = "p50.txt"
SPREAD_FILE = "spread.txt"

_FLOAT64 = 1
_ROW_MAJOR = 1
_PREDICT_NORMAL = 0
_ALL_ITERATIONS = -1
_PARAMETERS = b"num_threads=1"


@cache
def _library() -> Any:
    """BundleError: LightGBM is not installed."""
    spec = find_spec("lightgbm")
    for root in () if spec is None else spec.submodule_search_locations or ():
        for path in sorted(Path(root).glob("lib/lib_lightgbm.*")) + sorted(Path(root).glob("bin/lib_lightgbm.*")):
            library = ctypes.CDLL(str(path))
            library.LGBM_GetLastError.restype = ctypes.c_char_p
            return library
    raise BundleError("LightGBM's library is not installed")


class Booster:
    """One model of one or more outputs a row."""

    def __init__(self, text: str, *, columns: int) -> None:
        """columns: of the rows it is to score. BundleError: not a model text, or one of another number of columns."""
        self._library = _library()
        handle = ctypes.c_void_p()
        iterations = ctypes.c_int()
        if not text.startswith("tree"):
            raise BundleError("not a LightGBM model text")
        self._check(
            self._library.LGBM_BoosterLoadModelFromString(
                ctypes.c_char_p(text.encode()), ctypes.byref(iterations), ctypes.byref(handle)
            )
        )
        self._handle: ctypes.c_void_p | None = handle
        found, outputs = ctypes.c_int(), ctypes.c_int()
        self._check(self._library.LGBM_BoosterGetNumFeature(handle, ctypes.byref(found)))
        self._check(self._library.LGBM_BoosterGetNumClasses(handle, ctypes.byref(outputs)))
        if found.value != columns:
            raise BundleError(f"a LightGBM model of {found.value} columns, the rows have {columns}")
        self.outputs: int = outputs.value

    def predict(self, rows: Floats) -> Floats:
        """rows: C-contiguous float64 (n, columns). (n,), or (n, outputs) where there are several."""
        count, columns = rows.shape
        answer = np.empty(count * self.outputs)
        length = ctypes.c_int64()
        code = self._library.LGBM_BoosterPredictForMat(
            self._handle,
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
            self._check(code)
        return answer if self.outputs == 1 else answer.reshape(count, self.outputs)

    def _check(self, code: int) -> None:
        if code:
            raise BundleError(f"LightGBM: {self._library.LGBM_GetLastError().decode(errors='replace')}")

    def __del__(self) -> None:
        handle = getattr(self, "_handle", None)
        if handle is not None:
            self._handle = None
            self._library.LGBM_BoosterFree(handle)


class BoosterQuantiles:
    """A model of the median of log (seconds / estimate) over derive.COLUMNS, and one of how far above it the p90 is."""

    def __init__(self, p50: Booster, spread: Booster) -> None:
        self._p50 = p50
        self._spread = spread

    def log_quantiles(self, rows: Floats) -> tuple[Floats, Floats]:
        columns = derive.inputs(rows)
        start = derive.log_estimate(columns)
        middle = self._p50.predict(columns) + start
        return middle, middle + np.maximum(0.0, self._spread.predict(columns))


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
    p50, spread = (Booster(text_of(bundle, name), columns=len(derive.COLUMNS)) for name in (P50_FILE, SPREAD_FILE))
    if p50.outputs != 1 or spread.outputs != 1:
        raise BundleError(f"model {bundle.manifest.model_id}: a booster of more than one output")
    return BoosterQuantiles(p50, spread)
