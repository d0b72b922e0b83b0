"""Packed messages: what goes in comes out, and older and newer sides understand each other."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract.routing import TIME_MAX, Answer, Asked, Ended, Refusal, Request, Said, pack, unpack_answers, unpack_said

texts = st.text(max_size=20)
counts = st.integers(0, 2**32 - 1)
ids = st.integers(0, 2**64 - 1)
seconds = st.floats(-TIME_MAX, TIME_MAX)
requests = st.builds(
    Request,
    model=texts,
    input_tokens=counts,
    exact_tokens=st.booleans(),
    max_tokens=counts,
    tenant=texts,
    priority=st.integers(-(2**31), 2**31 - 1),
    slo_ttft_ms=seconds,
    exclude=st.lists(counts, max_size=3).map(tuple),
    session=texts,
    request_id=texts,
    attempt=counts,
    streams=st.booleans(),
)
chains = st.lists(st.tuples(counts, st.binary(max_size=64)), max_size=2).map(tuple)
ends = st.builds(
    Ended,
    decision_id=ids,
    end=st.integers(0, 101),
    http_status=st.integers(0, 599),
    ttft_s=seconds,
    e2e_s=seconds,
    output_tokens=counts,
    prompt_tokens=st.integers(-1, 2**32),
    cached_tokens=st.integers(-1, 2**32),
    streamed=st.booleans(),
    itl_s=seconds,
    request_id=texts,
    model=texts,
    url=texts,
    input_tokens=counts,
)
said = st.builds(
    Said,
    st.lists(st.builds(Asked, ids, requests, chains), max_size=4),
    st.lists(st.tuples(ids, seconds), max_size=4),
    st.lists(ends, max_size=4),
    st.lists(ids, max_size=4),
    st.lists(st.tuples(ids, seconds), max_size=4),
)
answers = st.lists(
    st.builds(
        Answer,
        ids,
        ids,
        counts,
        texts,
        texts,
        counts,
        texts,
        st.integers(-1, 64),
        st.booleans(),
        st.none() | st.builds(Refusal, st.integers(0, 20), texts, seconds),
    ),
    max_size=4,
)


@given(said)
def test_what_a_data_plane_says_arrives_as_it_was_said(message: Said) -> None:
    assert unpack_said(pack(message)) == message


@given(answers)
def test_answers_arrive_as_they_were_given(found: list[Answer]) -> None:
    assert unpack_answers(pack(found)) == found


@given(st.binary(max_size=64))
def test_bytes_of_something_else_are_refused_or_a_message(data: bytes) -> None:
    for unpack in (unpack_said, unpack_answers):
        try:
            unpack(data)
        except ValueError:
            continue


def test_a_newer_side_may_say_more_and_an_older_one_less() -> None:
    newer = msgspec.msgpack.encode(
        [[[7, ["m", 5, True, 0, "", 0, 0.0, [], "", "r", 0, False, "new"], [], "new"]], [], [], [], [], "new"]
    )
    assert unpack_said(newer) == Said([Asked(7, Request(model="m", input_tokens=5, request_id="r"))])
    assert unpack_answers(msgspec.msgpack.encode([[7, 8]])) == [Answer(7, 8)]


def test_a_message_without_what_it_needs_is_refused() -> None:
    with pytest.raises(ValueError, match=r"Expected `array` of at least length 1"):
        unpack_answers(msgspec.msgpack.encode([[]]))
