"""When an engine would begin with one more prompt: free seats, seats that come free, and a queue that is played ahead."""

from __future__ import annotations

from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.endpoint import Endpoint
from controlplane.ledger import Ledger, Reservation
from controlplane.queue_plan import PLAYED_MAX
from controlplane.rates import Rates
from tests.controlplane.parts import endpoint

URL = "http://one"
STEP_S = 0.02
SPEED = 1_000.0


class Queue:
    """One endpoint whose decode step takes STEP_S and whose prefill makes SPEED tokens a second, on a clock the test moves."""

    def __init__(self, seats: int, *, answer_tokens: float = 100.0) -> None:
        self.now = 10.0
        self._ids = count(1)
        self.ledger = Ledger()
        rates = Rates()
        rates.prefill_tokens_per_s, rates.answer_tokens = SPEED, answer_tokens
        rates.hold_s = answer_tokens * STEP_S
        self.there: Endpoint = endpoint(0, seats=seats, load=self.ledger.load(URL), rates=rates)
        for report in range(2):
            self.there.clock.reported(100 + 100 * report, 2, self.now - 1 + report)  # 50 steps of the two answers in a second

    def place(self, tokens: int = 0) -> Reservation:
        return self.ledger.reserve(next(self._ids), URL, uncached_tokens=tokens, input_tokens=tokens, now=self.now)

    def answer(self, reservation: Reservation, steps: float) -> None:
        """Its first token is here; so many more are expected."""
        self.ledger.first_byte(reservation.decision_id, self.now)
        if steps:
            self.ledger.seated(reservation, self.there.clock.at(self.now) + steps)

    @property
    def begins_s(self) -> float:
        self.there.standing = None  # its clock and its rates are set by hand here
        return self.there.stands(self.now).beginning().wait_s(self.now)


def test_nobody_there_no_wait() -> None:
    assert Queue(seats=2).begins_s == 0.0
    assert Queue(seats=0).begins_s == 0.0


def test_where_seats_are_free_or_unknown_the_wait_is_the_queued_work() -> None:
    for seats in (0, 3):
        queue = Queue(seats=seats)
        queue.place(500)
        queue.place(100)
        assert queue.begins_s == pytest.approx(0.6, rel=0.02)  # attention on top
        queue.now += 0.3
        assert queue.begins_s == pytest.approx(0.3, rel=0.04)
        queue.now += 9.0
        assert queue.begins_s == pytest.approx(0.1, rel=0.02), "the first is overdue, the second is not begun"


def test_where_all_seats_are_taken_it_waits_for_the_first_end() -> None:
    queue = Queue(seats=2)
    for steps in (50, 30):
        queue.answer(queue.place(), steps)
    assert queue.begins_s == pytest.approx(30 * STEP_S)
    queue.now += 10 * STEP_S
    queue.there.clock.reported(220, 2, queue.now)
    assert queue.begins_s == pytest.approx(20 * STEP_S)


def test_who_queues_takes_the_seats_that_come_free_first() -> None:
    queue = Queue(seats=2, answer_tokens=100.0)
    for steps in (50, 30):
        queue.answer(queue.place(), steps)
    queue.place(200)  # sits down after 30 steps, is computed for 0.2 s, which is a step, and answers until step 131
    assert queue.begins_s == pytest.approx(50 * STEP_S + 0.2, rel=0.03)
    queue.place(100)  # after 50 steps, and then until step 152
    assert queue.begins_s == pytest.approx(131 * STEP_S + 0.2 + 0.1, rel=0.03)


def test_a_plan_that_was_extended_is_the_one_that_is_made_anew() -> None:
    queue = Queue(seats=2)
    for steps in (50, 30):
        queue.answer(queue.place(), steps)
    for tokens in (200, 10, 700, 30):
        queue.place(tokens)
        extended = queue.begins_s
        queue.there.load.plan = None
        assert queue.begins_s == pytest.approx(extended)


def test_an_end_or_a_first_token_makes_another_plan() -> None:
    queue = Queue(seats=2)
    answering = [queue.place(), queue.place()]
    for held, steps in zip(answering, (50, 30), strict=True):
        queue.answer(held, steps)
    waits = queue.place(200)
    before = queue.begins_s
    queue.ledger.release(answering[0].decision_id, queue.now)  # the one whose seat was the next request's
    assert queue.begins_s == pytest.approx(before - 20 * STEP_S)
    queue.answer(waits, 10)
    assert queue.begins_s == pytest.approx(10 * STEP_S)


def test_answers_whose_ends_nobody_knows_are_taken_to_end_evenly() -> None:
    queue = Queue(seats=3, answer_tokens=100.0)
    for _ in range(3):
        queue.answer(queue.place(), 0)
    assert queue.begins_s == pytest.approx(25 * STEP_S)


def test_of_a_queue_beyond_all_bounds_the_rest_is_reckoned() -> None:
    queue = Queue(seats=1, answer_tokens=10.0)
    queue.answer(queue.place(), 10)
    waits = []
    for _ in range(PLAYED_MAX + 50):
        queue.place(10)
        waits.append(queue.begins_s)
    assert waits == sorted(waits)
    a_turn_s = (waits[PLAYED_MAX - 1] - waits[0]) / (PLAYED_MAX - 1)
    assert waits[-1] - waits[PLAYED_MAX] == pytest.approx(49 * a_turn_s, rel=0.2)


@given(
    seats=st.integers(0, 4),
    acts=st.lists(st.tuples(st.sampled_from(("place", "answer", "end", "wait")), st.integers(0, 3_000)), max_size=40),
)
def test_whatever_happens_the_wait_is_a_time_and_one_more_request_does_not_shorten_it(
    seats: int, acts: list[tuple[str, int]]
) -> None:
    queue = Queue(seats=seats)
    waiting: list[Reservation] = []
    begun: list[Reservation] = []
    for act, amount in acts:
        if act == "wait":
            queue.now += amount / 1_000
        elif act == "place":
            before = queue.begins_s
            waiting.append(queue.place(amount))
            assert queue.begins_s >= before - 1e-9
        elif act == "answer" and waiting:
            begun.append(waiting.pop(0))
            queue.answer(begun[-1], amount % 200)
        elif act == "end" and begun:
            queue.ledger.release(begun.pop(0).decision_id, queue.now)
        assert 0.0 <= queue.begins_s < float("inf")
