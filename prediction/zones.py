"""The three zones of TTFT, in which models are judged apart: a good figure over all hides a bad one in the zone that counts."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

ZONES: tuple[str, ...] = ("low", "medium", "high")
EDGES_S: tuple[float, float] = (1.0, 10.0)
"""low < 1 s, medium 1 to 10 s, high >= 10 s."""
LOG_EDGES = np.array([math.log(edge) for edge in EDGES_S])


def of(ttft_s: npt.NDArray[np.float64]) -> npt.NDArray[np.intp]:
    """Indices into ZONES, shape as given."""
    return np.searchsorted(np.asarray(EDGES_S), ttft_s, side="right")


def of_log(log_ttft: npt.NDArray[np.float64]) -> npt.NDArray[np.intp]:
    """As `of`, from natural logarithms of seconds."""
    return np.searchsorted(LOG_EDGES, log_ttft, side="right")
