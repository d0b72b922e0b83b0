"""From a model's raw quantiles in log seconds to the seconds that are served.

Conformal: on samples the model did not see, the residual log(ttft) - raw log p90 is taken, and its own 90th percentile is
added to the raw p90, so that 90 % of the truth lies below it. Each zone apart, because a model that is right on the whole
is usually too sure where it is slow; at decision time a zone is known by the p50. What turned out slower than predicted is
found more often in a true zone than in the predicted one, so that coverage by either differs by a few percent: the offset
is the mean of both. A zone with too few samples takes the offset over all.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import msgspec
import numpy as np
import numpy.typing as npt

from prediction import zones
from prediction.errors import BundleError

FILE = "calibration.json"
QUANTILE = 0.9
ZONE_SAMPLES_MIN = 60
"""Below this a zone's own 90th percentile says more of chance than of the model."""
LOG_TTFT_BOUNDS = (math.log(1e-4), math.log(3600.0))
"""What any prediction is cut to: a model asked far outside of what it saw must not answer with infinity."""

Floats = npt.NDArray[np.float64]


class _File(msgspec.Struct, frozen=True):
    offsets: tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class Calibration:
    """Offsets of the raw log p90, by predicted zone."""

    offsets: tuple[float, float, float] = (0.0, 0.0, 0.0)

    def apply(self, log_p50: Floats, log_p90: Floats) -> tuple[Floats, Floats]:
        """Raw log quantiles, each (n,), to seconds. The p90 is never below the p50."""
        low, high = LOG_TTFT_BOUNDS
        middle = np.clip(log_p50, low, high)
        upper = log_p90 + np.asarray(self.offsets)[zones.of_log(middle)]
        return np.exp(middle), np.exp(np.minimum(np.maximum(upper, middle), high))

    def encode(self) -> bytes:
        return msgspec.json.encode(_File(self.offsets))


def decode(data: bytes) -> Calibration:
    """BundleError: not a calibration."""
    try:
        offsets = msgspec.json.decode(data, type=_File).offsets
    except (msgspec.DecodeError, ValueError) as error:
        raise BundleError(f"{FILE}: {error}") from error
    if not all(math.isfinite(offset) for offset in offsets):
        raise BundleError(f"{FILE}: offsets {offsets} are not all finite")
    return Calibration(offsets)


def fit(log_p50: Floats, log_p90: Floats, ttft_s: Floats) -> Calibration:
    """From predictions on samples the model was not trained on, each (n,). ValueError: none."""
    if not len(ttft_s):
        raise ValueError("no samples to calibrate on")
    residuals = np.log(ttft_s) - np.maximum(log_p90, log_p50)
    predicted, true = zones.of_log(log_p50), zones.of(ttft_s)
    overall = _upper(residuals)

    def offset(zone: int) -> float:
        parts = [residuals[where == zone] for where in (predicted, true)]
        if min(map(len, parts)) < ZONE_SAMPLES_MIN:
            return overall
        return sum(map(_upper, parts)) / len(parts)

    return Calibration((offset(0), offset(1), offset(2)))


def _upper(residuals: Floats) -> float:
    """The conformal quantile: with the (n + 1) of a finite sample."""
    level = min(1.0, QUANTILE * (len(residuals) + 1) / len(residuals))
    return float(np.quantile(residuals, level, method="higher"))
