"""What the short way says and writes in cheaper forms, against what it stands for."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract.outcome import End
from contract.routing import Answer, Asked, Ended, Request, Said, pack, unpack_said
from dataplane import rows
from dataplane.engines import Engines
from dataplane.headers import LAST_BITS, LAST_DIGITS, DecisionLine, about, matched, place
from dataplane.http1 import behind
from dataplane.messages import batch

CHAINS = st.lists(st.tuples(st.integers(1, 512), st.binary(max_size=24)), max_size=2).map(tuple)
QUESTIONS = st.tuples(
    st.integers(1, 2**62),
    st.tuples(
        st.text(max_size=8),
        st.integers(0, 2**31),
        st.booleans(),
        st.integers(0, 2**32 - 1),
        st.just(""),
        st.just(0),
        st.just(0.0),
        st.just(()),
        st.just(""),
        st.text(max_size=32),
        st.just(0),
        st.booleans(),
    ),
    CHAINS,
)
OUTCOMES = st.tuples(
    st.integers(1, 2**63),
    st.just(int(End.COMPLETE)),
    st.just(200),
    st.just(-1.0),
    st.floats(0, 1e6),
    st.integers(0, 2**31),
    st.integers(0, 2**31),
    st.integers(-1, 2**31),
    st.just(False),
    st.just(-1.0),
    st.text(max_size=32),
)


@given(st.lists(QUESTIONS, max_size=3), st.lists(OUTCOMES, max_size=3))
def test_rows_say_what_structs_say(questions: list[rows.AskedRow], outcomes: list[rows.EndedRow]) -> None:
    said = Said(questions, [(1, 0.5)], outcomes, [7], [(2, 0.25)])  # type: ignore[arg-type]
    plain = rows.said(said)
    assert all(type(asked) is Asked and type(asked.request) is Request for asked in plain.questions)
    assert all(type(ended) is Ended for ended in plain.outcomes)
    assert unpack_said(pack(said)) == unpack_said(pack(plain)) == plain
    assert pack(questions) == pack(plain.questions)  # type: ignore[arg-type]
    assert len(batch(plain).questions) == len(questions)
    assert rows.said(plain) == plain


@given(st.lists(st.integers(0, 2**64 - 1), max_size=5), st.integers(0, 10_000), st.booleans())
def test_the_parts_of_a_decisions_lines_are_those_lines(numbers: list[int], tokens: int, predicted: bool) -> None:
    line = DecisionLine()
    for number in numbers:
        if number >> LAST_BITS != line.above:
            line.move(number >> LAST_BITS)
        said = line.begins + LAST_DIGITS[number % len(LAST_DIGITS)] + (matched(tokens) if predicted else b"")
        target = Answer(1, number, worker="worker", policy="policy", matched_tokens=tokens)
        if number:
            assert place("worker", "policy", 1) + said == about([target], predicted=predicted)


def test_an_engines_lines_are_of_the_worker_and_policy_that_are_asked_for() -> None:
    engine = Engines()["http://a"]
    for worker, policy in (("", ""), ("a", "x"), ("a", "x"), ("b", "x"), ("b", "y"), ("a", "x")):
        assert engine.lines(worker, policy) == place(worker, policy, 1)


def test_engines_are_forgotten_once_nothing_is_left_of_them() -> None:
    engines = Engines()
    engines["http://a"].active = 1
    engines["http://b"].active = 0
    engines.sweep()
    assert list(engines) == ["http://a"]


@given(st.binary(max_size=6), st.binary(max_size=6))
@pytest.mark.parametrize("line_end", [b"\n", b"\r\n\r\n"])
def test_bytes_between_an_opening_and_what_is_behind_it_begin_with_it(line_end: bytes, opening: bytes, data: bytes) -> None:
    opening += line_end
    for each in (data, opening + data, opening[:-1] + data, behind(opening), opening):
        assert (opening <= each < behind(opening)) == each.startswith(opening)
