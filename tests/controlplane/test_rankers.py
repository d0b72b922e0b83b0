"""What each predicting profile does: with a model, without one, where it is unsure, and in which layer."""

from __future__ import annotations

import math
from random import Random

import numpy as np
import pytest

from contract.features import FEATURES
from controlplane import profiles, rankers, ranking
from controlplane.endpoint import Candidate, features
from controlplane.online import OnlineLinear
from controlplane.picker import Turn
from controlplane.predictor import Forecaster, Rows, Sample, residuals
from controlplane.profiles import Profile
from controlplane.rankers import Layered, LeastOnline, LeastPredicted
from controlplane.scheduler import Choice, explain, schedule
from prediction import predictor
from prediction.bundle import Bundle
from tests.controlplane.models import linear
from tests.controlplane.parts import candidate, question, record


def serving(bundle: Bundle | None = None) -> tuple[Forecaster, LeastPredicted, Profile]:
    forecaster = Forecaster()
    if bundle is not None:
        forecaster.swap(predictor.load(bundle), bundle.manifest.model_id)
    ranker = LeastPredicted(forecaster)
    return forecaster, ranker, profiles.build(predicted=ranker)["predictive"]


def choose(profile: Profile, rows: list[Candidate], seed: int = 1) -> Choice:
    choice = schedule(profile, rows, question(1).request, Turn(Random(seed)))
    assert isinstance(choice, Choice), choice
    return choice


def sample(row: Candidate, ttft_s: float) -> Sample:
    return Sample(row, ttft_s, row.endpoint.record)


def test_rows_are_the_features_in_order_whatever_was_there_before() -> None:
    rows = Rows()
    many = [candidate(slot, input_tokens=1000 + slot, prefill_pairs=0.5, kv_usage=0.25) for slot in range(100)]
    assert rows.of(many).tolist() == [features(row) for row in many]
    few = many[7:9]
    matrix = rows.of(few)
    assert matrix.shape == (2, len(FEATURES))
    assert matrix.flags.c_contiguous
    assert matrix.tolist() == [features(row) for row in few]


def test_the_least_predicted_is_chosen_even_against_lmetric() -> None:
    _, _, profile = serving(linear(per="running"))
    rows = [candidate(0, running=9), candidate(1, running=2, prefill_tokens=50_000)]
    choice = choose(profile, rows)
    assert choice.candidate.slot == 1
    assert choice.ranking is not None
    assert choice.ranking.forecast is not None
    assert choice.ranking.forecast.p50_s == pytest.approx([1.0, 0.3])
    assert choice.ranking.forecast.p90_s == pytest.approx([2.0, 0.6])
    assert choice.ranking.forecast.model_id == "m-1"


def test_equal_predictions_are_told_apart_by_lmetric() -> None:
    _, _, profile = serving(linear(per="running"))
    rows = [candidate(0, prefill_tokens=900), candidate(1, prefill_tokens=10), candidate(2, running=1)]
    assert choose(profile, rows).candidate.slot == 1


def test_without_a_model_lmetric_decides_and_the_choice_says_so() -> None:
    _, ranker, profile = serving()
    choice = choose(profile, [candidate(0, prefill_tokens=900), candidate(1, prefill_tokens=10)])
    assert choice.candidate.slot == 1
    assert choice.ranking is not None
    assert choice.ranking.reason == ranking.NO_MODEL
    assert ranker.tally.fell_back == {ranking.NO_MODEL: 1}
    assert ranker.tally.ranked == 0


def test_a_wide_prediction_leaves_the_decision_to_lmetric() -> None:
    _, ranker, profile = serving(linear(per="running", p90_ratio=rankers.RATIO_MAX * 1.1))
    choice = choose(profile, [candidate(0, running=0, prefill_tokens=900), candidate(1, running=5, prefill_tokens=10)])
    assert choice.candidate.slot == 1
    assert choice.ranking is not None
    assert choice.ranking.reason == ranking.WIDE
    assert ranker.tally.fell_back == {ranking.WIDE: 1}


