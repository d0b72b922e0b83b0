"""The relay: what is held, when it is let go, and that the client's bytes equal the engine's."""

from __future__ import annotations

import itertools
import json

import httptools
import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract.outcome import End
from dataplane.http1 import FramingError
from dataplane.relay import Phase, Relay, Verdict
from dataplane.sse import Says
from dataplane.upstream import UpstreamConnection, UpstreamPool
from runtime.clock import ManualClock
from tests.fakes.backend import (
    LAST_CHUNK,
    STREAM_HEAD,
    chat_payload,
    chunk,
    delta,
    event,
    json_bytes,
    stream_bytes,
    stream_events,
    usage,
)

PLACES = st.lists(st.integers(0, 100_000), max_size=8)


def pieces(data: bytes, places: list[int]) -> list[bytes]:
    bounds = [0, *sorted({place % (len(data) + 1) for place in places}), len(data)]
    return [data[a:b] for a, b in itertools.pairwise(bounds) if a < b]


def run(relay: Relay, parts: list[bytes]) -> bytes:
    """What a client gets of these reads, heads left out."""
    out = b""
    for part in parts:
        out += relay.feed(part)
        if (relay.ready and relay.phase is Phase.HELD) or (relay.ready and relay.phase is Phase.ENDED):
            out += relay.release()
    return out


def new(**more: bool) -> Relay:
    return Relay(hold_bytes_max=1000, must_end_with_done=True, **more)


@given(st.lists(st.text(min_size=1, max_size=10), min_size=1, max_size=5), PLACES, st.booleans())
def test_a_stream_passes_byte_for_byte_wherever_its_reads_are_torn(texts: list[str], places: list[int], trailing: bool) -> None:
    body = stream_bytes(stream_events(texts, usage_of=usage(30, len(texts), 16)))
    relay = new()
    assert run(relay, pieces(STREAM_HEAD + body + b"junk" * trailing, places)) == body
    assert relay.phase is Phase.ENDED
    assert relay.first is Says.CONTENT
    assert relay.final() is End.COMPLETE
    assert relay.ending.cached_tokens == 16
    assert relay.reusable == (not relay.trailing)


def test_a_stream_fed_byte_by_byte_passes_whole_chunks() -> None:
    body = stream_bytes(stream_events(["a", "b"]))
    relay = new()
    passed = []
    for part in pieces(STREAM_HEAD + body, list(range(5000))):
        out = relay.feed(part)
        if relay.ready and relay.phase is Phase.HELD:
            out += relay.release()
        passed.append(out)
    assert b"".join(passed) == body
    assert all(not out or out.endswith((b"\n\n\r\n", LAST_CHUNK)) for out in passed)


def test_nothing_is_let_go_before_the_first_event_with_content() -> None:
    relay = new()
    assert relay.feed(STREAM_HEAD) == b""
    assert relay.feed(chunk(event(delta("", role="assistant")))) == b""
    assert not relay.ready
    relay.feed(chunk(event(delta("x"))))
    assert relay.ready
    assert relay.verdict() == Verdict(End.COMPLETE, False)
    assert relay.release() == chunk(event(delta("", role="assistant"))) + chunk(event(delta("x")))


def test_comments_are_held_up_to_the_bound() -> None:
    relay = new()
    relay.feed(STREAM_HEAD)
    relay.feed(chunk(b": keep-alive\n\n"))
    assert not relay.ready
    relay.feed(chunk(b": " + b"x" * 1000 + b"\n\n"))
    assert relay.ready


@pytest.mark.parametrize(
    ("first", "verdict"),
    [
        (event(delta("", finish="abort")), Verdict(End.ENGINE_ABORTED, True)),
        (event({"error": {"message": "dead", "code": 500}}), Verdict(End.ENGINE_ERROR, True)),
        (event({"error": {"message": "full", "code": 503}}), Verdict(End.BACK_PRESSURE, True)),
        (event({"error": {"message": "too long", "code": 400}}), Verdict(End.CALLER_ERROR, False)),
    ],
)
def test_a_stream_that_begins_with_its_end_may_go_elsewhere(first: bytes, verdict: Verdict) -> None:
    relay = new()
    relay.feed(STREAM_HEAD + chunk(event(delta("", role="assistant"))) + chunk(first))
    assert relay.ready
    assert relay.verdict() == verdict


