"""A whole control plane that decides by a model: what is recorded, explained, refused and learned."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from contract.outcome import End
from controlplane import profiles, rankers, ranking, wire
from controlplane.predictor import Forecaster
from controlplane.question import Decision, Shed, ShedReason
from controlplane.rankers import LeastPredicted
from headway.explain import render
from prediction import predictor
from prediction.bundle import Bundle
from tests.controlplane.models import linear
from tests.controlplane.parts import Plant, question, report


class PredictingPlant(Plant):
    def __init__(self, bundle: Bundle | None, *, policy: str = "predictive", workers: int = 2) -> None:
        self.forecaster = Forecaster()
        if bundle is not None:
            self.forecaster.swap(predictor.load(bundle), bundle.manifest.model_id)
        self.ranker = LeastPredicted(self.forecaster)
        built = profiles.build(predicted=self.ranker)
        super().__init__(workers, policy=policy, profiles=built, predicted=self.ranker)

    def running(self, *counts: int) -> None:
        """What the engines last said."""
        for number, count in enumerate(counts):
            self.snapshot.worker_reported(report(f"w{number}", running=count), self.now)

    def first_token(self, decision: Decision, ttft_s: float) -> None:
        self.director.first_byte(decision.decision_id, ttft_s, self.now)


def test_the_prediction_that_decided_is_in_the_decision_and_in_the_outcome() -> None:
    plant = PredictingPlant(linear("m-7", per="running"))
    plant.running(3, 1)
    decision = plant.place()
    assert decision.candidate.endpoint.worker == "w1"
    assert decision.predicted_ttft_s == pytest.approx(0.2)
    assert decision.predicted_p90_s == pytest.approx(0.4)
    assert decision.reason.startswith("first token in 0.2 s, p90 0.4 s: ")
    plant.end(decision, ttft_s=0.3, streamed=True)
    (outcome,) = plant.outcomes
    assert (outcome.model_id, outcome.policy) == ("m-7", "predictive")
    assert outcome.predicted_ttft_s == pytest.approx(0.2)
    assert outcome.predicted_p90_s == pytest.approx(0.4)


def test_a_decision_that_fell_back_says_why_and_predicts_nothing() -> None:
    plant = PredictingPlant(None)
    decision = plant.place()
    assert decision.predicted_ttft_s == 0.0
    assert decision.reason.startswith(f"not by prediction ({ranking.NO_MODEL}): ")
    plant.end(decision, ttft_s=0.3, streamed=True)
    assert (plant.outcomes[0].model_id, plant.outcomes[0].predicted_ttft_s, plant.outcomes[0].predicted_p90_s) == ("", -1, -1)


def test_an_explanation_shows_median_p90_and_correction_of_each_candidate() -> None:
    plant = PredictingPlant(linear("m-7", per="running"))
    plant.running(1, 3)
    for number in range(30):
        decision = plant.place(question_id=number)
        plant.first_token(decision, 0.3)
        plant.end(decision)
        plant.director.tick(plant.now, connected=True)
    plant.place(question_id=99)
    trace = plant.ring.get(0)
    assert trace is not None
    told = wire.explanation(trace)
    assert told.model_id == "m-7"
    by_worker = {candidate.worker: candidate for candidate in told.candidates}
    assert by_worker["w0"].correction == pytest.approx(1.5, rel=0.1)
    assert by_worker["w0"].predicted_ttft_s == pytest.approx(0.3, rel=0.1)
    assert by_worker["w0"].predicted_p90_s == pytest.approx(0.6, rel=0.1)
    console = Console(width=200, file=io.StringIO(), record=True)
    console.print(render(told))
    text = console.export_text()
    assert "predicted by m-7" in text
    assert f"x {by_worker['w0'].correction:.2f}" in text


def test_every_decision_sees_the_reservations_before_it() -> None:
    plant = PredictingPlant(linear(per="active"), workers=4)
    chosen = [plant.place(question_id=number).candidate.endpoint.worker for number in range(8)]
    assert sorted(chosen) == sorted([f"w{number}" for number in range(4)] * 2)


def test_first_tokens_teach_with_the_next_tick_whatever_the_policy() -> None:
    plant = PredictingPlant(linear(power=0.0), policy="round_robin", workers=1)
    for number in range(20):
        decision = plant.place(question_id=number)
        plant.first_token(decision, 0.25)
        plant.end(decision)
    assert plant.forecaster.factor(plant.endpoint()) == 1.0
    for _ in range(3):
        plant.pass_time(0.25)
    assert plant.forecaster.factor(plant.endpoint()) == pytest.approx(2.5, rel=0.15)


def test_a_response_that_did_not_stream_teaches_nothing() -> None:
    plant = PredictingPlant(linear(power=0.0), workers=1)
    for number in range(20):
        plant.end(plant.place(question_id=number), End.COMPLETE, e2e_s=30.0)
    plant.pass_time(1.0)
    assert plant.forecaster.factor(plant.endpoint()) == 1.0


@pytest.mark.parametrize("policy", ["predictive", "lmetric"])
def test_a_bound_below_every_predicted_median_is_refused_at_once(policy: str) -> None:
    plant = PredictingPlant(linear(median_s=1.0, per="running"), policy=policy)
    plant.running(1, 3)
    refused = plant.ask(question(1, slo_ttft_ms=1900.0))
    assert isinstance(refused, Shed)
    assert refused.reason == ShedReason.SLO_UNREACHABLE
    assert "the soonest is 2.00 s" in refused.message
    assert isinstance(plant.ask(question(1, slo_ttft_ms=2100.0), question_id=2), Decision)


def test_an_unsure_model_refuses_nobody() -> None:
    plant = PredictingPlant(linear(median_s=5.0, p90_ratio=2 * rankers.RATIO_MAX))
    assert isinstance(plant.ask(question(1, slo_ttft_ms=100.0)), Decision)


def test_a_worker_that_is_gone_for_good_is_forgotten_by_the_rankers() -> None:
    plant = PredictingPlant(linear(), workers=2)
    for number in range(2):
        decision = plant.place(question_id=number)
        plant.first_token(decision, 0.2)
        plant.end(decision)
    plant.pass_time(0.5)
    plant.snapshot.worker_left("w1", plant.now)
    plant.pass_time(700.0, step_s=0.9, silent=("w1",))
    plant.place(question_id=9)
    assert set(plant.forecaster.corrections()) == {"w0"}


def test_a_wide_prediction_is_shown_and_counted_and_does_not_decide() -> None:
    plant = PredictingPlant(linear("m-7", per="running", p90_ratio=rankers.RATIO_MAX * 1.1))
    plant.running(3, 1)
    decision = plant.place()
    assert decision.fell_back == ranking.WIDE
    trace = plant.ring.get(0)
    assert trace is not None
    console = Console(width=200, file=io.StringIO(), record=True)
    console.print(render(wire.explanation(trace)))
    text = console.export_text()
    assert f"not by prediction ({ranking.WIDE})" in text
    assert "predicted by m-7" in text
    assert plant.ranker.tally.fell_back == {ranking.WIDE: 1}
    assert plant.ranker.tally.ranked == 0
