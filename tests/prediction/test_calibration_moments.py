"""The p90 where samples come in moments: a few queues, each of which was off by its own, are a few samples."""

from __future__ import annotations

import numpy as np
import pytest

from prediction import calibration
from prediction.calibration import Floats

MEDIAN_S = 0.3
NOISE = 0.1


def traffic(rng: np.random.Generator, moments: int, each: int, shared: float) -> tuple[Floats, Floats, np.ndarray]:
    """Predicted log medians, true TTFTs, and the moment of each. shared: how much of the error a moment's samples have in
    common, log seconds."""
    number = np.repeat(np.arange(moments), each)
    middle = np.full(len(number), np.log(MEDIAN_S))
    off = rng.normal(0, shared, moments)[number] if shared else np.zeros(len(number))
    return middle, np.exp(middle + off + rng.normal(0, NOISE, len(number))), number


def covered(seed: int, *, told: bool, moments: int, shared: float) -> float:
    """On fresh moments of the same kind, over many draws."""
    rng = np.random.default_rng(seed)
    shares = []
    for _ in range(60):
        middle, ttft_s, number = traffic(rng, moments, 30, shared)
        fitted = calibration.fit(middle, middle, ttft_s, moments=number if told else None)
        middle, ttft_s, _ = traffic(rng, 200, 5, shared)
        shares.append(np.mean(ttft_s <= fitted.apply(middle, middle)[1]))
    return float(np.mean(shares))


def test_a_few_moments_that_were_off_by_their_own_are_not_taken_for_many_samples() -> None:
    blind, told = (covered(1, told=told, moments=10, shared=0.4) for told in (False, True))
    assert blind < 0.885
    assert 0.885 < told < 0.93


def test_samples_that_only_happen_to_be_of_one_moment_are_as_many_as_they_are() -> None:
    blind, told = (covered(2, told=told, moments=10, shared=0.0) for told in (False, True))
    assert told == pytest.approx(blind, abs=0.01)
    assert told == pytest.approx(0.9, abs=0.012)


def test_many_moments_say_enough() -> None:
    assert covered(3, told=True, moments=300, shared=0.4) == pytest.approx(0.9, abs=0.012)


def test_one_moment_alone_does_not_put_the_p90_beyond_all_that_was_seen() -> None:
    middle, ttft_s, number = traffic(np.random.default_rng(4), 1, 400, 0.0)
    fitted = calibration.fit(middle, middle, ttft_s, moments=number)
    _, p90_s = fitted.apply(middle, middle)
    assert 0.89 < np.mean(ttft_s <= p90_s) <= calibration.LEVEL_MAX + 0.01


def test_equal_residuals_are_no_error() -> None:
    middle = np.full(100, np.log(MEDIAN_S))
    fitted = calibration.fit(middle, middle, np.full(100, MEDIAN_S), moments=np.zeros(100, dtype=np.int64))
    assert fitted.apply(middle, middle)[1] == pytest.approx(np.full(100, MEDIAN_S))
