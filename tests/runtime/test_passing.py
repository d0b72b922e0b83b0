"""Events that pass from one socket to another without Python: the same bytes, counted and kept as if they had been shown."""

from __future__ import annotations

import asyncio
import os
import socket
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from random import Random

import pytest

from dataplane.http1 import EVENT_END, OPENINGS, USUAL_BYTES_MAX, event_chunks
from dataplane.relay import LAST_EVENTS_KEPT
from runtime.passing import READ_BYTES, _receive, _send, compiled
from runtime.sockets import Sockets
from runtime.stream_transport import StreamTransport
from tests.sockets import connected
from tests.waiting import meanwhile, turns, until

pytestmark = pytest.mark.skipif(compiled is None, reason="the installation found no C compiler")

LAST_CHUNK = b"0\r\n\r\n"


def chunk(payload: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(payload), payload)


def event(text: str) -> bytes:
    return chunk(b"data: %b\n\n" % text.encode())


def events_in(data: bytes) -> int:
    """As the data plane tells it in Python; 0: not usual."""
    least, beyond = OPENINGS[len(data)] if len(data) < USUAL_BYTES_MAX else (b"", b"")
    if data[-4:] == EVENT_END and least <= data < beyond:
        return 1
    count = len(event_chunks(data))
    return count if len(data) < USUAL_BYTES_MAX or count > LAST_EVENTS_KEPT else 0


def is_usual(data: bytes) -> bool:
    return events_in(data) > 0


