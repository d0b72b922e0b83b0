"""How far predictions are from the truth: per zone, and in the figure that routing needs, how often the fastest is put first.

MAE in seconds; MAPE as a share of the truth; pinball loss in log seconds, so that a second at the slow end does not drown all
that is fast; coverage: the share of the truth at or below the p90. Zones are those of the true TTFT, except for
`coverage_predicted`, which goes by the predicted median: the zone known when a decision is made.

Rank accuracy: candidate sets are made of CANDIDATES samples that were decided within WINDOW_S of each other, each at its own
endpoint with its own request, any two of which differ by more than APART of the smaller in true TTFT. A set is right where
the sample with the least predicted median is the one with the least true TTFT, and belongs to its fastest sample's zone.
Sets are drawn from a seed, at most SETS_MAX. `rank_alike` is the same among sets whose prompts' lengths are within a factor of
ALIKE of each other: what is left to rank there is the state of the endpoints, as in a real decision.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from prediction import zones

Floats = npt.NDArray[np.float64]
Places = npt.NDArray[np.intp]

CANDIDATES = 4
WINDOW_S = 60.0
APART = 0.10
ALIKE = 1.5
SETS_MAX = 4_000
NEAR = 256
"""How many samples later another candidate of a set may be."""
DRAWS = 16
"""Sets drawn for each that is wanted: most fall to the conditions."""
NOT_KNOWN = math.nan


@dataclass(frozen=True, slots=True)
class Score:
    """Of one zone, or of all. Figures are nan where there are no samples (or no candidate sets) to judge by."""

    samples: int
    mae_s: float = NOT_KNOWN
    mape: float = NOT_KNOWN
    pinball_p50: float = NOT_KNOWN
    pinball_p90: float = NOT_KNOWN
    coverage_p90: float = NOT_KNOWN
    coverage_predicted: float = NOT_KNOWN
    rank_accuracy: float = NOT_KNOWN
    rank_alike: float = NOT_KNOWN
    rank_sets: int = 0


@dataclass(frozen=True, slots=True)
class Scores:
    """zones: in the order of zones.ZONES. predict_us: of CPU a row, in a batch of 64; nan where it was not timed."""

    zones: tuple[Score, Score, Score]
    overall: Score
    predict_us: float = NOT_KNOWN


def pinball(log_truth: Floats, log_predicted: Floats, quantile: float) -> Floats:
    """Loss of each sample, log seconds."""
    error = log_truth - log_predicted
    return np.maximum(quantile * error, (quantile - 1) * error)


def candidate_sets(ttft_s: Floats, decided_at: Floats, rng: np.random.Generator, *, lengths: Floats | None = None) -> Places:
    """Indices (sets, CANDIDATES). Samples are ordered by decided_at; lengths: keep only sets of prompts alike in these."""
    count = len(ttft_s)
    if count < CANDIDATES:
        return np.empty((0, CANDIDATES), dtype=np.intp)
    first = rng.integers(0, count, SETS_MAX * DRAWS)
    others = first[:, None] + rng.integers(1, NEAR, (len(first), CANDIDATES - 1))
    drawn = np.column_stack([first, others])
    drawn = drawn[drawn.max(axis=1) < count]
    drawn = drawn[np.abs(decided_at[drawn] - decided_at[drawn[:, :1]]).max(axis=1) <= WINDOW_S]
    truth = np.sort(ttft_s[drawn], axis=1)
    drawn = drawn[(truth[:, 1:] > (1 + APART) * truth[:, :-1]).all(axis=1)]
    if lengths is not None:
        longest, shortest = lengths[drawn].max(axis=1), lengths[drawn].min(axis=1)
        drawn = drawn[longest <= ALIKE * np.maximum(shortest, 1.0)]
    sets: Places = drawn[:SETS_MAX]
    return sets


def score(
    ttft_s: Floats,
    p50_s: Floats,
    p90_s: Floats,
    decided_at: Floats,
    *,
    lengths: Floats | None = None,
    seed: int = 0,
    predict_us: float = NOT_KNOWN,
) -> Scores:
    """All of shape (n,), ordered by decided_at. lengths: prompt tokens, for rank_alike."""
    rng = np.random.default_rng(seed)
    sets = candidate_sets(ttft_s, decided_at, rng)
    right, where = _ranked(sets, ttft_s, p50_s)
    alike = candidate_sets(ttft_s, decided_at, rng, lengths=lengths) if lengths is not None else sets[:0]
    alike_right, alike_where = _ranked(alike, ttft_s, p50_s)
    true_zone, predicted_zone = zones.of(ttft_s), zones.of(p50_s)

    def of(zone: int | None) -> Score:
        def inside(of_what: npt.NDArray[np.intp]) -> npt.NDArray[np.bool_]:
            return np.full(len(of_what), True) if zone is None else of_what == zone

        return _score(
            ttft_s,
            p50_s,
            p90_s,
            inside(true_zone),
            inside(predicted_zone),
            right[inside(where)],
            alike_right[inside(alike_where)],
        )

    return Scores((of(0), of(1), of(2)), of(None), predict_us)


def _ranked(sets: Places, ttft_s: Floats, p50_s: Floats) -> tuple[npt.NDArray[np.bool_], Places]:
    """Of each set, whether its fastest was put first, and the fastest one's zone."""
    if not len(sets):
        return np.empty(0, dtype=np.bool_), np.empty(0, dtype=np.intp)
    fastest = ttft_s[sets].argmin(axis=1)
    right = p50_s[sets].argmin(axis=1) == fastest
    return right, zones.of(ttft_s[sets].min(axis=1))


def _score(
    ttft_s: Floats,
    p50_s: Floats,
    p90_s: Floats,
    inside: npt.NDArray[np.bool_],
    predicted_inside: npt.NDArray[np.bool_],
    right: npt.NDArray[np.bool_],
    alike_right: npt.NDArray[np.bool_],
) -> Score:
    covered = ttft_s <= p90_s
    ranks = {"rank_accuracy": _mean(right), "rank_alike": _mean(alike_right), "rank_sets": len(right)}
    by_predicted = _mean(covered[predicted_inside])
    truth, p50, p90 = ttft_s[inside], p50_s[inside], p90_s[inside]
    if not len(truth):
        return Score(0, coverage_predicted=by_predicted, **ranks)  # type: ignore[arg-type]
    error = np.abs(p50 - truth)
    log_truth = np.log(truth)
    return Score(
        samples=len(truth),
        mae_s=_mean(error),
        mape=_mean(error / truth),
        pinball_p50=_mean(pinball(log_truth, np.log(p50), 0.5)),
        pinball_p90=_mean(pinball(log_truth, np.log(p90), 0.9)),
        coverage_p90=_mean(covered[inside]),
        coverage_predicted=by_predicted,
        **ranks,  # type: ignore[arg-type]
    )


def _mean(values: npt.NDArray[Any]) -> float:
    return float(np.mean(values)) if len(values) else NOT_KNOWN
