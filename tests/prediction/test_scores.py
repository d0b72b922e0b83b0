"""The figures models are judged by."""

from __future__ import annotations

import math

import numpy as np
import pytest

from prediction import scores, zones
from prediction.scores import APART, CANDIDATES, WINDOW_S, candidate_sets, pinball, score


def truth(count: int = 2_000, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return np.exp(rng.uniform(-3, 3.5, count)), np.arange(count) * 0.1


@pytest.mark.parametrize(
    ("error", "quantile", "loss"), [(1.0, 0.5, 0.5), (-1.0, 0.5, 0.5), (1.0, 0.9, 0.9), (-1.0, 0.9, 0.1), (0.0, 0.9, 0.0)]
)
def test_pinball_weighs_both_sides(error: float, quantile: float, loss: float) -> None:
    assert pinball(np.array([error]), np.array([0.0]), quantile)[0] == pytest.approx(loss)


def test_edges_belong_to_the_slower_zone() -> None:
    assert [zones.ZONES[zone] for zone in zones.of(np.array([0.999, 1.0, 9.99, 10.0]))] == ["low", "medium", "medium", "high"]
    assert list(zones.of_log(np.log([0.5, 2.0, 20.0]))) == [0, 1, 2]


def test_the_truth_itself_scores_perfectly() -> None:
    ttft_s, at = truth()
    judged = score(ttft_s, ttft_s, ttft_s, at).overall
    assert (judged.mae_s, judged.mape, judged.pinball_p50) == (0, 0, 0)
    assert (judged.coverage_p90, judged.rank_accuracy) == (1, 1)
    assert judged.rank_sets > 1_000


def test_the_reverse_of_the_truth_never_puts_the_fastest_first() -> None:
    ttft_s, at = truth()
    assert score(ttft_s, 1 / ttft_s, ttft_s, at).overall.rank_accuracy == 0


def test_chance_is_right_once_in_as_many_as_there_are_candidates() -> None:
    ttft_s, at = truth()
    guessed = np.exp(np.random.default_rng(1).uniform(0, 1, len(ttft_s)))
    assert score(ttft_s, guessed, ttft_s, at).overall.rank_accuracy == pytest.approx(1 / CANDIDATES, abs=0.05)


def test_candidates_are_near_in_time_and_apart_in_ttft() -> None:
    ttft_s, at = truth()
    sets = candidate_sets(ttft_s, at, np.random.default_rng(0))
    assert len(sets) > 100
    assert np.all(np.ptp(at[sets], axis=1) <= WINDOW_S)
    ordered = np.sort(ttft_s[sets], axis=1)
    assert np.all(ordered[:, 1:] > (1 + APART) * ordered[:, :-1])
    assert all(len(set(row)) == CANDIDATES for row in sets.tolist())


def test_alike_means_prompts_of_like_length() -> None:
    ttft_s, at = truth()
    lengths = np.random.default_rng(2).uniform(10, 1_000, len(ttft_s))
    sets = candidate_sets(ttft_s, at, np.random.default_rng(0), lengths=lengths)
    assert len(sets) > 10
    assert np.all(lengths[sets].max(axis=1) <= scores.ALIKE * lengths[sets].min(axis=1))


def test_zones_are_judged_apart_by_the_truth_and_by_the_prediction() -> None:
    ttft_s = np.array([0.5, 0.5, 5.0, 5.0])
    p50_s = np.array([0.5, 2.0, 5.0, 0.9])
    p90_s = np.array([0.6, 2.5, 4.0, 6.0])
    judged = score(ttft_s, p50_s, p90_s, np.arange(4.0))
    low, medium, high = judged.zones
    assert (low.samples, medium.samples, high.samples) == (2, 2, 0)
    assert low.coverage_p90 == 1.0
    assert medium.coverage_p90 == 0.5
    assert low.coverage_predicted == 1.0  # the first and the last
    assert medium.coverage_predicted == 0.5
    assert low.mae_s == pytest.approx(0.75)
    assert math.isnan(high.mape)


def test_too_few_samples_make_no_candidate_sets() -> None:
    assert math.isnan(score(np.array([1.0]), np.array([1.0]), np.array([1.0]), np.array([0.0])).overall.rank_accuracy)
