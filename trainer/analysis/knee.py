"""Where TTFT turns: the load at which its median passes 0.5 s, and that at which it passes 2 s. Pure.

Rows are sorted by load and cut into bins of equal size; the bins' median TTFTs are made non-decreasing (isotonic regression, on
log seconds), so that each bound is crossed once; between two bins the crossing is interpolated.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from sklearn.isotonic import IsotonicRegression

from trainer.analysis.signals import Floats, Signals

FROM_S = 0.5
TO_S = 2.0
BINS_MAX = 40
ROWS_A_BIN_MIN = 25
AGAINST = ("active", "prefill_tokens", "level")
"""Loads to look at, where they vary."""
INSTEAD = "rate_rps"
"""Where no level is known. Beside levels it says nothing: one rate is idle for short prompts and overload for long ones."""


@dataclass(frozen=True, slots=True)
class Knee:
    """load, median_s, smooth_s: (bins,). at_from, at_to: loads at FROM_S and TO_S; nan: the median does not cross it."""

    signal: str
    load: Floats
    median_s: Floats
    smooth_s: Floats
    at_from: float
    at_to: float


def find(signals: Signals) -> list[Knee]:
    found = [knee for name in (*AGAINST, INSTEAD) if name in signals.columns and (knee := _of(signals, name)) is not None]
    levels = any(knee.signal == "level" for knee in found)
    return [knee for knee in found if not (levels and knee.signal == INSTEAD)]


def _of(signals: Signals, name: str) -> Knee | None:
    """None: it does not vary enough."""
    values = signals.columns[name]
    known = np.flatnonzero(np.isfinite(values))
    if len(known) < 2 * ROWS_A_BIN_MIN or values[known].min() == values[known].max():
        return None
    ordered = known[np.argsort(values[known], kind="stable")]
    bins = np.array_split(ordered, min(BINS_MAX, len(ordered) // ROWS_A_BIN_MIN))
    load = np.array([float(np.mean(values[part])) for part in bins])
    median_s = np.array([float(np.median(signals.ttft_s[part])) for part in bins])
    smooth = np.exp(IsotonicRegression().fit_transform(np.arange(len(bins)), np.log(median_s)))
    return Knee(name, load, median_s, smooth, crossing(load, smooth, FROM_S), crossing(load, smooth, TO_S))


def crossing(load: Floats, smooth_s: Floats, bound_s: float) -> float:
    """The load at which a non-decreasing curve reaches a bound; nan: it begins above it or never does."""
    above = np.flatnonzero(smooth_s >= bound_s)
    if not len(above) or above[0] == 0:
        return math.nan
    place = int(above[0])
    low, high = math.log(smooth_s[place - 1]), math.log(smooth_s[place])
    share = (math.log(bound_s) - low) / (high - low) if high > low else 1.0
    return float(load[place - 1] + share * (load[place] - load[place - 1]))
