from __future__ import annotations

from random import Random

from contract.outcome import End
from controlplane.thinning import BURST_S, Thinning
from tests.controlplane.parts import Plant

PER_S = 1000


def test_below_the_rate_nothing_is_left_out() -> None:
    thinning = Thinning(PER_S)
    assert all(thinning.takes(number / (PER_S - 1)) for number in range(5 * PER_S))
    assert thinning.left_out == 0


def test_above_it_as_many_a_second_as_were_allowed() -> None:
    thinning = Thinning(PER_S)
    taken = sum(thinning.takes(number / (10 * PER_S)) for number in range(50 * PER_S))  # ten times the rate, for 5 s
    assert 5 * PER_S <= taken <= 5 * PER_S + PER_S * BURST_S + 1
    assert thinning.left_out == 50 * PER_S - taken


def test_what_is_taken_is_spread_over_the_time() -> None:
    thinning = Thinning(PER_S)
    times = [number / (10 * PER_S) for number in range(50 * PER_S) if thinning.takes(number / (10 * PER_S))]
    for second in range(5):
        assert PER_S * 0.9 <= sum(second <= at < second + 1 for at in times) <= PER_S * 1.1


def test_zero_is_no_bound() -> None:
    thinning = Thinning(0)
    assert all(thinning.takes(0.0) for _ in range(1000))
    assert thinning.takes_of(1000, 0.0) == 1000


def test_several_of_one_moment_are_as_many_one_by_one() -> None:
    rng, several, single = Random(3), Thinning(PER_S), Thinning(PER_S)
    now = 0.0
    for _ in range(2000):
        now += rng.choice((0.0, 0.002, 0.01))
        count = rng.randrange(20)
        assert several.takes_of(count, now) == sum(single.takes(now) for _ in range(count))
    assert several.left_out == single.left_out > 0


def test_records_of_complete_requests_are_thinned_and_failures_are_not() -> None:
    plant = Plant()
    plant.join("w0")
    plant.director.ends.thinning = Thinning(1)
    ends = [End.COMPLETE] * 5 + [End.CALLER_ERROR, End.COMPLETE, End.CLIENT_GONE, End.COMPLETE]
    for question_id, end in enumerate(ends, 1):
        assert plant.end(plant.place(question_id=question_id), end)
    assert [outcome.end for outcome in plant.outcomes] == [End.COMPLETE, End.CALLER_ERROR, End.CLIENT_GONE]
    assert plant.director.ends.thinning.left_out == 6
    assert plant.director.tally.ends["w0", "COMPLETE"] == 7  # counted all the same