def test_a_worker_whose_residuals_scatter_leaves_the_decision_to_lmetric() -> None:
    forecaster, _, profile = serving(linear(per="running"))
    wild = candidate(0)
    for turn in range(200):
        forecaster.learn([sample(wild, 0.1 * math.exp(1.3 * (-1) ** turn))])
    choice = choose(profile, [wild, candidate(1, running=90, prefill_tokens=900)])
    assert choice.ranking is not None
    assert choice.ranking.reason == ranking.UNSTEADY


def test_a_worker_that_turned_slow_is_avoided_by_its_correction() -> None:
    forecaster, _, profile = serving(linear(per="running"))
    slow, steady = candidate(0), candidate(1, running=1)
    assert choose(profile, [slow, steady]).candidate.slot == 0
    for _ in range(10):
        forecaster.learn([sample(slow, 0.25), sample(steady, 0.2)])
    choice = choose(profile, [slow, steady])
    assert choice.candidate.slot == 1
    assert choice.ranking is not None
    assert choice.ranking.forecast is not None
    assert choice.ranking.forecast.factors == pytest.approx([2.5, 1.0], rel=0.2)


def test_an_engine_that_restarted_is_not_held_to_what_the_one_before_did() -> None:
    forecaster, _, _ = serving(linear())
    row = candidate(0)
    late = sample(row, 2.0)
    for _ in range(20):
        forecaster.learn([late])
    assert forecaster.factor(row.endpoint) > 3
    row.endpoint.record = record("w0", epoch=2)
    assert forecaster.factor(row.endpoint) == 1.0
    forecaster.learn([late])
    assert forecaster.factor(row.endpoint) == 1.0, "a first token of the run before is nobody's any more"


def test_another_model_begins_with_the_corrections_that_it_needs() -> None:
    forecaster, _, _ = serving(linear("m-1", median_s=0.1))
    row = candidate(0)
    for _ in range(50):
        forecaster.learn([sample(row, 0.25)])
    assert forecaster.factor(row.endpoint) == pytest.approx(2.5, rel=0.1)
    better = predictor.load(linear("m-2", median_s=0.25))
    forecaster.swap(better, "m-2", residuals(better, forecaster.recent()))
    assert forecaster.factor(row.endpoint) == pytest.approx(1.0, rel=0.1)
    forecast = forecaster.forecast([row])
    assert forecast is not None
    assert forecast.p50_s[0] == pytest.approx(0.25, rel=0.1)
    assert forecast.model_id == "m-2"


def test_what_is_forgotten_teaches_no_later_model() -> None:
    forecaster, _, _ = serving(linear())
    gone, here = candidate(0), candidate(1)
    forecaster.learn([sample(gone, 0.3), sample(here, 0.3)])
    forecaster.forget(gone.endpoint)
    assert [one.candidate.slot for one in forecaster.recent()] == [1]
    assert list(forecaster.corrections()) == ["w1"]


def test_a_model_that_answers_with_nonsense_decides_nothing() -> None:
    class Nonsense:
        def predict(self, rows: object) -> tuple[object, object]:
            return np.full(2, math.nan), np.full(2, math.nan)

    forecaster = Forecaster(Nonsense())  # type: ignore[arg-type]
    assert forecaster.forecast([candidate(0), candidate(1)]) is None


def test_linear_online_learns_which_worker_is_slow() -> None:
    ranker = LeastOnline()
    fast, slow = candidate(0, input_tokens=1000), candidate(1, input_tokens=1000)
    for _ in range(60):
        ranker.learn([sample(fast, 0.1), sample(slow, 0.25)])
    ranking = ranker.rank([fast, slow])
    assert ranking.forecast is not None
    assert ranking.forecast.p50_s == pytest.approx([0.1, 0.25], rel=0.1)


