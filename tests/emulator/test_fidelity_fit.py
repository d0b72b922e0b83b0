from __future__ import annotations

import numpy as np
import pytest

from emulator.fidelity.fit import fit
from emulator.fidelity.kernels import constants, grid
from emulator.latency import BatchingLatency

GROUPS = np.repeat(np.arange(4), 10)
LOADS = np.random.default_rng(3).uniform(1, 20, (2, 40))
TRUTH = np.array([0.5, 0.03, 7.0])
FACTORS = np.array([1.0, 1.3, 0.8, 0.95])
EVERYTHING = np.ones(40, dtype=np.bool_)


def times(x: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Two kinds of times by request; the third constant has no part in them."""
    return np.array([x[0] + x[1] * LOADS[0], x[0] + 2 * x[1] * LOADS[1]]) * v[GROUPS]


def found(observed: np.ndarray, rows: np.ndarray = EVERYTHING, *, prior: float = 1e-6):
    return fit(
        lambda x, v: np.log(times(x, v) / observed),
        np.array([0.3, 0.05, 7.0]),
        np.ones(4),
        GROUPS,
        rows,
        free=range(3),
        iterations=30,
        prior=prior,
    )


def test_constants_and_factors_of_groups_are_found_up_to_the_unit_of_speed() -> None:
    result = found(times(TRUTH, FACTORS))
    assert result.constants[1] / result.constants[0] == pytest.approx(TRUTH[1] / TRUTH[0], rel=0.01)
    assert result.factors / result.factors[0] == pytest.approx(FACTORS / FACTORS[0], rel=0.01)


def test_a_few_requests_that_are_far_off_hardly_move_the_constants() -> None:
    observed = times(TRUTH, FACTORS)
    observed[:, ::13] *= 20
    result = found(observed)
    assert result.constants[1] / result.constants[0] == pytest.approx(TRUTH[1] / TRUTH[0], rel=0.1)


def test_requests_left_out_have_no_say_and_their_group_keeps_its_factor() -> None:
    observed = times(TRUTH, FACTORS)
    observed[:, GROUPS == 3] *= 50
    result = found(observed, GROUPS != 3)
    assert result.factors[3] == 1.0
    assert result.constants[1] / result.constants[0] == pytest.approx(TRUTH[1] / TRUTH[0], rel=0.01)


def test_a_constant_that_changes_nothing_stays_where_it_was() -> None:
    assert found(times(TRUTH, FACTORS)).constants[2] == pytest.approx(7.0)


def test_step_constants_come_back_from_the_steps_they_made() -> None:
    truth = BatchingLatency(
        step_s_base=6e-3,
        prefill_s_base=0.0,
        prefill_s_per_token=2e-5,
        attention_s_per_pair=1e-9,
        decode_s_per_sequence=3e-5,
        context_s_per_token=5e-8,
        tokens_in_base=192,
    )
    again = constants(truth.step_s, grid(8_192, 256))
    assert again.tokens_in_base == 192
    for name in ("step_s_base", "prefill_s_per_token", "attention_s_per_pair", "decode_s_per_sequence", "context_s_per_token"):
        assert getattr(again, name) == pytest.approx(getattr(truth, name), rel=0.02), name
