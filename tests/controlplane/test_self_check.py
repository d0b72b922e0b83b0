"""The self-check: when predictions are believed, and what an operator is told."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.self_check import SAMPLES_MIN, WINDOW, SelfCheck


def fed(check: SelfCheck, predicted: int, cached: int, times: int, *, epoch: int = 1, model: str = "m") -> bool:
    return [check.compare("w", epoch, model, predicted, cached) for _ in range(times)][-1]


def test_matches_that_come_true_keep_the_credit() -> None:
    check = SelfCheck()
    assert fed(check, 160, 160, 100)
    verdict = check.verdict("w", 1)
    assert (verdict.match_ratio, verdict.samples, verdict.credit, verdict.alarm) == (1.0, 100, True, "")


def test_promises_that_are_not_kept_cost_the_credit_and_raise_an_alarm() -> None:
    check = SelfCheck()
    assert fed(check, 160, 0, SAMPLES_MIN - 1)
    assert not fed(check, 160, 0, 1)
    assert "do not come true" in check.verdict("w", 1).alarm


def test_a_few_long_prefixes_that_were_evicted_in_time_are_no_sign_of_a_wrong_index() -> None:
    check = SelfCheck()
    assert fed(check, 512, 512, 100)
    assert fed(check, 100_000, 512, 5)
    verdict = check.verdict("w", 1)
    assert verdict.credit
    assert verdict.alarm == ""


def test_credit_returns_once_predictions_come_true_again() -> None:
    check = SelfCheck()
    assert not fed(check, 160, 0, WINDOW)
    assert not fed(check, 160, 160, WINDOW // 2)
    assert fed(check, 160, 160, WINDOW // 2)
    assert check.verdict("w", 1).alarm == ""


def test_promising_too_little_costs_nothing_but_is_said() -> None:
    check = SelfCheck()
    assert fed(check, 0, 160, 100)
    verdict = check.verdict("w", 1)
    assert verdict.credit
    assert verdict.match_ratio == 0.0
    assert "not predicted" in verdict.alarm


def test_cold_requests_are_no_promises() -> None:
    check = SelfCheck()
    assert fed(check, 0, 0, 150)
    assert fed(check, 160, 0, SAMPLES_MIN - 1)


def test_one_model_that_fails_withholds_the_workers_credit() -> None:
    check = SelfCheck()
    fed(check, 160, 0, 100, model="adapter")
    assert not fed(check, 160, 160, 100, model="m")
    assert check.ratios() == {("w", "adapter"): 0.0, ("w", "m"): 1.0}


def test_another_run_of_a_worker_starts_afresh() -> None:
    check = SelfCheck()
    assert not fed(check, 160, 0, 100)
    assert check.verdict("w", 2).match_ratio is None
    assert fed(check, 160, 160, 1, epoch=2)
    assert check.verdict("w", 2).samples == 1


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=3 * WINDOW))
def test_the_ratio_is_that_of_the_last_window(pairs: list[tuple[int, int]]) -> None:
    check = SelfCheck()
    for predicted, cached in pairs:
        check.compare("w", 1, "m", predicted, cached)
    recent = pairs[-WINDOW:]
    verdict = check.verdict("w", 1)
    assert verdict.samples == len(recent)
    assert verdict.match_ratio == pytest.approx(sum(predicted == cached for predicted, cached in recent) / len(recent))
