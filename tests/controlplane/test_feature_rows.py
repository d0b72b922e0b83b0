"""Rows made many at once are the rows of their candidates, one by one."""

from __future__ import annotations

from math import inf

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from contract.features import FEATURES
from controlplane.endpoint import Candidate, Standing, features
from controlplane.feature_rows import Rows
from controlplane.queue_plan import Beginning
from tests.controlplane.parts import endpoint

COUNTS = st.integers(0, 1 << 20)
SECONDS = st.floats(0.0, 1e4)
SPEEDS = st.just(0.0) | st.floats(1.0, 1e6)
THERE = endpoint(3)


@st.composite
def standings(draw: st.DrawFn) -> Standing:
    queued = draw(st.booleans())
    return Standing(
        THERE,
        3,
        0,
        *(draw(COUNTS), draw(COUNTS), draw(COUNTS), draw(SECONDS)),
        draw(SECONDS) if queued else inf,
        draw(SECONDS | st.just(inf)),
        *(draw(COUNTS) if queued else 0, draw(COUNTS), draw(COUNTS), draw(COUNTS), draw(st.floats(0.0, 1.0))),
        *(draw(SECONDS), draw(SPEEDS), draw(SECONDS), draw(SECONDS), draw(COUNTS), draw(COUNTS), draw(SECONDS), draw(SECONDS)),
        draw(COUNTS) if queued else 0,
        draw(st.none() | st.builds(Beginning, SECONDS, SECONDS)),
        draw(COUNTS),
    )


@st.composite
def questions(draw: st.DrawFn) -> list[Candidate]:
    """The rows of one question."""
    tokens, bound, now = draw(COUNTS), draw(COUNTS), draw(SECONDS)
    rows = []
    for standing in draw(st.lists(standings(), min_size=1, max_size=5)):
        matched = draw(st.integers(0, tokens))
        rows.append(Candidate(standing, tokens, matched, tokens - matched, bound, now, draw(st.booleans()), draw(SECONDS)))
    return rows


@given(questions())
def test_a_row_holds_what_the_candidate_says_under_each_name(candidates: list[Candidate]) -> None:
    for one in candidates:
        assert features(one) == [getattr(one, name) for name in FEATURES]


@given(questions())
def test_the_rows_of_one_question(candidates: list[Candidate]) -> None:
    assert np.array_equal(Rows().of_one(candidates), [features(one) for one in candidates])


@given(st.lists(questions(), max_size=4))
def test_the_rows_of_several_questions(asked: list[list[Candidate]]) -> None:
    rows = Rows()
    candidates = [one for question in asked for one in question]
    for _ in range(2):  # the second time from what was packed and in the memory of the first
        made = rows.of(candidates)
        assert made.flags.c_contiguous
        assert made.tolist() == [features(one) for one in candidates]


def test_more_rows_than_there_was_room_for() -> None:
    standing = THERE.stands(5.0)
    candidates = [Candidate(standing, 100 + number, number, 100, 7, 6.0, True) for number in range(100)]
    assert np.array_equal(Rows().of(candidates), [features(one) for one in candidates])
