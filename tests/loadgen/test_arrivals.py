from __future__ import annotations

import math
import statistics
from itertools import islice, pairwise, takewhile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen import arrivals
from runtime import rng


def gaps(times: list[float]) -> list[float]:
    return [after - before for before, after in pairwise([0.0, *times])]


def test_recorded_times_start_at_zero_and_shrink_with_the_speed() -> None:
    assert list(arrivals.recorded([10.0, 12.0, 16.0], speed=2.0)) == [0.0, 1.0, 3.0]


def test_groups_of_equal_times_are_spread_up_to_the_next_time_and_the_last_one_like_its_predecessor() -> None:
    assert arrivals.smooth([0.0, 0.0, 0.0, 3.0, 5.0, 5.0]) == [0.0, 1.0, 2.0, 3.0, 5.0, 6.0]


@given(st.lists(st.integers(0, 20), max_size=50))
def test_smoothing_keeps_count_and_order_and_never_moves_an_arrival_earlier_or_past_the_next_group(steps: list[int]) -> None:
    at = sorted(float(step) for step in steps)
    spread = arrivals.smooth(at)
    assert len(spread) == len(at)
    assert spread == sorted(spread)
    for before, after in zip(at, spread, strict=True):
        later = [value for value in at if value > before]
        assert before <= after
        assert not later or after < later[0]


def test_poisson_gaps_have_the_mean_and_the_spread_of_an_exponential() -> None:
    n = 20_000
    taken = gaps(list(islice(arrivals.process("poisson", arrivals.steady(5.0), rng=rng.stream(1, "a")), n)))
    mean = statistics.fmean(taken)
    assert abs(mean - 0.2) < 4 * 0.2 / math.sqrt(n)
    assert abs(statistics.stdev(taken) / mean - 1.0) < 4 * math.sqrt(2 / n)


@pytest.mark.parametrize("cv", [0.5, 2.0, 3.0])
def test_gamma_gaps_have_the_asked_mean_and_coefficient_of_variation(cv: float) -> None:
    n = 40_000
    taken = gaps(list(islice(arrivals.process("gamma", arrivals.steady(10.0), rng=rng.stream(2, "a"), cv=cv), n)))
    mean = statistics.fmean(taken)
    assert abs(mean - 0.1) < 4 * 0.1 * cv / math.sqrt(n)
    # relative error of a sample CV: sqrt((kurtosis - 1) / 4n + cv^2 / n), with the gamma's kurtosis 3 + 6 cv^2
    assert abs(statistics.stdev(taken) / mean / cv - 1) < 4 * math.sqrt((2 + 6 * cv * cv) / (4 * n) + cv * cv / n)


def test_constant_arrivals_are_evenly_spaced_from_zero() -> None:
    assert list(islice(arrivals.process("constant", arrivals.steady(4.0), rng=rng.stream(0, "a")), 3)) == [0.0, 0.25, 0.5]


def test_a_ramp_brings_as_many_arrivals_as_the_area_under_its_rate() -> None:
    profile = arrivals.parse_rate("1-10:60")
    times = list(takewhile(lambda at: at <= 60.0 + 1e-9, arrivals.process("constant", profile, rng=rng.stream(0, "a"))))
    assert len(times) == 330 + 1
    first, last = sum(at < 10 for at in times), sum(at > 50 for at in times)
    assert abs(first - (1 + 17.5)) <= 1  # 10 s at 1 to 2.5 a second, and the one at 0
    assert abs(last - 92.5) <= 1


@given(
    st.lists(st.tuples(st.floats(0.1, 50), st.floats(0.1, 50), st.floats(0.5, 100)), min_size=1, max_size=5),
    st.floats(0, 1),
)
def test_the_time_of_an_arrival_inverts_the_area_under_the_rate(parts: list[tuple[float, float, float]], share: float) -> None:
    profile = arrivals.RateProfile(tuple(arrivals.Segment(*part) for part in parts))
    wanted = share * sum(segment.arrivals for segment in profile.segments)
    at, area = profile.time_of(wanted), 0.0
    for segment in profile.segments:
        inside = min(max(at, 0.0), segment.duration_s)
        slope = (segment.end - segment.begin) / segment.duration_s
        area += segment.begin * inside + slope * inside * inside / 2
        at -= segment.duration_s
    assert area == pytest.approx(wanted, rel=1e-6, abs=1e-6)


def test_equal_seeds_give_equal_times_and_other_seeds_other_ones() -> None:
    def times(seed: int) -> list[float]:
        return list(islice(arrivals.process("poisson", arrivals.steady(1.0), rng=rng.stream(seed, "arrivals")), 5))

    assert times(7) == times(7) != times(8)


@pytest.mark.parametrize("text", ["", "x", "0", "-3", "5:", "1-2", "1-2:0", "5:10,0:10"])
def test_a_rate_that_is_none_is_refused_in_one_sentence(text: str) -> None:
    with pytest.raises(ValueError, match=r"rate"):
        arrivals.parse_rate(text)
