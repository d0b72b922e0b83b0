"""Several decisions of one moment, scored in one call: the same decisions as one by one, with fewer calls of the model."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest

from controlplane import director, profiles
from controlplane.predictor import Floats, Forecaster
from controlplane.question import Decision, Question
from controlplane.rankers import LeastPredicted
from prediction import predictor
from tests.controlplane.models import linear
from tests.controlplane.parts import Plant, candidate, hashes, question, report


class Counting:
    """A predictor that notes how many rows it was asked for, call by call."""

    def __init__(self, per: str = "uncached_tokens") -> None:
        self._predictor = predictor.load(linear(per=per))
        self.calls: list[int] = []

    def predict(self, rows: Floats) -> tuple[Floats, Floats]:
        self.calls.append(len(rows))
        return self._predictor.predict(np.ascontiguousarray(rows))


def planted(model: Counting, workers: int) -> Plant:
    ranker = LeastPredicted(Forecaster(model, "m-1"))
    plant = Plant(workers, policy="predictive", profiles=profiles.build(predicted=ranker), predicted=ranker)
    rng = Random(workers)
    for number in range(workers):
        plant.snapshot.worker_reported(report(f"w{number}", running=rng.randrange(5)), plant.now)
        plant.index.store(number, hashes(*range(1, 1 + rng.randrange(8))))
    return plant


def asked(count: int, seed: int = 1) -> list[tuple[int, Question]]:
    rng = Random(seed)
    return [(number, question(*range(1, 2 + rng.randrange(9)), max_tokens=rng.randrange(100))) for number in range(count)]


@pytest.mark.parametrize("per", ["uncached_tokens", "active", "prefill_tokens", "running"])
@pytest.mark.parametrize("workers", [1, 3, 8])
def test_together_or_one_by_one_the_decisions_are_the_same(per: str, workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(director, "TOGETHER_ROWS_MIN", 1)  # few rows go together, too
    together, alone = (planted(Counting(per), workers) for _ in range(2))
    for seed in range(4):
        first = together.director.ask_all(asked(12, seed), together.now, owner="dp")
        second = [(number, alone.ask(one, question_id=number)) for number, one in asked(12, seed)]
        for (_, one), (_, other) in zip(first, second, strict=True):
            assert isinstance(one, Decision)
            assert isinstance(other, Decision)
            assert one.candidate.endpoint.worker == other.candidate.endpoint.worker
            assert (one.predicted_ttft_s, one.predicted_p90_s) == (other.predicted_ttft_s, other.predicted_p90_s)


def test_the_model_is_asked_once_and_then_for_the_workers_that_were_chosen() -> None:
    model = Counting("active")
    plant = planted(model, 8)
    plant.director.ask_all(asked(6), plant.now, owner="dp")
    assert model.calls[0] > 8
    assert all(rows < 8 for rows in model.calls[1:]), model.calls
    assert sum(model.calls) <= 6 * 8 + 15


def test_one_question_is_asked_for_by_itself() -> None:
    model = Counting()
    plant = planted(model, 8)
    plant.director.ask_all(asked(1), plant.now, owner="dp")
    assert model.calls == [8]


@pytest.mark.parametrize(("workers", "questions", "together"), [(8, 5, False), (8, 6, True), (24, 4, True), (1, 47, False)])
def test_few_candidates_are_scored_decision_by_decision(workers: int, questions: int, together: bool) -> None:
    model = Counting()
    plant = planted(model, workers)
    plant.director.ask_all(asked(questions), plant.now, owner="dp")
    assert (model.calls[0] > workers) is together


def test_what_is_beyond_the_bound_is_scored_decision_by_decision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(director, "TOGETHER_ROWS_MAX", 60)  # else it takes thousands
    first, second = planted(Counting(), 8), planted(Counting(), 8)
    answers = first.director.ask_all(asked(20), first.now, owner="dp")
    for (number, one), (_, alone) in zip(answers, asked(20), strict=True):
        other = second.ask(alone, question_id=number)
        assert isinstance(one, Decision)
        assert isinstance(other, Decision)
        assert (one.candidate.endpoint.worker, one.predicted_ttft_s) == (
            other.candidate.endpoint.worker,
            other.predicted_ttft_s,
        )


def test_nothing_is_kept_for_later_decisions() -> None:
    model = Counting()
    plant = planted(model, 3)
    plant.director.ask_all(asked(20), plant.now, owner="dp")
    assert model.calls[0] > 3
    before = len(model.calls)
    plant.place(asked(1)[0][1], question_id=99)
    assert model.calls[before:] == [3]


def test_another_model_does_not_answer_with_what_the_one_before_foresaw() -> None:
    forecaster = Forecaster(Counting(), "m-1")
    rows = [candidate(slot) for slot in range(3)]
    forecaster.foresee(rows)
    forecaster.swap(predictor.load(linear(median_s=7.0, power=0.0)), "m-2")
    forecast = forecaster.forecast(rows)
    assert forecast is not None
    assert forecast.p50_s == pytest.approx([7.0] * 3)
