"""The ledger: what is counted is what is there, after any interleaving."""

from __future__ import annotations

from collections import Counter

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from controlplane.ledger import RESERVATION_S_MAX, Claim, Ledger

URLS = ("http://a", "http://b")
OWNERS = ("one", "two")
GRACE_S = 10.0


def reserved(ledger: Ledger, number: int, *, owner: str = "one", url: str = URLS[0], now: float = 0.0) -> None:
    ledger.reserve(number, url, uncached_tokens=10, input_tokens=30, now=now, owner=owner, question_id=number)


def claim(number: int, url: str = URLS[0], *, seen: bool = False) -> Claim:
    return Claim(number, url, 10, 30, seen)


def figures(ledger: Ledger, url: str = URLS[0]) -> tuple[int, int, int, int]:
    load = ledger.load(url)
    return load.active, load.no_first_byte, load.prefill_tokens, load.context_tokens


def test_a_reservation_charges_and_its_end_refunds() -> None:
    ledger = Ledger()
    reserved(ledger, 1)
    assert figures(ledger) == (1, 1, 10, 30)
    assert ledger.first_byte(1, 1.0)
    assert figures(ledger) == (1, 0, 0, 30)
    assert ledger.release(1, 2.0)
    assert figures(ledger) == (0, 0, 0, 0)


def test_an_end_without_a_first_byte_refunds_the_prefill_too() -> None:
    ledger = Ledger()
    reserved(ledger, 1)
    ledger.release(1, 1.0)
    assert figures(ledger) == (0, 0, 0, 0)


def test_what_comes_twice_counts_once() -> None:
    ledger = Ledger()
    reserved(ledger, 1)
    assert ledger.first_byte(1, 1.0)
    assert ledger.first_byte(1, 1.0) is None
    assert ledger.release(1, 1.0)
    assert ledger.release(1, 1.0) is None
    assert ledger.first_byte(1, 1.0) is None


def test_a_broken_stream_keeps_its_reservations_for_the_grace_period() -> None:
    ledger = Ledger(grace_s_max=GRACE_S)
    reserved(ledger, 1)
    ledger.departed("one", 5.0)
    assert ledger.expire(5.0 + GRACE_S - 0.01) == []
    [lost] = ledger.expire(5.0 + GRACE_S)
    assert lost.decision_id == 1
    assert figures(ledger) == (0, 0, 0, 0)


def test_a_process_that_comes_back_keeps_what_it_claims_and_no_more() -> None:
    ledger = Ledger(grace_s_max=GRACE_S)
    for number in (1, 2, 3):
        reserved(ledger, number)
    ledger.departed("one", 5.0)
    lost = ledger.arrived("one", [claim(1), claim(2, seen=True)], 6.0)
    assert [reservation.decision_id for reservation in lost] == [3]
    assert figures(ledger) == (2, 1, 10, 60)
    assert ledger.expire(5.0 + 2 * GRACE_S) == []


def test_claims_of_decisions_that_nobody_knows_are_made_again_by_url() -> None:
    ledger = Ledger()
    assert ledger.arrived("one", [claim(1), claim(2, "http://new", seen=True), claim(0)], 0.0) == []
    assert figures(ledger) == (1, 1, 10, 30)
    assert figures(ledger, "http://new") == (1, 0, 0, 30)
    assert len(ledger) == 2


def test_two_claims_made_again_can_be_released_one_by_one() -> None:
    ledger = Ledger()
    ledger.arrived("one", [claim(1), claim(2)], 0.0)
    assert ledger.cancel("one", 0, 0.0) is None
    assert ledger.release(1, 1.0)
    assert ledger.release(2, 1.0)
    assert figures(ledger) == (0, 0, 0, 0)


def test_a_question_is_cancelled_by_its_own_process_only() -> None:
    ledger = Ledger()
    reserved(ledger, 1)
    assert ledger.cancel("two", 1, 0.0) is None
    assert ledger.cancel("one", 1, 0.0)
    assert ledger.cancel("one", 1, 0.0) is None


def test_question_numbers_of_a_stream_before_mean_nothing_to_the_next() -> None:
    ledger = Ledger()
    reserved(ledger, 1)
    ledger.arrived("one", [claim(1)], 1.0)
    assert ledger.cancel("one", 1, 1.0) is None
    assert len(ledger) == 1