@pytest.mark.parametrize(
    ("status", "verdict"),
    [
        (400, Verdict(End.CALLER_ERROR, False)),
        (404, Verdict(End.CALLER_ERROR, False)),
        (408, Verdict(End.TIMED_OUT, True)),
        (429, Verdict(End.BACK_PRESSURE, True)),
        (500, Verdict(End.ENGINE_ERROR, True)),
        (502, Verdict(End.ENGINE_ERROR, True)),
        (503, Verdict(End.BACK_PRESSURE, True)),
    ],
)
def test_the_verdict_on_a_status(status: int, verdict: Verdict) -> None:
    relay = new()
    relay.feed(json_bytes({"error": {}}, status))
    assert relay.verdict() == verdict


@given(PLACES)
def test_a_json_body_is_held_to_its_end_and_read(places: list[int]) -> None:
    whole = json_bytes(chat_payload("hello", usage_of=usage(9, 2, 8)))
    relay = new()
    assert run(relay, pieces(whole, places)) == whole.partition(b"\r\n\r\n")[2]
    assert relay.ending.cached_tokens == 8
    assert relay.reusable


def test_an_aborted_json_body_without_text_may_go_elsewhere() -> None:
    relay = new()
    relay.feed(json_bytes(chat_payload("", finish="abort")))
    assert relay.verdict() == Verdict(End.ENGINE_ABORTED, True)


def test_a_body_longer_than_the_bound_passes_as_it_comes() -> None:
    payload = {"data": "x" * 5000, "usage": usage(5, 0, 4)}
    whole = json_bytes(payload)
    relay = new()
    out = run(relay, pieces(whole, [200, 3000]))
    assert json.loads(out) == payload
    assert relay.ending.cached_tokens == 4


def test_bytes_behind_a_body_are_not_passed_on() -> None:
    whole = json_bytes({"a": 1})
    relay = new()
    assert run(relay, [whole + b"HTTP/1.1 200 OK\r\n\r\n"]) == b'{"a": 1}'
    assert not relay.reusable


