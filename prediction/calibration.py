"""From a model's raw quantiles in log seconds to the seconds that are served.

Conformal: on samples the model did not see, the residual log(ttft) - raw log p90 is taken, and its own 90th percentile is
added to the raw p90, so that 90 % of the truth lies below it. Each zone apart, because a model that is right on the whole
is usually too sure where it is slow; at decision time a zone is known by the p50. What turned out slower than predicted is
found more often in a true zone than in the predicted one, so that coverage by either differs by a few percent: the offset
is the mean of both.

A zone with few samples says little of itself, and what it says may come from one bad moment. Below ZONE_SAMPLES_MIN it leans on
the nearest zone that has enough, the more so the fewer it has; below OWN_MIN there is no 90th percentile of a finite sample
at all, and its offset is the neighbour's or the worst it has seen. Where it seems surer than its neighbour it is not believed
at once, where it seems less sure it is.

An endpoint that has not shown its prefill speed yet is another matter: what is assumed of it may be wrong by all that engines
differ. Until enough such samples were seen, its p90 is UNKNOWN_FACTOR times the p50, which no decision is made by.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
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
LEVEL_MAX = 0.95
"""Of the residuals: what a few moments say nothing of could be anything, and the p90 would be beyond all use."""
OWN_MIN = 9
"""The 90th percentile of fewer is beyond the largest of them."""
UNKNOWN_FACTOR = 30.0
"""Prefill of 300 to 40,000 tokens a second is what engines were seen to do; 10,000 is assumed."""
LOG_TTFT_BOUNDS = (math.log(1e-4), math.log(3600.0))
"""What any prediction is cut to: a model asked far outside of what it saw must not answer with infinity."""

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]


class _File(msgspec.Struct, frozen=True):
    offsets: tuple[float, float, float]
    unknown: float = 0.0


@dataclass(frozen=True, slots=True)
class Calibration:
    """Offsets of the raw log p90, by predicted zone. unknown: how far the p90 is above the p50 at least, log seconds, where
    the endpoint's speed is not known."""

    offsets: tuple[float, float, float] = (0.0, 0.0, 0.0)
    unknown: float = 0.0

    def apply(self, log_p50: Floats, log_p90: Floats, unknown: Flags | None = None) -> tuple[Floats, Floats]:
        """Raw log quantiles, each (n,), to seconds; unknown: (n,) whose endpoint's speed is not known. The p90 is never below
        the p50."""
        low, high = LOG_TTFT_BOUNDS
        middle = np.clip(log_p50, low, high)
        upper = np.maximum(log_p90 + np.asarray(self.offsets)[zones.of_log(middle)], middle)
        if unknown is not None and self.unknown > 0.0:
            upper = np.where(unknown, np.maximum(upper, middle + self.unknown), upper)
        return np.exp(middle), np.exp(np.minimum(upper, high))

    def encode(self) -> bytes:
        return msgspec.json.encode(_File(self.offsets, self.unknown))


def decode(data: bytes) -> Calibration:
    """BundleError: not a calibration."""
    try:
        file = msgspec.json.decode(data, type=_File)
    except (msgspec.DecodeError, ValueError) as error:
        raise BundleError(f"{FILE}: {error}") from error
    if not all(math.isfinite(offset) for offset in (*file.offsets, file.unknown)):
        raise BundleError(f"{FILE}: offsets {file.offsets} and {file.unknown} are not all finite")
    return Calibration(file.offsets, file.unknown)


def fit(
    log_p50: Floats,
    log_p90: Floats,
    ttft_s: Floats,
    unknown: Flags | None = None,
    moments: npt.NDArray[np.int64] | None = None,
) -> Calibration:
    """From predictions on samples the model was not trained on, each (n,); unknown: as `apply` has it; moments: samples of
    one moment have the same number here, by default each is one of its own. ValueError: none."""
    if not len(ttft_s):
        raise ValueError("no samples to calibrate on")
    moments = np.arange(len(ttft_s)) if moments is None else moments
    log_ttft = np.log(ttft_s)
    apart = np.zeros(len(ttft_s), dtype=np.bool_) if unknown is None or np.all(unknown) else unknown
    above = _Residuals((log_ttft - log_p50)[apart], moments[apart])
    residuals = _Residuals((log_ttft - np.maximum(log_p90, log_p50))[~apart], moments[~apart])
    predicted, true = zones.of_log(log_p50[~apart]), zones.of(ttft_s[~apart])
    parts = [[residuals.where(zone_of == zone) for zone_of in (predicted, true)] for zone in range(len(zones.ZONES))]
    counts = [min(map(len, both)) for both in parts]
    overall = _upper(residuals)
    low, medium, high = (
        _offset(both, count, _neighbour(zone, parts, counts, overall))
        for zone, (both, count) in enumerate(zip(parts, counts, strict=True))
    )
    far = max(0.0, _upper(above)) if len(above) >= ZONE_SAMPLES_MIN else math.log(UNKNOWN_FACTOR)
    return Calibration((low, medium, high), 0.0 if unknown is not None and np.all(unknown) else far)


@dataclass(frozen=True, slots=True)
class _Residuals:
    """log seconds above a prediction, and the moment of each."""

    values: Floats
    moments: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.values)

    def where(self, flags: Flags) -> _Residuals:
        return _Residuals(self.values[flags], self.moments[flags])


def _neighbour(zone: int, parts: Sequence[Sequence[_Residuals]], counts: Sequence[int], overall: float) -> float:
    """The offset of the nearest zone with samples enough, the slower one of two; of all samples where there is none."""
    enough = [place for place, count in enumerate(counts) if count >= ZONE_SAMPLES_MIN and place != zone]
    if not enough:
        return overall
    return _mean(parts[min(enough, key=lambda place: (abs(place - zone), -place))])


def _offset(both: Sequence[_Residuals], count: int, neighbour: float) -> float:
    """both: residuals of those predicted to be in the zone, and of those truly in it; count: of the fewer."""
    if count >= ZONE_SAMPLES_MIN:
        return _mean(both)
    seen = [residuals for residuals in both if len(residuals)]
    if count < OWN_MIN:
        return max([neighbour, *(float(residuals.values.max()) for residuals in seen if len(residuals) < OWN_MIN)])
    own = _mean(both)
    share = count / ZONE_SAMPLES_MIN
    return share * own + (1.0 - share) * max(own, neighbour)


def _mean(both: Sequence[_Residuals]) -> float:
    return sum(map(_upper, both)) / len(both)


def _upper(residuals: _Residuals) -> float:
    """The conformal quantile: with the (n + 1) of a finite sample, where n is what the samples are worth. Of many samples no
    more than LEVEL_MAX is asked because they are worth little."""
    worth = _worth(residuals)
    level = min(1.0, QUANTILE * (worth + 1) / worth)
    if len(residuals) >= ZONE_SAMPLES_MIN:
        level = min(level, LEVEL_MAX)
    return float(np.quantile(residuals.values, level, method="higher"))


def _worth(residuals: _Residuals) -> float:
    """How many samples apart from each other would say as much. Those of one moment saw the same queue: the more unevenly the
    late ones lie over the moments, the fewer."""
    late = residuals.values > np.quantile(residuals.values, QUANTILE)
    share = float(np.mean(late))
    if not 0.0 < share < 1.0:
        return float(len(late))
    _, places = np.unique(residuals.moments, return_inverse=True)
    beyond = np.bincount(places, late) - share * np.bincount(places)
    by_chance = len(late) * share * (1.0 - share)
    return len(late) / max(1.0, float(beyond @ beyond) / by_chance)
