"""Filters, scorers, pickers and the profiles made of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane import filters, picker, profiles, scorers
from controlplane.endpoint import Candidate
from controlplane.filters import Filter
from controlplane.picker import Turn
from controlplane.question import ShedReason
from controlplane.scheduler import Choice, explain, schedule, totals
from tests.controlplane.parts import candidate, question

PROFILES = profiles.build()
SCORERS = (
    scorers.load,
    scorers.queue,
    scorers.kv_free,
    scorers.prefix_share,
    scorers.prefix_length,
    scorers.lmetric,
    scorers.kv_cost,
    scorers.cache_aware,
)


@st.composite
def fleets(draw: st.DrawFn, *, least: int = 1) -> list[Candidate]:
    """Candidates of one question, by slot."""
    tokens = draw(st.integers(0, 20_000))
    count = draw(st.integers(least, 8))
    rows = []
    for slot in range(count):
        active, running, waiting = draw(st.integers(0, 130)), draw(st.integers(0, 130)), draw(st.integers(0, 50))
        rows.append(
            candidate(
                slot,
                input_tokens=tokens,
                matched_tokens=draw(st.integers(0, tokens)),
                active=active,
                no_first_byte=draw(st.integers(0, active)),
                prefill_tokens=draw(st.integers(0, 100_000)),
                context_tokens=draw(st.integers(0, 1_000_000)),
                running=running,
                waiting=waiting,
                kv_usage=draw(st.floats(0, 1)),
                batch=max(active, running + waiting),
                admits=draw(st.booleans()),
            )
        )
    return rows


def chosen(name: str, rows: Sequence[Candidate], *, seed: int = 1, **asked: object) -> int:
    choice = schedule(PROFILES[name], rows, question(1, **asked).request, Turn(Random(seed)))  # type: ignore[arg-type]
    assert isinstance(choice, Choice), choice
    return choice.candidate.slot


@pytest.mark.parametrize("scorer", SCORERS, ids=lambda scorer: scorer.__name__)
@settings(max_examples=40, deadline=None)
@given(rows=fleets())
def test_scores_stay_between_0_and_1(scorer: scorers.Scorer, rows: list[Candidate]) -> None:
    values = scorer(rows)
    assert len(values) == len(rows)
    assert all(0.0 <= value <= 1.0 for value in values)


@pytest.mark.parametrize("name", profiles.NAMES)
@settings(max_examples=40, deadline=None)
@given(rows=fleets())
def test_totals_stay_between_0_and_1(name: str, rows: list[Candidate]) -> None:
    assert all(0.0 <= total <= 1.0 + 1e-9 for total in totals(PROFILES[name], rows))


@pytest.mark.parametrize("name", profiles.NAMES)
@settings(max_examples=40, deadline=None)
@given(rows=fleets(), shuffle=st.randoms(use_true_random=False))
def test_the_choice_does_not_depend_on_the_order_of_the_candidates(name: str, rows: list[Candidate], shuffle: Random) -> None:
    mixed = list(rows)
    shuffle.shuffle(mixed)
    first = schedule(PROFILES[name], rows, question(1).request, Turn(Random(3)))
    second = schedule(PROFILES[name], mixed, question(1).request, Turn(Random(3)))
    if isinstance(first, Choice) and isinstance(second, Choice):
        assert (first.candidate, first.kept) == (second.candidate, second.kept)
    else:
        assert first == second


@pytest.mark.parametrize("name", profiles.NAMES)
@settings(max_examples=40, deadline=None)
@given(rows=fleets(), tried=st.sets(st.integers(0, 8)))
def test_no_policy_chooses_what_a_filter_removed(name: str, rows: list[Candidate], tried: set[int]) -> None:
    asked = question(1, exclude=tuple(tried)).request
    allowed = {row.slot for row in rows if row.slot not in tried and row.admits and row.active <= 100}
    choice = schedule(PROFILES[name], rows, asked, Turn(Random(3)))
    if isinstance(choice, Filter):
        assert not allowed
    else:
        assert choice.candidate.slot in allowed
        assert choice.kept == len(allowed)


@settings(max_examples=40, deadline=None)
@given(rows=fleets())
def test_an_explanation_names_every_candidate_once(rows: list[Candidate]) -> None:
    verdicts = explain(PROFILES["weighted"], rows, question(1).request)
    assert [verdict.candidate.slot for verdict in verdicts] == [row.slot for row in rows]
    assert all(bool(verdict.rejected_by) != bool(verdict.scores) for verdict in verdicts)


@pytest.mark.parametrize(
    ("rows", "exclude", "reason"),
    [
        ([candidate(0), candidate(1)], (0, 1), ShedReason.EXCLUDED),
        ([candidate(0, admits=False), candidate(1)], (1,), ShedReason.ALL_BREAKERS_OPEN),
        ([candidate(0, active=101), candidate(1, admits=False)], (), ShedReason.ALL_SATURATED),
    ],
)
def test_the_filter_that_leaves_nobody_says_why(rows: list[Candidate], exclude: tuple[int, ...], reason: ShedReason) -> None:
    choice = schedule(PROFILES["lmetric"], rows, question(1, exclude=exclude).request, Turn(Random(1)))
    assert isinstance(choice, Filter)
    assert choice.emptied == reason


def test_the_guard_lets_the_hundred_and_first_in_and_the_next_not() -> None:
    guard = filters.below_guard(100)
    assert guard.keeps(candidate(0, active=100), question(1).request)
    assert not guard.keeps(candidate(0, active=101), question(1).request)


# One row per property that a policy is known for: the candidates, and which slot it takes.
IDLE_COLD = candidate(0, input_tokens=1000)
BUSY_WARM = candidate(1, input_tokens=1000, matched_tokens=800, active=4, prefill_tokens=400, context_tokens=4000)
FULL_WARM = candidate(
    2, input_tokens=1000, matched_tokens=960, active=90, prefill_tokens=9000, context_tokens=90_000, kv_usage=0.9
)


@pytest.mark.parametrize(
    ("name", "rows", "slot"),
    [
        ("least_load", [IDLE_COLD, BUSY_WARM], 0),
        ("prefix", [IDLE_COLD, BUSY_WARM, FULL_WARM], 2),
        ("prefix", [candidate(0, matched_tokens=32, active=2), candidate(1, matched_tokens=32, active=1)], 1),
        ("prefix", [candidate(0, active=2), candidate(1, active=1)], 1),
        ("weighted", [IDLE_COLD, BUSY_WARM, FULL_WARM], 1),
        ("cache_aware", [IDLE_COLD, BUSY_WARM], 1),
        ("cache_aware", [IDLE_COLD, BUSY_WARM, FULL_WARM], 0),  # out of balance: 90 requests against none
        ("cache_aware", [candidate(0, matched_tokens=20, active=3), candidate(1)], 1),  # too short a match
        ("kv_cost", [IDLE_COLD, BUSY_WARM], 0),
        ("kv_cost", [IDLE_COLD, candidate(1, input_tokens=1000, matched_tokens=900, active=1, context_tokens=800)], 1),
        ("lmetric", [IDLE_COLD, candidate(1, input_tokens=1000, matched_tokens=900, active=1)], 1),  # 100 x 2 < 1000 x 1
        ("lmetric", [IDLE_COLD, BUSY_WARM], 1 - 1),  # 600 x 5 > 1000 x 1
        ("lmetric", [candidate(0, prefill_tokens=500), candidate(1)], 1),
    ],
)
def test_what_a_policy_prefers(name: str, rows: list[Candidate], slot: int) -> None:
    assert chosen(name, rows) == slot


def test_round_robin_takes_turns_for_each_model() -> None:
    rows = [candidate(slot) for slot in (0, 3, 5)]
    turn = Turn(Random(1))

    def next_slot(model: str) -> int:
        return rows[picker.round_robin(rows, [], model, turn)].slot

    assert [next_slot("a") for _ in range(5)] == [0, 3, 5, 0, 3]
    assert [next_slot("b") for _ in range(2)] == [0, 3]
    assert next_slot("a") == 5


def test_random_reaches_everybody_about_equally() -> None:
    rows = [candidate(slot, active=slot) for slot in range(4)]
    turn = Turn(Random(1))
    counts = Counter(picker.uniform(rows, [], "m", turn) for _ in range(4000))
    assert all(850 < counts[position] < 1150 for position in range(4))


def test_power_of_two_never_takes_the_most_loaded_of_many() -> None:
    rows = [candidate(slot, active=slot) for slot in range(4)]
    turn = Turn(Random(1))
    counts = Counter(picker.power_of_two(rows, [], "m", turn) for _ in range(2000))
    assert counts[3] == 0
    assert counts[0] > counts[1] > counts[2] > 0


def test_ties_are_broken_by_load_and_then_by_chance() -> None:
    rows = [candidate(0, active=2), candidate(1, active=1), candidate(2, active=1)]
    turn = Turn(Random(1))
    counts = Counter(picker.highest(rows, [1.0, 1.0, 1.0], "m", turn) for _ in range(400))
    assert counts[0] == 0
    assert min(counts[1], counts[2]) > 150


def test_what_the_router_dispatched_and_what_the_engine_reports_are_not_added_up() -> None:
    """The report includes the router's own requests, one scrape late."""
    rows = [candidate(0, active=10, running=10, batch=10), candidate(1, active=11, batch=11)]
    assert chosen("least_load", rows) == 0


def test_every_profile_is_listed_once_and_the_default_is_one() -> None:
    assert tuple(PROFILES) == profiles.NAMES
    assert profiles.DEFAULT in PROFILES