def test_linear_online_prefers_less_work_from_its_first_decision_on() -> None:
    profile = profiles.build()["linear_online"]
    rows = [candidate(0, input_tokens=5000, prefill_tokens=20_000), candidate(1, input_tokens=5000)]
    assert choose(profile, rows).candidate.slot == 1


# ------------------------------------------------------------------------------------------------------------ hierarchical


def layered(samples: int = 200) -> tuple[Layered, Profile]:
    """Taught that a running request costs 0.1 s and that a queued token costs 0.1 ms."""
    ranker = Layered()
    rng = Random(1)
    for _ in range(samples):
        running, queued = rng.randint(5, 60), rng.randint(10_000, 60_000)
        row = candidate(0, input_tokens=1000, running=running, prefill_tokens=queued)
        ranker.learn([sample(row, 0.1 * (1 + running))])
        idle = candidate(0, input_tokens=1000, running=1)
        ranker.learn([sample(idle, 0.05)])
    return ranker, profiles.build(layered=ranker)["hierarchical"]


def test_in_the_middle_zone_fewer_running_is_sooner_whatever_is_active() -> None:
    ranker, profile = layered()
    rows = [
        candidate(0, input_tokens=1000, running=40, prefill_tokens=40_000, active=1),
        candidate(1, input_tokens=1000, running=20, prefill_tokens=40_000, active=50),
    ]
    assert choose(profile, rows).candidate.slot == 1
    assert ranker.tally.ranked == 1


def test_at_low_load_the_least_active_is_chosen() -> None:
    ranker, profile = layered()
    rows = [candidate(0, input_tokens=1000, running=1, active=5), candidate(1, input_tokens=1000, running=2, active=2)]
    choice = choose(profile, rows)
    assert choice.candidate.slot == 1
    assert choice.ranking is not None
    assert choice.ranking.reason == ranking.OUTSIDE
    assert ranker.tally.fell_back == {ranking.OUTSIDE: 1}


def test_before_the_middle_zone_was_seen_often_enough_the_least_active_is_chosen() -> None:
    _, profile = layered(samples=20)
    rows = [
        candidate(0, input_tokens=1000, running=20, prefill_tokens=40_000, active=50),
        candidate(1, input_tokens=1000, running=40, prefill_tokens=40_000, active=1),
    ]
    choice = choose(profile, rows)
    assert choice.candidate.slot == 1
    assert choice.ranking is not None
    assert choice.ranking.reason == ranking.UNLEARNED


def test_above_the_guard_an_endpoint_gets_nothing_until_its_backlog_clears() -> None:
    _, profile = layered()
    over = candidate(0, input_tokens=1000, running=1, active=101)
    assert choose(profile, [over, candidate(1, input_tokens=1000, running=90, active=100)]).candidate.slot == 1


def test_the_middle_model_learns_from_the_middle_alone() -> None:
    ranker = Layered(low_s=1.0, high_s=10.0)
    row = candidate(0, running=3)
    ranker.learn([sample(row, 0.5), sample(row, 1.0), sample(row, 9.9), sample(row, 10.0)])
    assert ranker.middle.samples == 2
    assert isinstance(ranker.all, OnlineLinear)
    assert ranker.all.samples == 4


# ----------------------------------------------------------------------------------------------------------------- explain


def test_an_explanation_shows_what_was_predicted_of_each_candidate() -> None:
    _, _, profile = serving(linear(per="running"))
    rows = [candidate(0, running=1), candidate(1, running=9, admits=False), candidate(2, running=3)]
    ranking = choose(profile, rows).ranking
    shown = {one.candidate.slot: one for one in explain(profile, rows, question(1).request, ranking)}
    assert shown[0].predicted_p50_s == pytest.approx(0.2)
    assert shown[1].rejected_by == "breaker"
    assert shown[1].predicted_p50_s == 0.0
    assert shown[2].predicted_p50_s == pytest.approx(0.4)
    assert shown[2].predicted_p90_s == pytest.approx(0.8)
