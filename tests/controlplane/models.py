"""Models for tests: bundles of the linear kind whose every prediction can be worked out by hand."""

from __future__ import annotations

import math

import msgspec

from contract.features import FEATURES, INDEX, VERSION
from prediction import bundle, calibration
from prediction.bundle import Bundle
from prediction.linear import FILE, LinearFile


def linear(
    model_id: str = "m-1",
    *,
    median_s: float = 0.1,
    p90_ratio: float = 2.0,
    per: str = "active",
    power: float = 1.0,
    version: int = VERSION,
) -> Bundle:
    """Median: median_s x (1 + feature `per`) ** power; the 90th percentile p90_ratio times that."""
    weights = [0.0] * len(FEATURES)
    weights[INDEX[per]] = power
    file = LinearFile(
        mean=[0.0] * len(FEATURES),
        scale=[1.0] * len(FEATURES),
        p50=weights,
        p50_intercept=math.log(median_s),
        p90=weights,
        p90_intercept=math.log(median_s * p90_ratio),
    )
    return bundle.build(
        model_id=model_id,
        kind="linear",
        feature_version=version,
        features=FEATURES,
        trained_at=0.0,
        samples=1,
        seed=1,
        files={FILE: msgspec.json.encode(file), calibration.FILE: calibration.Calibration().encode()},
    )
