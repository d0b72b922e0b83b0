"""Blocks of an answer, credited to its next turn before the engine's event of them is here."""

from __future__ import annotations

from array import array

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane import answers
from controlplane.index_state import IndexState
from controlplane.prefix_index import BlockChange, PrefixIndex

PROMPT = array("Q", range(1, 11))  # ten full blocks
NEXT = PROMPT + array("Q", range(11, 16))  # the next turn: three blocks of the answer, two of the question


def an_index(announced: int, *, slots: int = 1) -> PrefixIndex:
    """Workers that announced the first blocks of the next turn."""
    index = PrefixIndex()
    for slot in range(slots):
        index.attach(slot, capacity_blocks=100, exact=True)
        index.set_state(slot, IndexState.EXACT)
        index.store(slot, NEXT[:announced])
    return index


@pytest.mark.parametrize(("announced", "credited"), [(10, 10), (11, 13), (12, 13), (13, 13), (14, 14)])
def test_the_last_blocks_of_an_answer_count_before_they_are_announced(announced: int, credited: int) -> None:
    index = an_index(announced)
    index.answered(0, PROMPT[-1], 10, 13, now=0.0)
    assert index.match(NEXT) == {0: credited}


def test_nobody_else_earns_them_and_nothing_before_the_end_of_the_prompt_does() -> None:
    index = an_index(12, slots=2)
    index.answered(0, PROMPT[-1], 10, 13, now=0.0)
    assert index.match(NEXT) == {0: 13, 1: 12}
    assert index.match(NEXT, 0b10) == {1: 12}
    assert index.match(NEXT[:12]) == {0: 12, 1: 12}
    assert index.match(NEXT[:9] + array("Q", [99, 98])) == {0: 9, 1: 9}


def test_an_answer_that_is_not_passed_back_earns_nothing() -> None:
    """As reasoning that the chat template leaves out: forty blocks were filled, and the next turn has none of them."""
    index = an_index(10)
    index.answered(0, PROMPT[-1], 10, 50, now=0.0)
    assert index.match(NEXT) == {0: 10}


def test_a_prompt_that_ends_elsewhere_in_the_chain_is_another_one() -> None:
    index = an_index(12)
    index.answered(0, PROMPT[-1], 9, 13, now=0.0)
    assert index.match(NEXT) == {0: 12}


def test_guesses_of_the_dispatch_come_first() -> None:
    index = an_index(4)
    index.speculate(0, PROMPT, now=0.0)
    index.answered(0, PROMPT[-1], 10, 11, now=0.1)
    assert index.match(NEXT) == {0: 10}
    assert index.claims == {0: 11}


def test_a_short_answer_of_which_nothing_was_announced_counts_once_such_claims_came_true() -> None:
    index = an_index(10)
    index.answered(0, PROMPT[-1], 10, 12, now=0.0)
    for _ in range(answers.TRUST_AFTER):
        assert index.match(NEXT) == {0: 10}
        assert index.claims == {0: 12}
        index.claim_judged(came_true=True)
    assert index.match(NEXT) == {0: 12}
    assert index.claims == {0: 12}
    index.claim_judged(came_true=False)
    assert index.match(NEXT) == {0: 10}


def test_each_claim_that_does_not_come_true_makes_trust_dearer() -> None:
    trust = answers.Trust()
    needed = []
    for _ in range(7):
        streak = 0
        while not trust.given:
            trust.judge(came_true=True)
            streak += 1
        needed.append(streak)
        trust.judge(came_true=False)
        assert not trust.given
    assert needed == [12, 24, 48, 96, 96, 96, 96]


def test_trust_that_is_kept_makes_up_for_what_was_broken() -> None:
    trust = answers.Trust()
    for _ in range(6):
        for _ in range(answers.TRUST_AFTER_MAX):
            trust.judge(came_true=True)
        assert trust.given
        trust.judge(came_true=False)
    for _ in range(1_000):
        trust.judge(came_true=True)
    trust.judge(came_true=False)
    for _ in range(2 * answers.TRUST_AFTER):
        assert not trust.given
        trust.judge(came_true=True)
    assert trust.given


def judge(index: PrefixIndex, *verdicts: bool) -> None:
    for came_true in verdicts:
        index.claim_judged(came_true=came_true)


def test_what_is_not_credited_is_worth_waiting_for() -> None:
    index = an_index(10, slots=2)
    assert index.awaited == answers.NEVER
    index.answered(0, PROMPT[-1], 10, 12, now=5.0)
    index.answered(0, PROMPT[-1], 10, 11, now=7.0)
    index.match(NEXT)
    assert index.awaited == 7.0 + answers.PATIENCE_S
    index.match(NEXT, 0b10)
    assert index.awaited == answers.NEVER
    index.match(PROMPT)
    assert index.awaited == answers.NEVER


def test_what_is_credited_is_not_waited_for() -> None:
    index = an_index(11)
    index.answered(0, PROMPT[-1], 10, 13, now=5.0)
    assert index.match(NEXT) == {0: 13}
    assert index.awaited == answers.NEVER
    index = an_index(10)
    judge(index, *[True] * answers.TRUST_AFTER)
    index.answered(0, PROMPT[-1], 10, 12, now=5.0)
    assert index.match(NEXT) == {0: 12}
    assert index.awaited == answers.NEVER


def test_where_some_claims_come_true_and_some_do_not_nothing_is_credited_unseen() -> None:
    """Text that does not always read back as the tokens it was written in: even an answer that began as announced."""
    index = an_index(11)
    judge(index, True, False, True)
    index.answered(0, PROMPT[-1], 10, 13, now=5.0)
    assert index.match(NEXT) == {0: 11}
    assert index.claims == {0: 13}
    assert index.awaited == 5.0 + answers.PATIENCE_S