def test_a_unary_reservation_expires_by_its_own_bound() -> None:
    ledger = Ledger(unary_s_max=60.0)
    reserved(ledger, 1, owner="")
    reserved(ledger, 2, owner="one")
    assert [lost.decision_id for lost in ledger.expire(60.0)] == [1]
    assert [lost.decision_id for lost in ledger.expire(RESERVATION_S_MAX)] == [2]


def test_a_load_with_something_active_is_not_forgotten() -> None:
    ledger = Ledger()
    reserved(ledger, 1)
    ledger.forget(URLS[0])
    assert figures(ledger)[0] == 1
    ledger.release(1, 0.0)
    ledger.forget(URLS[0])
    assert figures(ledger) == (0, 0, 0, 0)


class LedgerMachine(RuleBasedStateMachine):
    """Any interleaving of requests, ends, breaks and claims: the loads are the sums over what is reserved."""

    def __init__(self) -> None:
        super().__init__()
        self.ledger = Ledger(grace_s_max=GRACE_S, unary_s_max=100.0)
        self.now = 0.0
        self.next_id = 1
        self.ended: Counter[int] = Counter()

    def some(self, data: st.DataObject) -> int:
        """A number that is reserved, was, or never will be."""
        return data.draw(st.integers(1, self.next_id))

    def count(self, released: list[int]) -> None:
        self.ended.update(released)

    @rule(owner=st.sampled_from(("", *OWNERS)), url=st.sampled_from(URLS), uncached=st.integers(0, 50), more=st.integers(0, 50))
    def reserve(self, owner: str, url: str, uncached: int, more: int) -> None:
        self.ledger.reserve(
            self.next_id,
            url,
            uncached_tokens=uncached,
            input_tokens=uncached + more,
            now=self.now,
            owner=owner,
            question_id=self.next_id,
        )
        self.next_id += 1

    @rule(data=st.data())
    def first_byte(self, data: st.DataObject) -> None:
        self.ledger.first_byte(self.some(data), self.now)

    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        number = self.some(data)
        if self.ledger.release(number, self.now) is not None:
            self.count([number])

    @rule(data=st.data(), owner=st.sampled_from(OWNERS))
    def cancel(self, data: st.DataObject, owner: str) -> None:
        released = self.ledger.cancel(owner, self.some(data), self.now)
        if released is not None:
            self.count([released.decision_id])

    @rule(owner=st.sampled_from(OWNERS))
    def departed(self, owner: str) -> None:
        self.ledger.departed(owner, self.now)

    @rule(data=st.data(), owner=st.sampled_from(OWNERS))
    def arrived(self, data: st.DataObject, owner: str) -> None:
        own = [held for held in self.ledger if held.owner == owner]
        kept = data.draw(st.lists(st.sampled_from(own), unique_by=lambda held: held.decision_id)) if own else []
        claims = [Claim(held.decision_id, held.url, held.uncached_tokens, held.input_tokens, False) for held in kept]
        lost = self.ledger.arrived(owner, claims, self.now)
        assert {held.decision_id for held in lost} == {held.decision_id for held in own} - {c.decision_id for c in claims}
        self.count([held.decision_id for held in lost])

    @precondition(lambda self: self.next_id > 1)
    @rule(seconds=st.floats(0.0, 2 * GRACE_S))
    def expire(self, seconds: float) -> None:
        self.now += seconds
        self.count([held.decision_id for held in self.ledger.expire(self.now)])

    @invariant()
    def sums_add_up(self) -> None:
        for url in URLS:
            there = [held for held in self.ledger if held.url == url]
            waiting = [held for held in there if not held.first_byte_seen]
            assert figures(self.ledger, url) == (
                len(there),
                len(waiting),
                sum(held.uncached_tokens for held in waiting),
                sum(held.input_tokens for held in there),
            )

    @invariant()
    def everything_ends_exactly_once(self) -> None:
        assert all(times == 1 for times in self.ended.values())
        assert len(self.ledger) + len(self.ended) == self.next_id - 1


TestLedgerMachine = LedgerMachine.TestCase
TestLedgerMachine.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
