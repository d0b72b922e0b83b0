"""Rows of a few candidates in a model's own memory are those made for many."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.candidates import candidates_of
from controlplane.endpoint import Candidate
from controlplane.feature_rows import Rows
from controlplane.few_rows import FEW_MAX, Spot, still, write
from controlplane.ledger import Load, Reserved, attention_pairs
from controlplane.predictor import ALONE_MAX, Floats, Forecaster
from prediction import derive
from prediction.few import Few
from prediction.predictor import Calibrated
from tests.controlplane.parts import MODEL, Plant, question
from tests.controlplane.test_feature_rows import questions
from tests.trainer.traffic import samples
from trainer.train import train


@pytest.fixture(scope="module")
def model() -> Calibrated:
    made = train(samples(600, 1), kind="lightgbm", model_id="few-1", seed=1, now_unix=0.0).predictor
    assert isinstance(made, Calibrated)
    return made


def few_of(model: Calibrated) -> Few:
    made = model.few(FEW_MAX)
    assert made is not None
    return made


@given(questions())
def test_columns_and_starts_are_those_of_derive(model: Calibrated, candidates: list[Candidate]) -> None:
    few = few_of(model)
    starts = [write(few, place, one, still(one.standing)) for place, one in enumerate(candidates)]
    columns = derive.inputs(Rows().of_one(candidates))
    with np.errstate(invalid="ignore"):  # queues whose head is more than all of them have no estimate
        expected = derive.log_estimate(columns)
    written = np.frombuffer(bytes(few.rows))[: columns.size].reshape(columns.shape)
    assert np.array_equal(written, columns)
    assert starts == pytest.approx(expected.tolist(), rel=1e-12, nan_ok=True)


@given(questions(), st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(0, 1 << 20)), max_size=4), st.integers(0, 5))
def test_a_spot_goes_with_what_is_placed_there(
    model: Calibrated, candidates: list[Candidate], prompts: list[tuple[int, int]], bound: int
) -> None:
    """prompts: (uncached, matched) tokens of those placed before; the rows are those of candidates that know of them."""
    single = model.single(ALONE_MAX)
    assert single is not None
    for place, one in enumerate(candidates):
        there = one.standing if not prompts else msgspec.structs.replace(one.standing, planned=None)
        spot = Spot(single.rows, place, there, one.now, one.token_at)
        spot.asked(7, 3, bound)
        for uncached, matched in prompts:
            spot.placed(uncached + matched, uncached)
        if prompts:
            came = [_reserved(uncached, uncached + matched, one.now) for uncached, matched in prompts]
            pairs = sum(reservation.pairs for reservation in came)
            sums = [sum(column) for column in zip(*prompts, strict=True)]
            there = there.plus(len(came), sums[0], pairs, sum(sums), came[0])
        row = msgspec.structs.replace(one, standing=there)
        start = spot.asked(one.input_tokens, one.matched_tokens, one.max_tokens)
        columns = derive.inputs(Rows().of_one([row]))
        with np.errstate(invalid="ignore"):
            expected = derive.log_estimate(columns)
        width = columns.nbytes
        written = np.frombuffer(bytes(single.rows[place * width : (place + 1) * width]))
        assert np.allclose(written, columns[0], rtol=1e-9, atol=1e-9)
        assert [start] == pytest.approx(expected.tolist(), rel=1e-9, nan_ok=True)
        assert spot.unknown == bool(derive.speed_unknown(Rows().of_one([row]))[0])


def _reserved(uncached_tokens: int, input_tokens: int, now: float) -> Reserved:
    pairs = attention_pairs(uncached_tokens, input_tokens)
    return Reserved(1, "", "", 0, uncached_tokens, input_tokens, now, None, Load(), pairs)


class Plain:
    """The model without its way for few."""

    def __init__(self, model: Calibrated) -> None:
        self._model = model

    def predict(self, rows: Floats) -> tuple[Floats, Floats]:
        return self._model.predict(np.ascontiguousarray(rows))


@pytest.mark.parametrize("workers", [1, 3, FEW_MAX])
def test_a_forecast_is_the_same_either_way(workers: int, model: Calibrated) -> None:
    """From decision to decision, each of which changes an endpoint."""
    plant = Plant(workers)
    lane = plant.snapshot.lane(MODEL)
    assert lane is not None
    short, plain = Forecaster(model, "m"), Forecaster(Plain(model), "m")
    assert (short.alone_max, plain.alone_max) == (ALONE_MAX, 0)
    for number in range(30):
        asked = question(*range(1, 2 + number % 9), max_tokens=number)
        candidates = candidates_of(lane, asked.request, {}, plant.now)
        plant.place(asked, question_id=number)
        plant.now += 0.01
        first, second = short.forecast(candidates), plain.forecast(candidates)
        assert first is not None
        assert second is not None
        assert first.p50_s == pytest.approx(second.p50_s, rel=1e-12)
        assert first.p90_s == pytest.approx(second.p90_s, rel=1e-12)
        assert first.factors == second.factors


def test_another_model_is_asked_from_the_swap_on(model: Calibrated) -> None:
    plant = Plant(2)
    lane = plant.snapshot.lane(MODEL)
    assert lane is not None
    candidates = candidates_of(lane, question(1, 2).request, {}, plant.now)
    other = train(samples(600, 2), kind="lightgbm", model_id="few-2", seed=2, now_unix=0.0).predictor
    forecaster = Forecaster(model, "m-1")
    before = forecaster.forecast(candidates)
    forecaster.swap(other, "m-2")
    after = forecaster.forecast(candidates)
    assert before is not None
    assert after is not None
    assert before.p50_s != after.p50_s
    fresh = Forecaster(other, "m-2").forecast(candidates)
    assert fresh is not None
    assert after.p50_s == fresh.p50_s


def test_what_was_foreseen_is_what_it_would_have_been_alone(model: Calibrated) -> None:
    """Between the two bounds: together where they were scored together, by the way for few where they were not."""
    plant = Plant(ALONE_MAX + 4)
    lane = plant.snapshot.lane(MODEL)
    assert lane is not None
    candidates = candidates_of(lane, question(1, 2, 3).request, {1: 2}, plant.now)
    together, alone = Forecaster(model, "m"), Forecaster(model, "m")
    together.foresee(candidates)
    first, second = together.forecast(candidates), alone.forecast(candidates)
    assert first is not None
    assert second is not None
    assert first.p50_s == pytest.approx(second.p50_s, rel=1e-12)
    assert first.p90_s == pytest.approx(second.p90_s, rel=1e-12)
