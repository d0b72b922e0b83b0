"""Chunk framing and heads, fed whole, byte by byte, torn anywhere, with trailing data."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dataplane.http1 import (
    EVENT_END,
    OPENINGS,
    USUAL_BYTES_MAX,
    ChunkedReader,
    FramingError,
    Request,
    event_chunks,
    forward_head,
    parse_response_head,
    reply,
)
from dataplane.trace import lines_of

CHUNKS = st.lists(st.binary(min_size=1, max_size=40), max_size=8)


def chunked(parts: list[bytes], extension: bytes = b"") -> bytes:
    return b"".join(b"%x%b\r\n%b\r\n" % (len(part), extension, part) for part in parts) + b"0\r\n\r\n"


def cut(data: bytes, places: list[int]) -> list[bytes]:
    bounds = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[start:stop] for start, stop in itertools.pairwise(bounds)]


@given(CHUNKS, st.lists(st.integers(0, 10_000), max_size=6), st.binary(max_size=5))
def test_the_end_is_found_wherever_the_bytes_are_torn(parts: list[bytes], places: list[int], trailing: bytes) -> None:
    message = chunked(parts)
    reader = ChunkedReader(collect=True)
    position = 0
    for piece in cut(message + trailing, places):
        end = reader.feed(piece)
        if end >= 0:
            assert position + end == len(message)
            break
        position += len(piece)
    else:
        pytest.fail("no end found")
    assert b"".join(reader.payload) == b"".join(parts)
    assert reader.chunks == len(parts)


@given(CHUNKS)
def test_byte_by_byte_equals_whole(parts: list[bytes]) -> None:
    message = chunked(parts, b";name=value")
    reader = ChunkedReader(collect=True)
    ends = [reader.feed(message[index : index + 1]) for index in range(len(message))]
    assert ends[:-1] == [-1] * (len(message) - 1)
    assert ends[-1] == 1
    assert b"".join(reader.payload) == b"".join(parts)


@given(CHUNKS, st.integers(0, 10_000))
def test_the_boundary_is_behind_the_last_whole_chunk(parts: list[bytes], place: int) -> None:
    message = chunked(parts)
    place %= len(message)
    reader = ChunkedReader()
    reader.feed(message[:place])
    wholes = [0]
    for part in parts:
        wholes.append(wholes[-1] + len(chunked([part])) - 5)
    assert reader.boundary == max(whole for whole in wholes if whole <= place)
    assert reader.at_boundary == (place in wholes)


@pytest.mark.parametrize(
    "message",
    [
        b"0x5\r\nhello\r\n",
        b"+5\r\nhello\r\n",
        b"5_0\r\n",
        b" 5\r\nhello\r\n",
        b"-1\r\n",
        b"\r\n",
        b"5\nhello\r\n",
        b"5\r\nhelloXX0\r\n\r\n",
        b"5\r\nhello\rX",
        b"11111111111111111\r\n",
        b"5" * 2000,
        b"0\r\n" + b"a: b\r\n" * 4000,
    ],
)
@pytest.mark.parametrize("bytewise", [False, True])
def test_malformed_framing_is_refused(message: bytes, bytewise: bool) -> None:
    reader = ChunkedReader()
    with pytest.raises(FramingError):
        for piece in [message[i : i + 1] for i in range(len(message))] if bytewise else [message]:
            assert reader.feed(piece) == -1


def test_trailers_belong_to_the_message() -> None:
    message = b"3\r\nabc\r\n0\r\nx-sum: 1\r\n\r\n"
    assert ChunkedReader().feed(message + b"HTTP") == len(message)


def test_a_response_head_loses_its_hop_by_hop_headers_and_nothing_else() -> None:
    head = parse_response_head(
        b"HTTP/1.0 404 Not here\r\nDate: now\r\nConnection: keep-alive\r\nKeep-Alive: 5\r\nContent-Length: 12\r\nX: a: b"
    )
    assert head.status == 404
    assert head.status_line == b"HTTP/1.1 404 Not here"
    assert head.lines == [b"Date: now", b"Content-Length: 12", b"X: a: b"]
    assert head.length == 12
    assert head.keep_alive


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/2 200 OK",
        b"HTTP/1.1 2x0 OK",
        b"nonsense",
        b"HTTP/1.1 200 OK\r\nno colon",
        b"HTTP/1.1 200 OK\r\nname : value",
        b"HTTP/1.1 200 OK\r\n folded: line",
        b"HTTP/1.1 200 OK\r\na: b\nc: d",
        b"HTTP/1.1 200 OK\r\na: b\0",
        b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2",
        b"HTTP/1.1 200 OK\r\ncontent-length: -1",
        b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ntransfer-encoding: chunked",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked",
    ],
)
def test_a_head_that_could_be_read_in_two_ways_is_refused(head: bytes) -> None:
    with pytest.raises(FramingError):
        parse_response_head(head)


def test_no_body_follows_204_whatever_the_head_says() -> None:
    assert parse_response_head(b"HTTP/1.1 204 No Content\r\ncontent-length: 9").length == 0


def test_the_forwarded_head_names_the_engine_and_frames_the_body_itself() -> None:
    request = Request("POST", b"/v1/completions?x=1", body=b"body")
    for name, value in (
        (b"host", b"proxy"),
        (b"connection", b"keep-alive, X-Drop"),
        (b"x-drop", b"1"),
        (b"transfer-encoding", b"chunked"),
        (b"authorization", b"Bearer k"),
        (b"x-data-parallel-rank", b"7"),
        (b"expect", b"100-continue"),
    ):
        request.add_header(name, value)
    head = forward_head(request, host=b"engine:1", ids=lines_of(b"r", b"t"), rank=2)
    assert head.split(b"\r\n") == [
        b"POST /v1/completions?x=1 HTTP/1.1",
        b"host: engine:1",
        b"authorization: Bearer k",
        b"x-data-parallel-rank: 2",
        b"content-length: 4",
        b"x-request-id: r",
        b"traceparent: t",
        b"",
        b"",
    ]


def test_an_answer_to_head_has_the_length_but_not_the_body() -> None:
    assert reply(200, b"abc", head_only=True).endswith(b"content-length: 3\r\n\r\n")


@given(st.binary(max_size=40), st.booleans(), st.booleans(), st.binary(max_size=3), st.integers(0, 60), st.booleans())
@example(b"data: x\n\n", False, True, b"", 60, True)
@example(b"0", False, False, b"\r\n", 60, False)
def test_a_read_that_is_one_chunk_says_what_its_bytes_say_one_by_one(
    payload: bytes, upper: bool, ends: bool, more: bytes, kept: int, collect: bool
) -> None:
    size = b"%X" if upper else b"%x"
    data = (size % len(payload) + b"\r\n" + payload + b"\r\n" + b"0\r\n\r\n" * ends + more)[:kept]
    quick, slow = ChunkedReader(collect=collect), ChunkedReader(collect=collect)
    end = -1
    try:
        for at in range(len(data)):
            if slow.feed(data[at : at + 1]) >= 0:
                end = at + 1
                break
    except FramingError:
        with pytest.raises(FramingError):
            quick.feed(data)
        return
    assert quick.feed(data) == end
    assert (quick.chunks, quick.at_boundary) == (slow.chunks, slow.at_boundary)
    assert b"".join(quick.payload) == b"".join(slow.payload)
    if slow.boundary:  # of the last byte fed, where that one ended a chunk
        assert quick.boundary == len(data)


@given(st.binary(max_size=40), st.booleans(), st.binary(max_size=3), st.integers(0, 60))
@example(b"data: x\n\n", False, b"", 60)
@example(b"\n\n", False, b"", 60)
def test_what_is_told_by_its_length_is_one_chunk(payload: bytes, upper: bool, more: bytes, kept: int) -> None:
    size = b"%X" if upper else b"%x"
    data = (size % len(payload) + b"\r\n" + payload + b"\r\n" + more)[:kept]
    least, beyond = OPENINGS[len(data)]
    told = least <= data < beyond and data[-4:] == EVENT_END
    assert told == (data == b"%x\r\n%b\r\n" % (len(payload), payload) and payload.endswith(b"\n\n"))


EVENTS = st.lists(st.binary(max_size=300).map(lambda text: text + b"\n\n"), max_size=5)


@given(EVENTS, st.booleans(), st.binary(max_size=3), st.integers(0, 2000))
@example([b"x" * 20 + b"\n\n"] * 3, False, b"", 2000)
@example([b"x" * 4093 + b"\n\n"], False, b"", 5000)
@example([b"\n\r\n\n"], False, b"", 9)
def test_several_chunks_at_once_are_told_apart(events: list[bytes], upper: bool, more: bytes, kept: int) -> None:
    size = b"%X" if upper else b"%x"
    data = (b"".join([size % len(each) + b"\r\n" + each + b"\r\n" for each in events]) + more)[:kept]
    reader = ChunkedReader(collect=True)
    count = len(event_chunks(data))
    if count:
        assert reader.feed(data) == -1
        assert (reader.chunks, reader.at_boundary, reader.boundary) == (count, True, len(data))
        assert all(payload.endswith(b"\n\n") for payload in reader.payload)
    elif data == b"".join([b"%x\r\n%b\r\n" % (len(each), each) for each in events]):
        long = any(len(b"%x\r\n" % len(each)) + len(each) + 2 >= USUAL_BYTES_MAX for each in events)
        early = any((b"\n" + each + b"\r\n").find(EVENT_END) != len(each) - 1 for each in events)
        assert not events or long or early


@pytest.mark.parametrize("size", range(64))
def test_what_is_as_long_as_no_chunk_is_none(size: int) -> None:
    data = (b"\n" * 64)[: max(0, size - 2)] + b"\r\n"[2 - min(size, 2) :]
    assert len(data) == size
    least, beyond = OPENINGS[size]
    assert not least <= data < beyond


def test_amid_a_chunk_nothing_is_a_chunk_of_its_own() -> None:
    reader = ChunkedReader()
    reader.feed(b"9\r\nab")
    assert reader.feed(b"1\r\nx\r\n") == -1
    assert not reader.at_boundary
    assert reader.feed(b"c\r\n") == -1
    assert reader.at_boundary
    assert reader.chunks == 1
