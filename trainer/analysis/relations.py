"""Each signal against TTFT: correlation, zone by zone, and what a boosted model of trees leans on. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass

import lightgbm
import numpy as np
import numpy.typing as npt
from scipy import stats
from sklearn.inspection import permutation_importance

from prediction import zones
from trainer.analysis.signals import Floats, Signals

ROWS_MIN = 30
"""A correlation of fewer rows is chance."""
TREES = 200
PERMUTED_ROWS = 4_000
REPEATS = 5
HELD_OUT = 5
"""Every so many-th run of neighbouring rows is kept to permute on."""
SLICE = 50


@dataclass(frozen=True, slots=True)
class Correlation:
    """Of one signal with TTFT; nan where it does not vary or the rows are too few."""

    pearson: float
    spearman: float


@dataclass(frozen=True, slots=True)
class Importance:
    """By signal. gain: share of the model's gain; permuted: what the held-out R² of log TTFT loses without it; r2: with all."""

    gain: dict[str, float]
    permuted: dict[str, float]
    r2: float


def correlations(signals: Signals) -> dict[str, dict[str, Correlation]]:
    """By signal, then by zone, or "all"."""
    masks = {"all": np.full(len(signals), True)} | {name: signals.zone == place for place, name in enumerate(zones.ZONES)}
    return {
        signal: {zone: _correlation(signals.columns[signal], signals.ttft_s, mask) for zone, mask in masks.items()}
        for signal in signals.varying
    }


def _correlation(values: Floats, ttft_s: Floats, mask: npt.NDArray[np.bool_]) -> Correlation:
    mask = mask & np.isfinite(values)
    x, y = values[mask], ttft_s[mask]
    if len(x) < ROWS_MIN or x.min() == x.max() or y.min() == y.max():
        return Correlation(math.nan, math.nan)
    return Correlation(float(stats.pearsonr(x, y).statistic), float(stats.spearmanr(x, y).statistic))


def best(found: dict[str, dict[str, Correlation]], zone: str) -> list[str]:
    """Signals by how well they rank TTFT in a zone, best first; those of which nothing is known there are left out."""
    known = [name for name in found if math.isfinite(found[name][zone].spearman)]
    return sorted(known, key=lambda name: -abs(found[name][zone].spearman))


def importance(signals: Signals, *, seed: int) -> Importance:
    """Rows are held out in runs of neighbours in time, since neighbours saw the same queue."""
    names = signals.plain
    rows, target = signals.matrix(names), np.log(signals.ttft_s)
    held_out = (np.arange(len(target)) // SLICE) % HELD_OUT == 0
    model = lightgbm.LGBMRegressor(
        n_estimators=TREES, num_leaves=31, learning_rate=0.05, random_state=seed, n_jobs=1, verbose=-1, importance_type="gain"
    )
    model.fit(rows[~held_out], target[~held_out])
    rng = np.random.default_rng(seed)
    some = rng.permutation(np.flatnonzero(held_out))[:PERMUTED_ROWS]
    found = permutation_importance(model, rows[some], target[some], n_repeats=REPEATS, random_state=seed, n_jobs=1)
    gain = np.asarray(model.feature_importances_, dtype=np.float64)
    total = float(gain.sum()) or 1.0
    return Importance(
        gain={name: float(value) / total for name, value in zip(names, gain, strict=True)},
        permuted={name: float(value) for name, value in zip(names, found.importances_mean, strict=True)},
        r2=float(model.score(rows[some], target[some])),
    )
