"""Any bytes from an engine: no crash, and the same answer to the client however they arrive. In memory, without sockets."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataplane.http1 import FramingError
from dataplane.relay import Phase, Relay
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
)

CAPTURES = {
    path.name: path.read_bytes()
    for path in sorted((Path(__file__).parents[1] / "fixtures/vllm/http").glob("*.resp.raw"))
    if path.stat().st_size < 6000
}
MADE = [
    STREAM_HEAD + stream_bytes(stream_events(["a", "b"])),
    STREAM_HEAD + stream_bytes(stream_events([], finish="abort")),
    STREAM_HEAD + chunk(event(delta("a"))) + LAST_CHUNK,
    STREAM_HEAD + chunk(event(delta("a"))) + chunk(event({"error": {"message": "dead", "code": 500}})) + LAST_CHUNK,
    json_bytes(chat_payload("x")),
    json_bytes({"error": {"message": "full"}}, 503),
    b"HTTP/1.1 100 Continue\r\n\r\n" + json_bytes(chat_payload("x")),
    b"HTTP/1.0 200 OK\r\ncontent-type: text/event-stream\r\n\r\n" + b"".join(stream_events(["a"])),
    b"HTTP/1.1 204 No Content\r\n\r\n",
    json_bytes(chat_payload("x")).replace(b'"hello"', b'"hell\xff"').replace(b'"x"', b'"\x80"'),
    STREAM_HEAD + stream_bytes([each.replace(b'"a"', b'"\xff"') for each in stream_events(["a"])]),
]
MEANS = st.sampled_from([*CAPTURES.values(), *MADE])
Outcome = tuple[str, bytes, str, bool, bool]


def relayed(pieces: list[bytes], *, dechunk: bool = False) -> Outcome:
    """How a response went: kind, what the client got, the verdict, whether it was cut short, whether bytes came behind it."""
    relay = Relay(hold_bytes_max=1 << 20, dechunk=dechunk, must_end_with_done=True)
    out, released, verdict = b"", False, ""
    try:
        for piece in pieces:
            out += relay.feed(piece)
            if relay.ready and not released:
                released, verdict = True, relay.verdict().end.name
                out += relay.release()
    except FramingError:
        return "not HTTP", b"", "", False, False
    relay.closed()
    if relay.ready and not released:
        verdict = relay.verdict().end.name
        out += relay.release()
    if relay.phase is not Phase.ENDED:
        return "broken", out, verdict, False, False
    return relay.final().name, out, verdict, relay.cut_short, relay.trailing


def split(data: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [data[start:stop] for start, stop in itertools.pairwise(places)]


@pytest.mark.parametrize("dechunk", [False, True])
@pytest.mark.parametrize("data", [*CAPTURES.values(), *MADE], ids=[*CAPTURES, *map(str, range(len(MADE)))])
def test_a_response_is_the_same_whole_and_byte_by_byte(data: bytes, dechunk: bool) -> None:
    whole = relayed([data], dechunk=dechunk)
    assert relayed([data[index : index + 1] for index in range(len(data))], dechunk=dechunk) == whole
    assert whole[0] != "not HTTP"


@settings(max_examples=150, deadline=None)
@given(MEANS, st.lists(st.integers(0, 10_000), max_size=6), st.binary(max_size=8), st.booleans())
def test_where_reads_are_cut_changes_nothing(data: bytes, cuts: list[int], behind: bytes, dechunk: bool) -> None:
    data += behind
    assert relayed(split(data, cuts), dechunk=dechunk) == relayed([data], dechunk=dechunk)


@settings(max_examples=200, deadline=None)
@given(MEANS, st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=4), st.data())
def test_mutated_responses_never_crash_and_break_alike(
    data: bytes, changes: list[tuple[int, int]], draw: st.DataObject
) -> None:
    mutated = bytearray(data)
    for place, value in changes:
        mutated[place % len(mutated)] = value
    cut = draw.draw(st.integers(0, len(mutated)))
    kept = bytes(mutated[: cut or len(mutated)])
    whole = relayed([kept])
    assert relayed([kept[index : index + 1] for index in range(len(kept))]) == whole


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200))
def test_noise_is_not_http_or_nothing(data: bytes) -> None:
    kind, out, *_ = relayed([data])
    assert kind in ("not HTTP", "broken") or out
