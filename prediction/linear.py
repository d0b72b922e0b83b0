"""Linear models of log seconds over log1p of the features, standardised: counts and times span five orders of magnitude."""

from __future__ import annotations

import math
from dataclasses import dataclass

import msgspec
import numpy as np
import numpy.typing as npt

from contract.features import FEATURES
from prediction.bundle import Bundle
from prediction.errors import BundleError

Floats = npt.NDArray[np.float64]

FILE = "linear.json"


class LinearFile(msgspec.Struct, frozen=True):
    """mean, scale: of log1p(features); p50, p90: weights, in the order of FEATURES, with their intercepts."""

    mean: list[float]
    scale: list[float]
    p50: list[float]
    p50_intercept: float
    p90: list[float]
    p90_intercept: float


def inputs(rows: Floats) -> Floats:
    """log1p of the features, which are never negative."""
    return np.log1p(np.maximum(rows, 0.0))


@dataclass(frozen=True, slots=True)
class LinearQuantiles:
    """weights: (features, 2); intercepts: (2,)."""

    weights: Floats
    intercepts: Floats

    def log_quantiles(self, rows: Floats) -> tuple[Floats, Floats]:
        both = inputs(rows) @ self.weights + self.intercepts
        return both[:, 0], both[:, 1]


def load(bundle: Bundle) -> LinearQuantiles:
    """BundleError: no such file, or not of this shape."""
    data = bundle.files.get(FILE)
    if data is None:
        raise BundleError(f"model {bundle.manifest.model_id} has no {FILE}")
    try:
        file = msgspec.json.decode(data, type=LinearFile)
    except (msgspec.DecodeError, ValueError) as error:
        raise BundleError(f"model {bundle.manifest.model_id}: {FILE}: {error}") from error
    if {len(file.mean), len(file.scale), len(file.p50), len(file.p90)} != {len(FEATURES)}:
        raise BundleError(f"model {bundle.manifest.model_id}: {FILE} is not of {len(FEATURES)} features")
    numbers = [*file.mean, *file.scale, *file.p50, *file.p90, file.p50_intercept, file.p90_intercept]
    if not all(math.isfinite(number) for number in numbers) or not all(scale > 0 for scale in file.scale):
        raise BundleError(f"model {bundle.manifest.model_id}: {FILE} holds numbers that are not finite, or scales of 0")
    scaled = np.array([file.p50, file.p90]).T / np.array(file.scale)[:, None]
    intercepts = np.array([file.p50_intercept, file.p90_intercept]) - np.array(file.mean) @ scaled
    return LinearQuantiles(np.ascontiguousarray(scaled), intercepts)
