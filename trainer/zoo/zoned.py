"""A classifier of the zone, and a regressor trained on each zone's own samples."""

from __future__ import annotations

import numpy as np

from prediction import zones
from prediction.zoned import CLASSIFIER_FILE, p50_file, spread_file
from trainer.zoo import boosted
from trainer.zoo.kind import THREADS, Progress, Training

CLASSIFIER = {"objective": "multiclass", "num_class": len(zones.ZONES), "num_leaves": 15, "learning_rate": 0.1}
CLASSIFIER_TREES = 40
TREES = 60
ZONE_SAMPLES_MIN = 100
"""A zone with fewer learns from all samples."""


def fit(training: Training, seed: int, progress: Progress) -> dict[str, bytes]:
    where = zones.of(training.ttft_s)
    steps = 1 + 2 * len(zones.ZONES)

    def part(number: int) -> Progress:
        return lambda done: progress((number + done) / steps)

    files = {
        CLASSIFIER_FILE: boosted.text(
            boosted.booster(
                training.columns, where.astype(np.float64), CLASSIFIER, CLASSIFIER_TREES, seed=seed, progress=part(0)
            )
        )
    }
    for number, zone in enumerate(zones.ZONES):
        mine = where == number
        if mine.sum() < ZONE_SAMPLES_MIN:
            mine = np.full(len(training), True)
        columns, target = training.columns[mine], training.target[mine]
        median = boosted.booster(columns, target, boosted.MEDIAN, TREES, seed=seed, progress=part(1 + 2 * number))
        above = target - np.asarray(median.predict(columns, num_threads=THREADS))
        spread = boosted.booster(columns, above, boosted.SPREAD, boosted.SPREAD_TREES, seed=seed, progress=part(2 + 2 * number))
        files |= {p50_file(zone): boosted.text(median), spread_file(zone): boosted.text(spread)}
    return files
