"""The breaker: its table, and what holds whatever happens."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from contract.outcome import End
from controlplane.breaker import FAILURES, Breaker, BreakerBounds, BreakerState, Evidence, evidence
from proto import fleet_pb2, routing_pb2

BOUNDS = BreakerBounds()
CLOSED, OPEN, HALF_OPEN = BreakerState.CLOSED, BreakerState.OPEN, BreakerState.HALF_OPEN


def opened(now: float = 0.0) -> Breaker:
    breaker = Breaker(BOUNDS)
    breaker.suspect(now, "a test says so")
    return breaker


def half_open() -> Breaker:
    """With its probe, number 7, under way since second 1."""
    breaker = opened()
    breaker.began(1.0, 7)
    return breaker


@pytest.mark.parametrize("end", list(End))
def test_every_end_is_evidence_of_something_or_nothing(end: End) -> None:
    expected = Evidence.SUCCESS if end == End.COMPLETE else Evidence.FAILURE if end in FAILURES else Evidence.NOTHING
    assert evidence(end) == expected


@pytest.mark.parametrize(
    "end", [End.BACK_PRESSURE, End.CLIENT_GONE, End.CALLER_ERROR, End.LOST, End.SHED, End.UNSPECIFIED], ids=lambda end: end.name
)
def test_back_pressure_and_the_callers_own_ends_never_open_it(end: End) -> None:
    breaker = Breaker(BOUNDS)
    for number in range(200):
        breaker.ended(0.01 * number, number, end)
    assert breaker.view(2.0) == CLOSED


@pytest.mark.parametrize("end", sorted(FAILURES), ids=lambda end: end.name)
def test_failures_in_a_row_open_it(end: End) -> None:
    breaker = Breaker(BOUNDS)
    for number in range(BOUNDS.failures_max):
        assert breaker.view(0.0) == CLOSED
        breaker.ended(0.0, number, end)
    assert breaker.view(0.0) == OPEN
    assert not breaker.admits(0.0)
    assert end.name in breaker.reason


def test_a_success_between_failures_starts_the_count_again() -> None:
    breaker = Breaker(BOUNDS)
    for end in [*[End.RESET] * 4, End.COMPLETE, *[End.RESET] * 4]:
        breaker.ended(0.0, 1, end)
    assert breaker.view(0.0) == CLOSED


def test_a_high_failure_rate_opens_it_though_no_run_is_long() -> None:
    breaker = Breaker(BOUNDS)
    ends = [End.RESET, End.RESET, End.COMPLETE] * 7
    for number, end in enumerate(ends):
        breaker.ended(0.1 * number, number, end)
    assert breaker.view(2.2) == OPEN


def test_failures_outside_the_window_are_forgotten() -> None:
    breaker = Breaker(BOUNDS)
    for second in range(0, 400, BOUNDS.window_s + 1):
        for end in (End.RESET, End.RESET, End.COMPLETE):
            breaker.ended(float(second), 1, end)
    assert breaker.view(400.0) == CLOSED


# What happens to a breaker that holds off since second 0 (until second 1), and to one whose probe is number 7.
TABLE = [
    ("closed admits", Breaker(BOUNDS), 0.0, None, CLOSED, True),
    ("open admits none before its hold-off is over", opened(), 0.99, None, OPEN, False),
    ("open turns half open by time alone", opened(), 1.0, None, HALF_OPEN, True),
    ("half open admits one only", half_open(), 1.5, None, HALF_OPEN, False),
    ("a probe that fails opens it", half_open(), 1.5, (7, End.TIMED_OUT), OPEN, False),
    ("a probe that completes closes it", half_open(), 1.5, (7, End.COMPLETE), CLOSED, True),
    ("a probe whose client left makes room for another", half_open(), 1.5, (7, End.CLIENT_GONE), HALF_OPEN, True),
    ("a probe met by back-pressure makes room for another", half_open(), 1.5, (7, End.BACK_PRESSURE), HALF_OPEN, True),
    ("an old request's success changes nothing", half_open(), 1.5, (3, End.COMPLETE), HALF_OPEN, False),
    ("an old request's failure changes nothing", half_open(), 1.5, (3, End.RESET), HALF_OPEN, False),
    ("an old request's success does not end the hold-off", opened(), 0.5, (3, End.COMPLETE), OPEN, False),
    ("an old request's failure does not prolong it", opened(), 0.5, (3, End.RESET), OPEN, False),
    ("a probe never heard of gives up its place", half_open(), 61.0, None, HALF_OPEN, True),
]


@pytest.mark.parametrize(
    ("breaker", "now", "ended", "state", "admits"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE]
)
def test_the_table(breaker: Breaker, now: float, ended: tuple[int, End] | None, state: BreakerState, admits: bool) -> None:
    if ended is not None:
        breaker.ended(now, *ended)
    assert breaker.view(now) == state
    assert breaker.admits(now) == admits


def test_the_first_token_of_the_probe_closes_it() -> None:
    breaker = half_open()
    breaker.first_byte(1.2, 3)
    assert breaker.view(1.2) == HALF_OPEN
    breaker.first_byte(1.2, 7)
    assert breaker.view(1.2) == CLOSED


def test_the_hold_off_doubles_up_to_its_bound_and_a_complete_response_resets_it() -> None:
    breaker = Breaker(BOUNDS)
    now, lengths = 0.0, []
    for number in range(8):
        breaker.suspect(now, "again")
        lengths.append(breaker.retry_after_s(now))
        now += lengths[-1]
        breaker.began(now, number)
        breaker.first_byte(now, number)
    assert lengths == [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0]
    breaker.ended(now, 8, End.COMPLETE)
    breaker.suspect(now, "again")
    assert breaker.retry_after_s(now) == 1.0


def test_another_run_of_the_engine_starts_closed() -> None:
    breaker = half_open()
    breaker.reset()
    assert breaker.view(1.5) == CLOSED
    assert breaker.reason == ""


def test_its_numbers_are_those_of_the_wire() -> None:
    assert {state.name: state.value for state in BreakerState} == {
        name: number for name, number in fleet_pb2.BreakerState.items() if number
    }
    assert {end.name: end.value for end in End if end < 100} == {
        name.removeprefix("END_"): number for name, number in routing_pb2.End.items()
    }


class BreakerMachine(RuleBasedStateMachine):
    """Requests sent, answered, failing and lost in any order: at most one probe, and a way back is always there."""

    def __init__(self) -> None:
        super().__init__()
        self.breaker = Breaker(BOUNDS)
        self.now = 0.0
        self.next_id = 1
        self.in_flight: list[int] = []
        self.probes: set[int] = set()

    @rule(seconds=st.floats(0.0, 40.0))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        if self.breaker.admits(self.now):
            self.probes.clear()  # whatever was the probe has given up its place

    @precondition(lambda self: self.breaker.admits(self.now))
    @rule()
    def send(self) -> None:
        if self.breaker.view(self.now) == HALF_OPEN:
            self.probes.add(self.next_id)
        self.breaker.began(self.now, self.next_id)
        self.in_flight.append(self.next_id)
        self.next_id += 1

    @precondition(lambda self: self.in_flight)
    @rule(data=st.data(), end=st.sampled_from(list(End)))
    def end(self, data: st.DataObject, end: End) -> None:
        number = data.draw(st.sampled_from(self.in_flight))
        self.in_flight.remove(number)
        self.breaker.ended(self.now, number, end)
        self.probes.discard(number)

    @precondition(lambda self: self.in_flight)
    @rule(data=st.data())
    def first_byte(self, data: st.DataObject) -> None:
        self.breaker.first_byte(self.now, data.draw(st.sampled_from(self.in_flight)))

    @rule()
    def suspect(self) -> None:
        self.breaker.suspect(self.now, "suspected")

    @invariant()
    def one_probe(self) -> None:
        if self.breaker.view(self.now) == HALF_OPEN:
            assert len(self.probes) <= 1, self.probes
        else:
            self.probes.clear()

    @invariant()
    def only_closed_and_half_open_admit(self) -> None:
        state = self.breaker.view(self.now)
        assert self.breaker.admits(self.now) == (state == CLOSED) or state == HALF_OPEN

    @invariant()
    def there_is_a_way_back(self) -> None:
        assert self.breaker.retry_after_s(self.now) <= max(BOUNDS.open_s_max, BOUNDS.probe_s_max) + 1e-6
        assert self.breaker.admits(self.now + self.breaker.retry_after_s(self.now) + 1e-6)

    @invariant()
    def it_gives_a_reason_unless_closed(self) -> None:
        assert bool(self.breaker.reason) == (self.breaker.view(self.now) != CLOSED)


TestBreakerMachine = BreakerMachine.TestCase
TestBreakerMachine.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)


@given(st.lists(st.sampled_from([End.COMPLETE, End.CLIENT_GONE, End.BACK_PRESSURE, End.CALLER_ERROR]), max_size=200))
def test_without_a_failure_it_stays_closed(ends: list[End]) -> None:
    breaker = Breaker(BOUNDS)
    for number, end in enumerate(ends):
        breaker.ended(0.1 * number, number, end)
        assert breaker.view(0.1 * number) == CLOSED
