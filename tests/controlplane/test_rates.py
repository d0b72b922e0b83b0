"""What an endpoint's own requests teach of its speed, and how many it computes at once."""

from __future__ import annotations

import msgspec
import pytest

from controlplane.breaker import BreakerBounds
from controlplane.ledger import Ledger
from controlplane.rates import Rates, StepClock
from controlplane.snapshot import FleetSnapshot
from tests.controlplane.parts import record, report


def taught(**options: bool) -> Rates:
    rates = Rates()
    for _ in range(50):
        rates.first_byte(0.1, work=1_000, service_s=0.1, tokens_ahead=1_000)
    for _ in range(50):
        rates.first_byte(2.0, work=1_000, service_s=2.0, tokens_ahead=1_000, **options)
    return rates


def test_waiting_for_an_answer_to_end_is_not_taken_for_slow_prefill() -> None:
    assert taught(queued_for_a_seat=True).prefill_tokens_per_s == pytest.approx(10_000)
    assert taught(queued_for_a_seat=False).prefill_tokens_per_s < 1_000


def test_where_nothing_else_is_known_the_wait_is_what_there_is() -> None:
    rates = Rates()
    rates.first_byte(2.0, work=1_000, service_s=2.0, tokens_ahead=1_000, queued_for_a_seat=True)
    assert rates.prefill_tokens_per_s == pytest.approx(500)


def test_the_hold_is_a_mean_of_the_latest_answers() -> None:
    rates = Rates()
    rates.held(-1.0, tokens=0, max_tokens=0)
    assert rates.hold_s == rates.expected_tokens(0) == 0.0
    assert rates.expected_tokens(100) == 100  # all that is known is the bound
    rates.held(4.0, tokens=80, max_tokens=0)
    assert rates.hold_s == 4.0
    assert rates.expected_tokens(0) == 80
    for _ in range(200):
        rates.held(1.0, tokens=20, max_tokens=200)
    assert rates.hold_s == pytest.approx(1.0, rel=0.02)
    assert rates.expected_tokens(1_000) == pytest.approx(100, rel=0.05)
    assert rates.expected_tokens(0) == pytest.approx(20, rel=0.05)


def test_decode_steps_are_counted_by_the_engines_tokens() -> None:
    clock = StepClock()
    start = clock.at(5.0)
    for tenth in range(101):  # ten answers, a step every 20 ms
        clock.reported(50 * tenth, 10, 100.0 + tenth / 10)
    assert clock.step_s == pytest.approx(0.02)
    assert clock.at(110.0) - start == pytest.approx(500)
    assert clock.at(110.1) - start == pytest.approx(505)  # between two reports it goes on at its pace
    clock.reported(5_050, 0, 110.1)
    assert clock.at(120.0) - start == pytest.approx(510)  # nobody is running: no steps


def test_the_step_that_is_followed_is_one_without_prefill() -> None:
    clock = StepClock()
    at, tokens = 1.0, 1
    for report_ in range(300):  # every third interval, prompts are computed and answers stand still
        at, tokens = at + 0.1, tokens + (10 if report_ % 3 == 0 else 100)
        clock.reported(tokens, 10, at)
    assert clock.step_s == pytest.approx(0.01, rel=0.2)


def test_seats_are_what_the_agent_says_or_the_most_that_ran_while_others_waited() -> None:
    snapshot = FleetSnapshot(Ledger(), BreakerBounds())
    snapshot.worker_registered(record("a"), 0.0)
    there = next(iter(snapshot.endpoints()))
    assert there.seats == 0
    for running, waiting, seats in ((40, 0, 0), (30, 2, 30), (25, 1, 30), (32, 9, 32)):
        snapshot.worker_reported(report("a", running=running, waiting=waiting), 1.0)
        assert there.seats == seats
    snapshot.worker_registered(record("a"), 2.0)  # as it does every second
    assert there.seats == 32
    snapshot.worker_registered(record("a", epoch=2), 3.0)
    assert there.seats == 0
    snapshot.worker_registered(msgspec.structs.replace(record("a", epoch=2), max_num_seqs=256), 4.0)
    assert there.seats == 256