def test_an_unframed_body_ends_with_the_connection() -> None:
    relay = new()
    relay.feed(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n" + b'{"a": 1}')
    assert not relay.ready
    relay.closed()
    assert relay.ready
    assert relay.release() == b'{"a": 1}'
    assert not relay.reusable


def test_interim_responses_are_skipped() -> None:
    relay = new()
    relay.feed(b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n" + json_bytes({"a": 1}))
    assert relay.head is not None
    assert relay.head.status == 200


@given(PLACES)
def test_http10_clients_get_the_payload_without_framing(places: list[int]) -> None:
    events = stream_events(["a", "b"])
    relay = new(dechunk=True)
    assert run(relay, pieces(STREAM_HEAD + stream_bytes(events), places)) == b"".join(events)


@given(PLACES)
def test_a_stream_that_ends_unfinished_is_not_terminated(places: list[int]) -> None:
    events = [event(delta("a")), event(delta("b"))]
    relay = new()
    out = run(relay, pieces(STREAM_HEAD + stream_bytes(events), places))
    assert relay.cut_short
    assert relay.final() is End.ENGINE_ERROR
    assert out == b"".join(map(chunk, events))


class Reader:
    def __init__(self) -> None:
        self.body = b""
        self.complete = False

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        self.complete = True


@given(PLACES, st.integers(0, 100_000))
def test_after_a_break_anywhere_another_event_can_follow(places: list[int], broken_at: int) -> None:
    events = stream_events(["a", "bb", "ccc"])
    body = STREAM_HEAD + stream_bytes(events)
    first = len(STREAM_HEAD) + len(chunk(events[0]) + chunk(events[1]))
    broken = body[: first + broken_at % (len(body) - first)]
    relay = new()
    out = run(relay, pieces(broken, places))
    assert relay.phase is Phase.PASSING
    assert relay.at_boundary
    reader = Reader()
    parser = httptools.HttpResponseParser(reader)
    parser.feed_data(STREAM_HEAD + out + chunk(event({"error": {}})) + LAST_CHUNK)
    assert reader.complete
    assert reader.body.endswith(event({"error": {}}))


@pytest.mark.parametrize("data", [b"HTTP/1.1 101 Switch\r\n\r\n", b"SSH-2.0-x\r\n\r\n", b"x" * 70_000])
def test_what_is_not_a_response_is_refused(data: bytes) -> None:
    with pytest.raises(FramingError):
        new().feed(data)


@pytest.mark.parametrize("head", [b"content-type: audio/mpeg", b"content-type: text/event-stream\r\ncontent-encoding: gzip"])
def test_a_body_that_cannot_be_read_passes_from_its_first_byte(head: bytes) -> None:
    relay = new()
    relay.feed(b"HTTP/1.1 200 OK\r\n" + head + b"\r\ntransfer-encoding: chunked\r\n\r\n")
    assert not relay.ready
    relay.feed(chunk(b"\x1f"))
    assert relay.ready
    assert relay.verdict() == Verdict(End.COMPLETE, False)
    assert relay.release() == chunk(b"\x1f")
    assert relay.feed(chunk(b"\x8b")[:-1]) == chunk(b"\x8b")[:-1]
    assert relay.feed(b"\n" + LAST_CHUNK) == b"\n" + LAST_CHUNK
    assert relay.final() is End.COMPLETE


class Owner:
    """Feeds a relay as an exchange does: reads come here, or go past it where they may."""

    def __init__(self) -> None:
        self.relay = new()
        self.out: list[bytes] = []
        self.relay.write = self.out.append
        self.reads = 0
        self.connection = UpstreamConnection(UpstreamPool(clock=ManualClock(), idle_s=1, connect_timeout_s=1), "http://e:1")
        self.connection.owner = self

    def upstream_data(self, data: bytes) -> None:
        self.reads += 1
        relay = self.relay
        self.out.append(relay.feed(data))
        if relay.ready and relay.phase in (Phase.HELD, Phase.ENDED) and self.reads:
            self.out.append(relay.release())
        self.connection.passing = relay if relay.is_open else None

    def upstream_lost(self, error: Exception | None) -> None:
        raise AssertionError

    def upstream_full(self, full: bool) -> None:
        raise AssertionError


@given(st.lists(st.text(max_size=10), min_size=1, max_size=30), PLACES, st.integers(0, 4), st.booleans(), st.booleans())
def test_what_goes_past_the_relay_is_as_if_it_had_gone_through(
    texts: list[str], places: list[int], by_event: int, tells: bool, crlf: bool
) -> None:
    """By events, as engines write, some at a time, or torn anywhere; with usage or not; with line ends that never go past."""
    events = stream_events(["x", *texts], usage_of=usage(30, len(texts), 16) if tells else None)
    if crlf:
        events = [each.replace(b"\n", b"\r\n") for each in events]
    reads = [STREAM_HEAD, *map(chunk, events), LAST_CHUNK]
    if not by_event:
        reads = pieces(b"".join(reads), places)
    elif by_event > 1:
        reads = [*reads[:3], *(b"".join(reads[at : at + by_event]) for at in range(3, len(reads), by_event))]
    through, past = new(), Owner()
    expected = run(through, reads)
    for read in reads:
        past.connection.data_received(read)
    assert b"".join(past.out) == expected
    assert past.relay.phase is through.phase is Phase.ENDED
    assert past.relay.ending == through.ending
    assert past.relay.chunk_count == through.chunk_count
    assert past.relay.final() is through.final()
    if by_event and not crlf and not tells:
        # The head, the role, the first token, the end; and what comes in one read with `[DONE]`, a chunk of less than 16 bytes.
        assert past.reads <= 4 + (by_event > 1)


def test_whether_chunks_came_is_told_though_they_went_past() -> None:
    past = Owner()
    for read in [STREAM_HEAD, *map(chunk, stream_events(["a", "b", "c"])[:2])]:
        past.connection.data_received(read)
    assert past.relay.moved()
    assert not past.relay.moved()
    past.connection.data_received(chunk(event(delta("d"))))
    assert past.relay.passed == 1
    assert past.relay.moved()
    assert not past.relay.moved()


def test_the_number_of_the_last_event_is_known_though_it_went_past() -> None:
    past = Owner()
    payload = {"type": "response.output_text.delta", "delta": "a"}
    past.connection.data_received(STREAM_HEAD)
    for number in range(20):
        past.connection.data_received(chunk(event(payload | {"sequence_number": number})))
    assert past.relay.passed > 10
    assert past.relay.sequence_number == 19
    assert past.relay.chunk_count == 20
