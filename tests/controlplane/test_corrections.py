"""Corrections of predictions: bounded, quick where a worker changes, calm where it does not, fresh for another run."""

from __future__ import annotations

import math
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.corrections import FACTOR_MAX, Correction, Corrections

NOISE = 0.3


def taught(residuals: list[float], prior: float = 0.0) -> Correction:
    correction = Correction(prior)
    for residual in residuals:
        correction.add(residual)
    return correction


def noisy(log_factor: float, count: int, seed: int = 1) -> list[float]:
    rng = Random(seed)
    return [rng.gauss(log_factor, NOISE) for _ in range(count)]


@given(st.lists(st.floats(allow_nan=True, allow_infinity=True), max_size=50), st.floats(-5, 5))
def test_whatever_it_is_taught_the_factor_stays_within_its_bounds(residuals: list[float], prior: float) -> None:
    factor = taught(residuals, prior).factor
    assert 1 / FACTOR_MAX - 1e-9 <= factor <= FACTOR_MAX + 1e-9


@given(st.floats(-1.5, 1.5))
def test_a_constant_error_is_learned_to_a_few_percent(log_factor: float) -> None:
    assert taught([log_factor] * 60).log_factor == pytest.approx(log_factor, rel=0.05, abs=0.02)


@given(st.floats(-1.0, 1.0), st.integers(0, 1000))
def test_among_noise_the_mean_is_found(log_factor: float, seed: int) -> None:
    assert taught(noisy(log_factor, 200, seed)).log_factor == pytest.approx(log_factor, abs=0.3)


@pytest.mark.parametrize("seed", range(20))
def test_a_worker_that_becomes_2_5_times_slower_is_corrected_within_ten_of_its_requests(seed: int) -> None:
    correction = taught(noisy(0.0, 100, seed))
    for residual in noisy(math.log(2.5), 10, seed + 1):
        correction.add(residual)
    assert 1.7 < correction.factor < 3.7


@pytest.mark.parametrize("seed", range(20))
def test_a_worker_that_recovers_is_forgiven_within_ten(seed: int) -> None:
    correction = taught(noisy(0.0, 100, seed) + noisy(math.log(2.5), 50, seed + 1))
    for residual in noisy(0.0, 10, seed + 2):
        correction.add(residual)
    assert 0.6 < correction.factor < 1.8


def test_one_request_that_took_a_hundred_times_as_long_moves_little() -> None:
    correction = taught(noisy(0.0, 100))
    before = correction.log_factor
    correction.add(math.log(100.0))
    assert correction.log_factor - before < math.log(1.6)


def test_the_spread_says_how_far_residuals_scatter() -> None:
    calm, wild = taught([0.05 * (-1) ** n for n in range(100)]), taught([1.2 * (-1) ** n for n in range(100)])
    assert calm.spread < 0.15
    assert wild.spread > 0.9


def test_the_error_is_what_is_left_after_the_correction() -> None:
    assert taught([1.0] * 200).error < 0.02
    assert taught(noisy(1.0, 400)).error == pytest.approx(NOISE * math.sqrt(2 / math.pi), rel=0.5)


def test_a_new_worker_starts_from_its_kind_and_else_from_the_fleet() -> None:
    corrections = Corrections()
    for worker, kind, log_factor in (("a1", "A", 0.5), ("a2", "A", 0.5), ("b1", "B", -0.5)):
        for _ in range(60):
            corrections.of(worker, 1, kind).add(log_factor)
    assert corrections.of("a3", 1, "A").log_factor == pytest.approx(0.5, abs=0.02)
    assert corrections.of("c1", 1, "C").log_factor == pytest.approx(0.5 / 3, abs=0.02)


def test_nobody_known_means_no_correction() -> None:
    assert Corrections().of("w", 1, "A").factor == 1.0


def test_another_run_starts_again() -> None:
    corrections = Corrections()
    for _ in range(60):
        corrections.of("w", (1, "http://w"), "A").add(1.0)
    assert corrections.of("w", (1, "http://w"), "A").factor > 2
    assert corrections.of("w", (2, "http://w"), "A").factor == 1.0
    assert corrections.of("w", (2, "http://elsewhere"), "A").samples == 0


def test_a_prior_gives_way_to_what_the_worker_shows() -> None:
    assert taught([0.0] * 30, prior=1.0).factor == pytest.approx(1.0, abs=0.15)
