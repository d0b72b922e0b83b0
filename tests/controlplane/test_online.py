"""Online linear models: known data is recovered, change is followed, nothing explodes."""

from __future__ import annotations

import math
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contract.features import FEATURES, INDEX
from controlplane.online import (
    RUNNING_PRIOR,
    WORK_PRIOR,
    OnlineLinear,
    RecursiveLeastSquares,
    running_columns,
    work_columns,
)


def test_the_weights_of_linear_data_are_found() -> None:
    rng = np.random.default_rng(1)
    truth = np.array([1.5, -0.7, 0.3])
    squares = RecursiveLeastSquares([0.0, 0.0, 0.0])
    for row in rng.normal(size=(500, 3)):
        squares.learn(row, float(row @ truth) + float(rng.normal(0, 0.05)))
    assert squares.weights == pytest.approx(truth, abs=0.05)


def test_weights_that_change_are_followed() -> None:
    rng = np.random.default_rng(1)
    squares = RecursiveLeastSquares([0.0, 0.0])
    for truth in (np.array([1.0, 2.0]), np.array([3.0, -1.0])):
        for row in rng.normal(size=(3000, 2)):
            squares.learn(row, float(row @ truth))
    assert squares.weights == pytest.approx([3.0, -1.0], abs=0.05)


def test_the_same_row_for_ever_does_not_explode() -> None:
    squares = RecursiveLeastSquares([0.0, 0.0, 0.0])
    rng = Random(1)
    for _ in range(20_000):
        squares.learn(np.array([1.0, 0.0, 1.0]), rng.gauss(1.0, 0.1))
    assert np.all(np.isfinite(squares.weights))
    assert squares.weights @ np.array([1.0, 0.0, 1.0]) == pytest.approx(1.0, abs=0.2)


def row(**fields: float) -> np.ndarray:
    made = np.zeros(len(FEATURES))
    for name, value in fields.items():
        made[INDEX[name]] = value
    return made


def test_running_requests_and_prompt_length_are_learned_as_a_power_law() -> None:
    model = OnlineLinear(running_columns, RUNNING_PRIOR)
    rng = Random(1)
    for _ in range(2000):
        running, tokens = rng.randint(0, 200), rng.randint(10, 8000)
        truth = 0.01 * (1 + running) ** 0.8 * (1 + tokens) ** 0.4
        model.learn(row(running=running, input_tokens=tokens), truth * math.exp(rng.gauss(0, 0.05)))
    predicted, upper = model.predict(row(running=50, input_tokens=1000)[None, :])
    assert predicted[0] == pytest.approx(0.01 * 51**0.8 * 1001**0.4, rel=0.05)
    assert 1.0 < upper[0] / predicted[0] < 1.3


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.floats(0, 1e6), min_size=len(FEATURES), max_size=len(FEATURES)),
    st.floats(allow_nan=True, allow_infinity=True),
)
def test_no_row_and_no_time_makes_a_prediction_that_is_no_time(values: list[float], ttft_s: float) -> None:
    model = OnlineLinear(work_columns, WORK_PRIOR)
    model.learn(np.array(values), ttft_s)
    p50, p90 = model.predict(np.array([values]))
    assert 0 < p50[0] <= p90[0] < math.inf


def test_before_it_has_learned_more_work_takes_longer() -> None:
    model = OnlineLinear(work_columns, WORK_PRIOR)
    rows = np.array([row(input_tokens=100, uncached_tokens=100), row(input_tokens=10_000, uncached_tokens=10_000)])
    short, long = model.predict(rows)[0]
    assert 0.001 < short < long < 10