class Source(asyncio.Protocol):
    """Passes on what is usual from the second event on, and writes what it is shown itself; all goes to the same target."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.shown: list[bytes] = []
        self.count = self.unseen = 0
        self.last: deque[bytes] = deque(maxlen=LAST_EVENTS_KEPT)
        self.told: list[str] = []
        self.error: Exception | None = None
        self.transport: StreamTransport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, StreamTransport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.catch_up()
        self.shown.append(data)
        if is_usual(data):
            self.count += events_in(data)
            self.last.append(data)
        self.target.transport.write(data)
        if is_usual(data):
            self.transport.pass_to(self.target.transport)

    def catch_up(self) -> None:
        if self.transport.stream is not None:
            count, last = self.transport.stream.take()
            self.count += count
            self.unseen += count
            self.last.extend(last)

    @property
    def passes(self) -> bool:
        return self.transport.stream is not None and self.transport.stream.is_started

    def connection_lost(self, error: Exception | None) -> None:
        self.told.append("lost")
        self.error = error


class Target(asyncio.Protocol):
    def __init__(self) -> None:
        self.told: list[str] = []
        self.transport: StreamTransport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, StreamTransport)
        self.transport = transport

    def pause_writing(self) -> None:
        self.told.append("pause")

    def resume_writing(self) -> None:
        self.told.append("resume")

    def connection_lost(self, error: Exception | None) -> None:
        self.told.append("lost")


class Pair:
    """An engine's socket and a client's, with what is between them."""

    def __init__(self, sockets: Sockets, stack: ExitStack) -> None:
        engine, source = connected(stack)
        client, target = connected(stack)
        self.engine, self.client = engine, client
        self.target = Target()
        sockets.add(target, self.target)
        self.source = Source(self.target)
        sockets.add(source, self.source)

    async def say(self, data: bytes) -> None:
        """One read there."""
        before = len(self.source.shown), self.passed
        assert self.engine.send(data) == len(data)
        await until(lambda: (len(self.source.shown), self.passed) != before)

    @property
    def passed(self) -> int:
        stream = self.source.transport.stream
        return 0 if stream is None else stream.passed

    async def hear(self, size: int) -> bytes:
        found = b""
        while len(found) < size:
            data = await asyncio.get_running_loop().sock_recv(self.client, 1 << 20)
            if not data:
                break
            found += data
        return found


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as found:
        yield found


@pytest.fixture
async def sockets() -> AsyncIterator[Sockets]:
    found = Sockets()
    yield found
    found.close()


@pytest.fixture
async def pair(sockets: Sockets, stack: ExitStack) -> Pair:
    return Pair(sockets, stack)


async def test_events_pass_without_being_shown_and_are_counted_and_kept(pair: Pair) -> None:
    events = [event(f"word {number}") for number in range(30)]
    for each in events:
        await pair.say(each)
        assert await pair.hear(len(each)) == each
    assert pair.source.shown == events[:1]
    assert pair.passed == 29
    stream = pair.source.transport.stream
    assert stream is not None
    assert stream.take_at() == pytest.approx(asyncio.get_running_loop().time(), abs=5)
    assert stream.take_at() == 0.0
    pair.source.catch_up()
    assert pair.source.count == 30
    assert list(pair.source.last) == events[-LAST_EVENTS_KEPT:]
    assert stream.take() == (0, [])


async def test_reads_of_several_pass_too_and_as_much_is_kept_as_says_how_a_stream_ends(pair: Pair) -> None:
    await pair.say(event("first"))
    reads = [b"".join(event(f"{number}.{part}") for part in range(count)) for number, count in enumerate((2, 1, 7, 8, 3, 1))]
    for read in reads:
        await pair.say(read)
        assert await pair.hear(len(read)) in (read, event("first") + read)
    stream = pair.source.transport.stream
    assert stream is not None
    assert stream.take() == (22, reads)
    many = [event("x" * size) for size in range(200, 400)]
    for read in (reads[0], b"".join(many), reads[1]):
        await pair.say(read)
    assert stream.take() == (203, [b"".join(many[-LAST_EVENTS_KEPT:]), reads[1]])
    assert len(pair.source.shown) == 1


UNUSUAL = {
    "large ones, too few to be the last that are kept": 2 * event("x" * 3000),
    "one and a half": event("a") + event("b")[:9],
    "one and the end": event("a") + LAST_CHUNK,
    "one and another kind": event("a") + chunk(b": ping\n"),
    "half of one": event("a")[:-3],
    "the end": LAST_CHUNK,
    "the last one with the end": event("[DONE]") + LAST_CHUNK,
    "a comment": chunk(b": keep-alive\n"),
    "capital digits": b"2C\r\n" + chunk(b"data: " + b"x" * 36 + b"\n\n")[4:],
    "leading zeros": b"0" + event("a"),
    "a chunk extension": b"9;x=1\r\ndata: a\n\n\r\n",
    "a size that is another": b"8\r\ndata: a\n\n\r\n",
    "no digits": b"\r\n\n\n\r\n",
    "as long as may be, and one more": event("x" * (USUAL_BYTES_MAX - 15)),
    "much": event("x" * 30_000),
    "what looks like one": b"HTTP/1.1 200 OK\r\n\n\n\r\n",
}


@pytest.mark.parametrize("name", UNUSUAL)
async def test_what_is_not_usual_is_shown_and_nothing_passes_behind_it(pair: Pair, name: str) -> None:
    data = UNUSUAL[name]
    assert not is_usual(data)
    for each in (event("1"), event("2")):
        await pair.say(each)
    assert pair.source.passes
    await pair.say(data)
    assert pair.source.shown[1] == data
    assert not pair.source.passes
    await pair.say(LAST_CHUNK)
    assert b"".join(pair.source.shown[1:]) == data + LAST_CHUNK
    whole = event("1") + event("2") + data + LAST_CHUNK
    assert await pair.hear(len(whole)) == whole


@pytest.mark.parametrize("size", [*range(1, 40), 255 + 6, 256 + 7, 4000, USUAL_BYTES_MAX - 1])
async def test_compiled_code_and_python_agree_on_what_is_usual(pair: Pair, size: int) -> None:
    """Every length at which a size line grows by a digit, and around them what Python finds."""
    rng = Random(size)
    for number in range(6):
        payload = rng.randbytes(size)
        data = [
            chunk(payload),
            chunk(payload[:-2] + b"\n\n"),
            b"%X\r\n%b\n\n\r\n" % (size, payload[:-2]),
            b"%x\r\n%b\n\n\r\n" % (size + 1, payload[:-2]),
            payload + EVENT_END,
            chunk(payload[: size // 2] + EVENT_END + payload[size // 2 :] + b"\n\n"),
        ][number]
        await pair.say(event("first"))
        shown = len(pair.source.shown)
        if not pair.source.passes:
            await pair.say(event("second"))
            shown = len(pair.source.shown)
        await pair.say(data)
        assert (len(pair.source.shown) == shown) == is_usual(data), data
        await pair.say(LAST_CHUNK)


async def test_any_stream_in_any_pieces_arrives_as_it_was_sent(sockets: Sockets, stack: ExitStack) -> None:
    """Events, comments, torn and joined writes, on many pairs at once; nobody gets another's."""
    rng = Random(5)
    pairs = [Pair(sockets, stack) for _ in range(20)]
    sent = [b""] * len(pairs)
    heard = [b""] * len(pairs)
    for _ in range(150):
        for number, pair in enumerate(pairs):
            if rng.random() < 0.6:
                data = b"".join(event(f"{number}: {rng.random()}") for _ in range(rng.choice((1, 1, 1, 1, 2, 5))))
                cut = rng.randrange(len(data)) if rng.random() < 0.1 else 0
                for piece in filter(None, (data[:cut], data[cut:])):
                    pair.engine.send(piece)
                    await turns(rng.randrange(3))
                sent[number] += data
        await turns(1)
        for number, pair in enumerate(pairs):
            try:
                heard[number] += pair.client.recv(1 << 20)
            except BlockingIOError:
                pass
    for number, pair in enumerate(pairs):
        heard[number] += await pair.hear(len(sent[number]) - len(heard[number]))
        pair.source.catch_up()
    assert heard == sent
    assert sum(pair.source.unseen for pair in pairs) > 100


