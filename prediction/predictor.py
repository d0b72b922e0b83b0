"""What serves a prediction: `load` makes it from a bundle, `predict` answers for all rows of a decision in one call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
import numpy.typing as npt

from contract.features import FEATURES, VERSION
from prediction import booster, calibration, derive, linear, network, tree, zoned
from prediction.bundle import Bundle
from prediction.errors import BundleError
from prediction.few import Few, Single

Floats = npt.NDArray[np.float64]


class Predictor(Protocol):
    def predict(self, rows: Floats) -> tuple[Floats, Floats]:
        """rows: C-contiguous float64 (n, len(FEATURES)). The median and the 90th percentile of TTFT, seconds, each (n,)."""


class Quantiles(Protocol):
    """A kind of model before calibration."""

    def log_quantiles(self, rows: Floats) -> tuple[Floats, Floats]:
        """As Predictor.predict, in log seconds."""


LOADERS: dict[str, Callable[[Bundle], Quantiles]] = {
    "lightgbm": booster.load,
    "linear": linear.load,
    "linear_online": linear.load,
    "tree": tree.load,
    "forest": tree.load,
    "mlp": network.load,
    "zoned": zoned.load,
    "distilled": tree.load,
}
"""By kind. BundleError: the files are not what the kind needs."""


class Calibrated:
    """raw quantiles, with the p90 moved to where 90 % of the truth was below it."""

    def __init__(self, raw: Quantiles, calibrated: calibration.Calibration) -> None:
        self._raw = raw
        self._calibration = calibrated

    def predict(self, rows: Floats) -> tuple[Floats, Floats]:
        log_p50, log_p90 = self._raw.log_quantiles(rows)
        return self._calibration.apply(log_p50, log_p90, derive.speed_unknown(rows))

    def few(self, most: int) -> Few | None:
        """For whoever asks about at most `most` rows, again and again; None where this kind has no shorter way for few."""
        both = self._raw.both if isinstance(self._raw, booster.BoosterQuantiles) else None
        return None if both is None else Few(both, self._calibration, most)

    def single(self, most: int) -> Single | None:
        """As `few`, for rows one by one."""
        raw = self._raw
        if not isinstance(raw, booster.BoosterQuantiles):
            return None
        try:
            return Single(raw.p50, raw.spread, self._calibration, most, raw.bounds, raw.walked)
        except (AttributeError, BundleError):  # a library of before LightGBM 3
            return None


def load(bundle: Bundle) -> Predictor:
    """BundleError: a kind this build does not know, features of another version, files that do not load or do not predict."""
    manifest = bundle.manifest
    if manifest.feature_version != VERSION or manifest.features != FEATURES:
        raise BundleError(
            f"model {manifest.model_id} was trained on features of version {manifest.feature_version}, "
            f"this build has version {VERSION}"
        )
    loader = LOADERS.get(manifest.kind)
    if loader is None:
        raise BundleError(f"model {manifest.model_id} is of kind {manifest.kind!r}, this build has {', '.join(LOADERS)}")
    data = bundle.files.get(calibration.FILE)
    if data is None:
        raise BundleError(f"model {manifest.model_id} has no {calibration.FILE}")
    predictor = Calibrated(loader(bundle), calibration.decode(data))
    p50_s, p90_s = predictor.predict(np.zeros((2, len(FEATURES))))
    if not (np.all(np.isfinite(p50_s)) and np.all(np.isfinite(p90_s))):
        raise BundleError(f"model {manifest.model_id} predicts {p50_s[0]} s and {p90_s[0]} s for an idle endpoint")
    return predictor
