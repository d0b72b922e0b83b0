"""A classifier of the zone and regressors for each, LightGBM texts: answers are mixed by the classifier's probabilities."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from prediction import derive
from prediction.booster import Booster, text_of
from prediction.bundle import Bundle
from prediction.errors import BundleError
from prediction.zones import ZONES

Floats = npt.NDArray[np.float64]

CLASSIFIER_FILE = "zone.txt"


def p50_file(zone: str) -> str:
    return f"p50_{zone}.txt"


def spread_file(zone: str) -> str:
    return f"spread_{zone}.txt"


class Zoned:
    def __init__(self, classifier: Booster, middles: list[Booster], spreads: list[Booster]) -> None:
        """middles, spreads: one a zone, of log (seconds / estimate) and of what the p90 is above it."""
        self._classifier = classifier
        self._middles = middles
        self._spreads = spreads

    def log_quantiles(self, rows: Floats) -> tuple[Floats, Floats]:
        columns = derive.inputs(rows)
        share = self._classifier.predict(columns)
        start = derive.log_estimate(columns)
        middle = np.column_stack([model.predict(columns) for model in self._middles])
        spread = np.column_stack([model.predict(columns) for model in self._spreads])
        p50 = start + (share * middle).sum(axis=1)
        return p50, p50 + np.maximum(0.0, (share * spread).sum(axis=1))


def load(bundle: Bundle) -> Zoned:
    """BundleError: a file is missing or no LightGBM model of the shape that is needed."""
    width = len(derive.COLUMNS)
    classifier = Booster(text_of(bundle, CLASSIFIER_FILE), columns=width)
    if classifier.outputs != len(ZONES):
        raise BundleError(f"model {bundle.manifest.model_id}: {CLASSIFIER_FILE} tells {classifier.outputs} zones apart")
    middles = [Booster(text_of(bundle, p50_file(zone)), columns=width) for zone in ZONES]
    spreads = [Booster(text_of(bundle, spread_file(zone)), columns=width) for zone in ZONES]
    if any(model.outputs != 1 for model in (*middles, *spreads)):
        raise BundleError(f"model {bundle.manifest.model_id}: a regressor of more than one output")
    return Zoned(classifier, middles, spreads)