async def test_a_client_that_does_not_read_gets_all_of_it_later_and_in_order(pair: Pair) -> None:
    """Its socket takes part of an event: the rest waits before what follows, and nothing overtakes it."""
    sent = b""
    pair.target.transport.set_write_buffer_limits(high=100_000)
    while not pair.target.transport.get_write_buffer_size():
        each = event(f"{len(sent)} " + "x" * 4000)
        await pair.say(each)
        sent += each
    assert not pair.source.passes
    for number in range(5):
        each = event(f"behind it {number}")
        await pair.say(each)
        sent += each
    assert not pair.source.passes
    assert await pair.hear(len(sent)) == sent
    await until(lambda: not pair.target.transport.get_write_buffer_size())
    for number in range(3):
        await pair.say(event(f"and again {number}"))
    assert pair.source.passes
    assert pair.source.shown[-1] == event("and again 0")


@pytest.mark.parametrize("how", ["close", "abort", "write_eof"])
async def test_nothing_passes_to_who_has_ended(sockets: Sockets, stack: ExitStack, pair: Pair, how: str) -> None:
    """Its number may be another's by then."""
    await pair.say(event("1"))
    await pair.say(event("2"))
    assert pair.source.passes
    getattr(pair.target.transport, how)()
    assert not pair.source.passes
    number = pair.target.transport.get_extra_info("socket").fileno()
    other = Pair(sockets, stack)  # takes the number where it is free
    assert how == "write_eof" or number == -1
    await pair.say(event("3"))
    assert pair.source.shown == [event("1"), event("3")]
    await meanwhile(0.02)
    with pytest.raises(BlockingIOError):
        other.client.recv(100)


async def test_an_ended_source_passes_nothing(sockets: Sockets, stack: ExitStack, pair: Pair) -> None:
    await pair.say(event("1"))
    await pair.say(event("2"))
    pair.source.transport.abort()
    assert not pair.source.passes
    other = Pair(sockets, stack)
    await other.say(event("mine"))
    assert await other.hear(len(event("mine"))) == event("mine")
    assert await pair.hear(len(event("1") + event("2"))) == event("1") + event("2")


