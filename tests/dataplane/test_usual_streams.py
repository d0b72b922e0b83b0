"""The usual reads of a stream, taken the short way, against the same reads fed to the relay: what goes to the client, and what
is known of it in the end."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataplane.http1 import parse_response_head
from dataplane.relay import Phase, Relay
from dataplane.sse import Says
from dataplane.upstream import WHOLE_HEAD_BYTES_MAX, WHOLE_HEADS_MAX, UpstreamConnection, UpstreamPool, WholeHeads
from dataplane.usual import stream_head
from runtime.clock import ManualClock
from tests.fakes.backend import LAST_CHUNK, STREAM_HEAD, chunk, delta, event, usage

ROLE = {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}]}
EVENTS = [
    *[event(delta("word"))] * 3,
    event(ROLE),
    event(delta("x" * 5000)),
    event(delta("end", finish="stop")),
    event(delta("", finish="abort")),
    event({"choices": [], "usage": usage(5, 2, 0)}),
    event({"error": {"message": "x", "code": 500}}),
    event("[DONE]"),
    b": ping\n\n",
    b"data: a\ndata: b\n\n",
    b"event: x\r\ndata: {}\r\n\r\n",
    b"data: torn",
    b"",
]
STREAMS = st.lists(st.lists(st.sampled_from(EVENTS), min_size=1, max_size=2).map(b"".join), max_size=12)
ENDS = [LAST_CHUNK, chunk(event("[DONE]")) + LAST_CHUNK, b"", LAST_CHUNK + b"more"]
USUAL_END = [event(delta("end", finish="stop")), event({"choices": [], "usage": usage(5, 2, 0)}), event("[DONE]")]


class Owner:
    """Feeds a relay as an exchange does; short: by the usual reads where they are; passes: reads that are events pass."""

    def __init__(self, short: bool, hold_bytes_max: int, passes: bool) -> None:
        self.short = short
        self.passes = passes
        self.relay = Relay(hold_bytes_max=hold_bytes_max, must_end_with_done=True)
        self.out: list[bytes] = []
        self.connection = UpstreamConnection(UpstreamPool(clock=ManualClock(), idle_s=1.0, connect_timeout_s=1.0), "http://a:1")
        self.connection.owner = self
        self.taken = 0

    def upstream_data(self, data: bytes) -> None:
        relay = self.relay
        if self.short and self._take(data):
            self.taken += 1
        else:
            self.out.append(relay.feed(data))
        if relay.ready and relay.phase in (Phase.HELD, Phase.ENDED):
            relay.ready = False
            if relay.phase is Phase.HELD and self.short and relay.first is Says.CONTENT and self.taken == 2:
                self.out += relay.open(self.out.append, self.connection.last)
                self.connection.passing = relay
                return
            self.out.append(relay.release())
        if self.passes and relay.is_open:
            relay.write = self.out.append
            self.connection.passing = relay
        else:
            self.connection.passing = None

    def _take(self, data: bytes) -> bool:
        relay = self.relay
        if relay.phase is Phase.HEAD:
            head = stream_head(data) if not relay.begun else None
            if head is not None:
                relay.take_head(head)
            return head is not None
        if relay.phase is Phase.HELD:
            return relay.take_events(data)
        if self.connection.passing is relay and data.endswith(LAST_CHUNK) and relay.take_end(data):
            self.out.append(data)
            return True
        return False

    def upstream_lost(self, error: Exception | None) -> None: ...

    def upstream_full(self, full: bool) -> None: ...

    @property
    def known(self) -> object:
        relay = self.relay
        relay._catch_up()
        ended = relay.phase is Phase.ENDED
        return (
            relay.phase,
            relay.first,
            relay.error_event,
            relay.chunk_count,
            relay.at_boundary,
            relay.reusable,
            relay.trailing,
            relay.cut_short,
            ended and relay.final(),
            ended and relay.ending,
        )


def read(reads: list[bytes], *, short: bool, hold_bytes_max: int, passes: bool = True) -> tuple[bytes, object, int]:
    owner = Owner(short, hold_bytes_max, passes)
    for data in reads:
        if data and owner.relay.phase is not Phase.ENDED:
            owner.connection.data_received(data)
    return b"".join(owner.out), owner.known, owner.taken


@given(
    STREAMS,
    st.sampled_from(ENDS),
    st.booleans(),
    st.booleans(),
    st.lists(st.integers(0, 4000), max_size=3),
    st.sampled_from([64, 1 << 20]),
)
def test_a_stream_taken_the_short_way_is_the_one_that_is_fed(
    bodies: list[bytes], end: bytes, ends_well: bool, head_apart: bool, cuts: list[int], hold_bytes_max: int
) -> None:
    chunks = [chunk(body) for body in (bodies + USUAL_END if ends_well else bodies) if body]
    reads = [STREAM_HEAD, *chunks] if head_apart else [STREAM_HEAD + b"".join(chunks[:1]), *chunks[1:]]
    if end and chunks and ends_well:
        reads[-1] += end
    else:
        reads.append(end)
    for cut in cuts:  # a read in two
        at = cut % len(reads)
        reads[at : at + 1] = [reads[at][: cut % (len(reads[at]) + 1)], reads[at][cut % (len(reads[at]) + 1) :]]
    fed, known, _ = read(reads, short=False, hold_bytes_max=hold_bytes_max)
    taken, known_too, _ = read(reads, short=True, hold_bytes_max=hold_bytes_max)
    assert (taken, known_too) == (fed, known)


@given(
    st.lists(st.sampled_from(["x", "word " * 30, "y" * 800, "z" * 3900]), min_size=1, max_size=60),
    st.integers(1, 5),
    st.booleans(),
)
def test_reads_of_many_events_pass_as_they_are(texts: list[str], reads: int, ends: bool) -> None:
    chunks = [chunk(event(delta(text))) for text in texts]
    step = -(-len(chunks) // reads)
    come = [STREAM_HEAD, chunk(event(delta("a"))), *[b"".join(chunks[at : at + step]) for at in range(0, len(chunks), step)]]
    if ends:
        come.append(b"".join(map(chunk, USUAL_END)) + LAST_CHUNK)
    fed, known, _ = read(come, short=False, hold_bytes_max=1 << 20)
    taken, known_too, _ = read(come, short=True, hold_bytes_max=1 << 20)
    assert fed == b"".join(come)[len(STREAM_HEAD) :]
    assert (taken, known_too) == (fed, known)
    assert read(come, short=False, hold_bytes_max=1 << 20, passes=False)[:2] == (fed, known)


@pytest.mark.parametrize("finish", ["stop", "abort"])
def test_the_usual_stream_is_taken_whole(finish: str) -> None:
    """Else the test above would compare the general way with itself."""
    end = b"".join(map(chunk, [event(delta("end", finish=finish)), *USUAL_END[1:]])) + LAST_CHUNK
    reads = [STREAM_HEAD, *[chunk(event(delta("word")))] * 20, end]
    fed, known, none = read(reads, short=False, hold_bytes_max=1 << 20)
    taken, known_too, count = read(reads, short=True, hold_bytes_max=1 << 20)
    assert (taken, known_too) == (fed, known)
    assert (none, count) == (0, 3), "head, first event and end"


@pytest.mark.parametrize(
    "change",
    [
        lambda head: head + b"5\r\n",
        lambda head: head[:-1],
        lambda head: head.replace(b"200", b"503"),
        lambda head: head.replace(b"text/event-stream", b"application/json"),
        lambda head: head.replace(b"\r\n\r\n", b"\r\nx-request-id: theirs\r\n\r\n"),
        lambda head: head.replace(b"\r\n\r\n", b"\r\ncontent-encoding: gzip\r\n\r\n"),
        lambda head: head.replace(b"HTTP/1.1", b"SMTP"),
    ],
)
def test_only_a_usual_head_that_came_alone_is_taken(change: Callable[[bytes], bytes]) -> None:
    assert stream_head(STREAM_HEAD) == parse_response_head(STREAM_HEAD[:-4])
    assert stream_head(change(STREAM_HEAD)) is None


def test_remembered_heads_of_streams_are_bounded_in_number_and_size() -> None:
    heads, head = WholeHeads(), parse_response_head(STREAM_HEAD[:-4])
    for number in range(WHOLE_HEADS_MAX + 10):
        heads.add_stream(b"%d" % number, head)
    heads.add_stream(bytes(WHOLE_HEAD_BYTES_MAX + 1), head)
    assert 0 < len(heads.streams) <= WHOLE_HEADS_MAX
    assert max(map(len, heads.streams)) <= WHOLE_HEAD_BYTES_MAX