def test_an_engines_events_are_awaited_for_as_long_as_they_have_been_taking() -> None:
    index = an_index(10)
    index.answered(0, PROMPT[-1], 10, 12, now=5.0)

    def patience_s() -> float:
        index.match(NEXT)
        return index.awaited - 5.0

    for lag_s, expected_s in ((0.004, answers.PATIENCE_S_MIN), (0.03, 0.06), (0.2, 0.4), (0.03, 0.392)):
        index.lagged(0, lag_s)
        assert patience_s() == pytest.approx(expected_s)
    for _ in range(100):
        index.lagged(0, 0.03)
    assert patience_s() == pytest.approx(0.06)
    index.lagged(7, 9.0)  # unknown


def test_where_no_claim_comes_true_nothing_is_waited_for_until_one_does() -> None:
    """Recordings that are replayed: what is sent next are other words than the engine's."""
    index = an_index(10)
    index.answered(0, PROMPT[-1], 10, 12, now=5.0)
    judge(index, *[False] * answers.RECENT)
    assert index.match(NEXT) == {0: 10}
    assert index.awaited == answers.NEVER
    judge(index, True)
    index.match(NEXT)
    assert index.awaited == 5.0 + answers.PATIENCE_S


def test_an_answer_whose_events_must_be_here_claims_nothing_more() -> None:
    """Its engine's later word was taken in, and the chain still ends before: it was not passed back as it was."""
    index = an_index(10, slots=2)
    for slot in (0, 1):
        index.answered(slot, PROMPT[-1], 10, 12, now=5.0)
    other, none = array("Q", [77]), array("Q")
    index.apply([BlockChange(0, 0, other, none, at=4.9), BlockChange(1, 0, other, none, at=5.0)])
    index.match(NEXT)
    assert index.claims == {0: 12}
    index.heard(0, 5.1)
    index.match(NEXT)
    assert (index.claims, index.awaited) == ({}, answers.NEVER)
    index.answered(0, PROMPT[-1], 10, 12, now=6.0)
    index.match(NEXT)
    assert index.claims == {0: 12}


def test_of_several_ranks_the_word_of_one_says_nothing_about_the_others() -> None:
    index = an_index(10)
    index.store(0, array("Q", [77]), rank=1)
    index.answered(0, PROMPT[-1], 10, 12, now=5.0)
    index.apply([BlockChange(0, 1, array("Q", [78]), array("Q"), at=6.0)])
    index.match(NEXT)
    assert index.claims == {0: 12}


def test_a_new_life_of_a_worker_has_not_been_heard_yet() -> None:
    index = an_index(10)
    index.answered(0, PROMPT[-1], 10, 12, now=5.0)
    index.heard(0, 9.0)
    index.clear(0)
    index.store(0, NEXT[:10])
    index.answered(0, PROMPT[-1], 10, 12, now=6.0)
    index.match(NEXT)
    assert index.claims == {0: 12}


def test_claims_are_of_the_last_question_only() -> None:
    index = an_index(10)
    index.answered(0, PROMPT[-1], 10, 12, now=0.0)
    index.match(NEXT)
    index.match(array("Q", [77, 78]))
    assert index.claims == {}


def test_it_is_forgotten_in_time_and_when_the_cache_is_emptied() -> None:
    index = an_index(12)
    index.answered(0, PROMPT[-1], 10, 13, now=5.0)
    index.expire(5.0 + answers.TTL_S - 0.01)
    assert index.match(NEXT) == {0: 13}
    index.expire(5.0 + answers.TTL_S)
    assert index.match(NEXT) == {0: 12}
    for empty in (index.clear, index.detach):
        index.answered(0, PROMPT[-1], 10, 13, now=8.0)
        assert index.match(NEXT) == {0: 13}
        empty(0)
        index.attach(0, capacity_blocks=100, exact=True)
        index.set_state(0, IndexState.EXACT)
        index.store(0, NEXT[:12])
        assert index.match(NEXT) == {0: 12}


def test_a_worker_whose_credit_is_withheld_earns_none() -> None:
    index = an_index(12)
    index.answered(0, PROMPT[-1], 10, 13, now=0.0)
    index.withhold(0, True)
    assert index.match(NEXT) == {}


def test_answers_to_one_prompt_are_told_apart_by_worker_and_length() -> None:
    index = an_index(11, slots=2)
    for slot, filled in ((0, 11), (0, 12), (1, 13), (1, 14)):
        index.answered(slot, PROMPT[-1], 10, filled, now=0.0)
    assert index.match(NEXT) == {0: 12, 1: 13}


def test_what_is_remembered_is_bounded() -> None:
    kept = answers.Answers(answers_max=3)
    for number in range(10):
        kept.add(0, number % 4, 1, 2, float(number))
        assert len(kept) == min(number + 1, 3)
    kept.expire(100.0)
    assert len(kept) == 0
    assert kept.extend(array("Q", [3, 9]), {0: 1}) == {0: 1}


@given(
    announced=st.integers(0, 15),
    ends=st.lists(st.tuples(st.integers(0, 1), st.integers(1, 15), st.integers(1, 18)), max_size=6),
)
@settings(max_examples=300, deadline=None)
def test_never_more_than_the_bound_beyond_what_is_announced(announced: int, ends: list[tuple[int, int, int]]) -> None:
    index = an_index(announced, slots=2)
    for slot, prompt, filled in ends:
        index.answered(slot, NEXT[prompt - 1], prompt, filled, now=0.0)
    found = index.match(NEXT)
    for slot in (0, 1):
        longest = max((filled for which, _, filled in ends if which == slot), default=0)
        got = found.get(slot, 0)
        assert announced <= got <= min(len(NEXT), max(announced, min(longest, announced + answers.BLOCKS_MAX)))