async def test_an_engine_that_closes_or_breaks_amid_is_told(sockets: Sockets, stack: ExitStack) -> None:
    for reset in (False, True):
        pair = Pair(sockets, stack)
        await pair.say(event("1"))
        await pair.say(event("2"))
        if reset:
            pair.engine.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        pair.engine.close()
        await until(lambda pair=pair: pair.source.told)  # type: ignore[misc]
        assert isinstance(pair.source.error, ConnectionResetError if reset else type(None))
        assert pair.passed == 1


async def test_a_source_goes_from_one_client_to_the_next(sockets: Sockets, stack: ExitStack, pair: Pair) -> None:
    other = Pair(sockets, stack)
    for number in range(3):
        await pair.say(event(f"first {number}"))
    await pair.say(LAST_CHUNK)
    first = b"".join(event(f"first {number}") for number in range(3)) + LAST_CHUNK
    pair.source.target = other.target
    for number in range(3):
        await pair.say(event(f"second {number}"))
    assert await pair.hear(len(first)) == first
    second = b"".join(event(f"second {number}") for number in range(3))
    assert await other.hear(len(second)) == second
    pair.target.transport.abort()
    assert pair.source.passes  # the one that left is not whom it passes to
    pair.source.transport.pass_no_more()
    await pair.say(event("shown"))
    assert pair.source.shown[-1] == event("shown")


async def test_nobody_passes_where_it_is_not_wanted_or_cannot_be(stack: ExitStack) -> None:
    sockets = Sockets(passes=False)
    pair = Pair(sockets, stack)
    assert pair.source.transport.pass_to(pair.target.transport) is None
    assert not pair.source.transport.can_pass
    sockets.close()
    sockets = Sockets()
    pair = Pair(sockets, stack)
    assert pair.source.transport.pass_to(None) is None
    pair.source.transport.pause_reading()
    assert pair.source.transport.pass_to(pair.target.transport) is None
    sockets.close()


@pytest.mark.parametrize("which", ["compiled", "plain"])
def test_one_read_and_one_write(stack: ExitStack, which: str) -> None:
    receive, send = (compiled.receive, compiled.send) if which == "compiled" else (_receive, _send)
    here, there = connected(stack)
    assert receive(here.fileno()) is None
    assert [send(there.fileno(), data) for data in (b"a", bytearray(b"bc"), memoryview(b"xdef")[1:])] == [1, 2, 3]
    assert receive(here.fileno()) == b"abcdef"
    taken = 0
    while sent := send(there.fileno(), bytes(1 << 20)):
        taken += sent
    while data := receive(here.fileno()):
        assert len(data) <= READ_BYTES
        taken -= len(data)
        if not taken:
            break
    there.close()
    assert receive(here.fileno()) == b""
    with pytest.raises(BrokenPipeError):
        for _ in range(3):
            send(here.fileno(), b"x")
    here.close()


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="no file descriptor"):
        compiled.receive(-1)
    with pytest.raises(ValueError, match="no file descriptor"):
        compiled.send(-1, b"")
    with pytest.raises(TypeError):
        compiled.send(1)  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        compiled.send(1, "text")  # type: ignore[arg-type]
    with pytest.raises(OSError, match=os.strerror(9)):
        compiled.receive(1_000_000)
    stream, other = compiled.Stream(), compiled.Stream()
    with pytest.raises(ValueError, match="not open"):
        stream.start(-1, 3)
    with pytest.raises(ValueError, match="not open"):
        stream.start(3, -1)
    stream.start(900, 901)
    with pytest.raises(ValueError, match="another stream"):
        other.start(900, 902)
    stream.start(900, 903)
    stream.start(9000, 903)
    other.start(900, 902)
    stream.stop()
    stream.stop()
    del other
    stream.start(900, 901)  # nobody's any more
    stream.stop()
    with pytest.raises(ValueError, match="0"):
        compiled.pass_ready(0, 0)
    with pytest.raises(OSError, match=os.strerror(9)):
        compiled.pass_ready(1_000_000, 1)
    assert (compiled.KEPT, compiled.USUAL_BYTES_MAX) == (LAST_EVENTS_KEPT, USUAL_BYTES_MAX)
