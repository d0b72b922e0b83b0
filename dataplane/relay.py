"""One engine response on its way to a client, without I/O.

    HEAD     the response head is being read
    HELD     nothing has been passed on: until the first event with content (streams) or the end (other bodies, up to a
             bound) the request may still be retried elsewhere. vLLM sends 200 and its headers before it has queued anything
    PASSING  bytes go on as they came
    ENDED    the message is complete

`feed` takes what the socket gave and returns what goes to the client now. Streams are passed on in whole chunks, so that
after a break an error event can follow: a torn event is of no use to its reader. The last bytes are kept to read how the
stream ended.

Most reads of a stream are one event in one chunk, or some of these, and go to the client without `feed`: while `is_open`,
whoever has such a read counts its chunks in `passed`, keeps it in `last`, and passes it on
(`UpstreamConnection.data_received`).
"""

from __future__ import annotations

import asyncio
import re
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING

from contract.outcome import End
from dataplane.http1 import (
    LAST_CHUNK,
    ChunkedReader,
    FramingError,
    ResponseHead,
    boundary_in,
    event_chunks,
    parse_response_head,
    unchunked,
)
from dataplane.sse import (
    Ending,
    EventReader,
    Says,
    error_code,
    last_beginning,
    meaning,
    read_ending,
    read_tail,
    read_usual_end,
    read_whole,
)

if TYPE_CHECKING:
    from runtime._passing import Stream

HEAD_BYTES_MAX = 64 * 1024
TAIL_BYTES_KEPT = 4 * 1024
TAIL_BYTES_MAX = 16 * 1024
TORN_BYTES_MAX = 64 * 1024
LAST_EVENTS_KEPT = 8
"""Of those that passed without `feed`, so many reads: the last text of some choices, their finishes, the usage, the end."""

_SEQUENCE_NUMBER = re.compile(rb'"sequence_number":\s*(\d{1,18})')


class Phase(IntEnum):
    HEAD = 0
    HELD = 1
    PASSING = 2
    ENDED = 3


_HEAD, _HELD, _PASSING, _ENDED = Phase
_NOTHING, _CONTENT, _ABORT, _ERROR = Says.NOTHING, Says.CONTENT, Says.ABORT, Says.ERROR
# Module names: on the hot path the members are not looked up in their class each time.


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the beginning of a response means for the attempt."""

    end: End
    retryable: bool


_NONE_PASSED: deque[bytes] = deque(maxlen=0)
_UNKNOWN = Ending()
"""Of a response that has not ended; never written to."""
_COMPLETE = End.COMPLETE
_GOOD = Verdict(_COMPLETE, False)
_STATUS = {
    408: Verdict(End.TIMED_OUT, True),
    429: Verdict(End.BACK_PRESSURE, True),
    503: Verdict(End.BACK_PRESSURE, True),
}


def _verdict_of_status(status: int) -> Verdict:
    if status < 400:
        return _GOOD
    return _STATUS.get(status) or Verdict(*((End.ENGINE_ERROR, True) if status >= 500 else (End.CALLER_ERROR, False)))


class Relay:
    """One response. hold_bytes_max: how much is held back at most; dechunk: for HTTP/1.0 clients."""

    __slots__ = (
        "_buffer",
        "_carry",
        "_chunks_seen",
        "_dechunk",
        "_events",
        "_held",
        "_held_bytes",
        "_hold_bytes_max",
        "_message_end",
        "_must_end_with_done",
        "_tail",
        "_tail_bytes",
        "_torn",
        "chunks",
        "cut_short",
        "ending",
        "error_event",
        "first",
        "head",
        "is_stream",
        "last",
        "passed",
        "phase",
        "ready",
        "remaining",
        "stream",
        "to",
        "trailing",
        "write",
    )

    write: Callable[[bytes], None]
    """To the client; set by whoever passes reads on, as `to` is."""

    def __init__(self, *, hold_bytes_max: int, dechunk: bool = False, must_end_with_done: bool = False) -> None:
        self._hold_bytes_max = hold_bytes_max
        self._dechunk = dechunk
        self._must_end_with_done = must_end_with_done
        self.phase = _HEAD
        self.head: ResponseHead | None = None
        self.is_stream = False
        self.ready = False  # HELD long enough: ask `verdict`, then `release`
        self.first = _NOTHING
        self.ending = _UNKNOWN
        self.trailing = False  # bytes after the message: the connection must not be used again
        self.cut_short = False  # a stream that ended as HTTP but not as an event stream
        self.error_event = b""
        self.chunks: ChunkedReader | None = None
        self.remaining = -1
        self._message_end = 0
        self._buffer = b""
        self._held: list[bytes] = []
        self._held_bytes = 0
        self._events: EventReader | None = None
        self._carry = b""
        self._tail: list[bytes] = []
        self._tail_bytes = 0
        self._torn = b""  # the beginning of the event that spans the tail's beginning
        self.passed = 0  # chunks since the last `feed`
        self.last: deque[bytes] = _NONE_PASSED  # of them
        self.to: asyncio.Transport | None = None
        self.stream: Stream | None = None  # where those behind them are counted
        self._chunks_seen = 0

    @property
    def begun(self) -> bool:
        """The engine has answered something."""
        return self.phase > _HEAD or bool(self._buffer)

    @property
    def at_boundary(self) -> bool:
        """Another event may follow what was passed on."""
        if self.chunks is None:
            return not self.is_sized
        return self._dechunk or bool(self._carry) or self.chunks.at_boundary

    @property
    def is_sized(self) -> bool:
        """Its head says how long it is: nothing can follow it, nor stand in for what is missing."""
        return self.chunks is None and self.head is not None and self.head.length >= 0

    @property
    def reusable(self) -> bool:
        """The connection can carry another request."""
        head = self.head
        if self.phase is not _ENDED or self.trailing or head is None:
            return False
        return head.keep_alive and (head.length >= 0 or self.chunks is not None)

    @property
    def is_open(self) -> bool:
        """Whether the next read, if it is events in chunks of their own, may go to the client as it is."""
        chunks = self.chunks
        if self.phase is not _PASSING or chunks is None or self._events is None or self._dechunk or self._carry:
            return False
        if self.last is _NONE_PASSED:
            self.last = deque(maxlen=LAST_EVENTS_KEPT)
        return chunks.at_boundary

    @property
    def chunk_count(self) -> int:
        """Data chunks of the body so far; 0 where it is not chunked."""
        if self.chunks is None:
            return 0
        return self.chunks.chunks + self.passed + (0 if self.stream is None else self.stream.passed)

    def moved(self) -> bool:
        """Whether a chunk has come since this was last asked."""
        before, self._chunks_seen = self._chunks_seen, self.chunk_count
        return self._chunks_seen > before

    @property
    def sequence_number(self) -> int:
        """The last event's, in streams that number their events; -1: none."""
        self._catch_up()
        found = _SEQUENCE_NUMBER.findall(b"".join(self._tail))
        return int(found[-1]) if found else -1

    def feed(self, data: bytes) -> bytes:
        """What goes to the client now; b"" while held. FramingError: not HTTP/1.1."""
        if self.phase is _PASSING:
            if self.passed or self.stream is not None:
                self._catch_up()
            return self._pass(data)
        if self.phase is _ENDED:
            self.trailing = True
            return b""
        if self.phase is _HEAD:
            data = self._read_head(data)
            if self.phase is not _HELD or (not data and self.chunks is not None):
                return b""
        self._hold(data)
        return b""

    # --- the usual reads of a stream: what `feed` comes to, in a third of the time ---

    def take_head(self, head: ResponseHead) -> None:
        """The whole first read was this head, of a chunked stream of events."""
        self.head = head
        self.chunks = ChunkedReader(collect=True)
        self._events = EventReader()
        self.is_stream = True
        self.phase = _HELD

    def take_events(self, data: bytes) -> bool:
        """While held: events in chunks of their own, each in one line. False: it is something else, and nothing was done."""
        chunks, events = self.chunks, self._events
        if chunks is None or events is None or self.phase is not _HELD or self._dechunk:
            return False
        parts = event_chunks(data)
        if not parts or not chunks.at_boundary or not events.at_boundary:
            return False
        says, event = _NOTHING, b""
        for part in parts:
            start = part.find(b"\ndata: ") + 7
            if start < 10 or start > 12 or part.find(b"\n", start) >= 0:
                return False
            event = part[start:]
            says = meaning(event)
            if says is not _NOTHING:
                break
        self.first = says
        if says is _ERROR:
            self.error_event = event
        chunks.chunks += len(parts)
        self._held.append(data)
        self._held_bytes += len(data)
        self._keep(data)
        self.ready = says is not _NOTHING or self._held_bytes > self._hold_bytes_max
        return True

    def open(self, write: Callable[[bytes], None], last: deque[bytes], to: asyncio.Transport | None = None) -> list[bytes]:
        """`release` of what was all taken by `take_events`; and `is_open` from now on. write: to the client, whose transport is
        `to`; last: of the connection, to be used again: making one costs as much as an event."""
        assert self.chunks is not None
        held, self._held = self._held, []
        self.phase = _PASSING
        self.chunks.collect = False
        last.clear()
        self.last = last
        self.write, self.to = write, to
        return held

    def take_end(self, data: bytes) -> bool:
        """While open: a read that ends with the last chunk, of a stream that ended as usual. False: of another, or it cannot be
        told, and nothing was done."""
        chunks = self.chunks
        assert chunks is not None
        count = 0
        if len(data) > len(LAST_CHUNK):
            count = len(event_chunks(data[: -len(LAST_CHUNK)]))
            if not count:
                return False
        self._catch_up()
        if self._torn:
            return False
        ending = read_usual_end(b"".join((*self._tail, data)))
        if ending is None:
            return False
        chunks.end(count)
        self.ending = ending
        self._tail.clear()
        self.phase = _ENDED
        return True

    def take_passed(self, stream: Stream) -> None:
        """What passed by there comes before what is noted here next."""
        count, last = stream.take()
        self.passed += count
        self.last.extend(last)

    def closed(self, error: Exception | None = None) -> None:
        """The engine closed its side, or the connection broke: afterwards the phase is ENDED, or the response is broken."""
        self._catch_up()
        if error is None and self.phase in (_HELD, _PASSING) and self.chunks is None and self.remaining < 0:
            if self.phase is _HELD and self._events is None:
                self._read_body()
            self._close_message()
            self.ready = True

    def verdict(self) -> Verdict:
        """Of a response that is `ready`."""
        head, first = self.head, self.first
        assert head is not None
        if head.status >= 400:
            return _verdict_of_status(head.status)
        if first is _CONTENT:
            return _GOOD
        if first is _ABORT:
            return Verdict(End.ENGINE_ABORTED, True)
        if first is _ERROR:
            code = error_code(self.error_event)
            return _verdict_of_status(code) if 400 <= code <= 599 else Verdict(End.ENGINE_ERROR, True)
        if first is _NOTHING and self.cut_short:
            return Verdict(End.ENGINE_ERROR, True)
        return _GOOD

    def release(self) -> bytes:
        """Everything held back; from now on bytes pass."""
        held = self._held[0] if len(self._held) == 1 else b"".join(self._held)
        self._held = []
        if self.phase is _ENDED and self.cut_short and self.chunks is not None and not self._dechunk:
            held = held[: boundary_in(held)]
        if self.phase is _HELD:
            self.phase = _PASSING
            if self.chunks is not None:
                self.chunks.collect = self._dechunk
            if self.is_stream and not self._dechunk and self.chunks is not None and not self.chunks.at_boundary:
                cut = boundary_in(held)
                held, self._carry = held[:cut], held[cut:]
        return held

    def final(self) -> End:
        """How a response that was passed on to its end went."""
        end = self.verdict().end
        if end is not _COMPLETE:
            return end
        if self.ending.error or self.cut_short:
            return End.ENGINE_ERROR
        return End.ENGINE_ABORTED if self.ending.aborted else _COMPLETE

    # --- HEAD ---

    def _take_whole(self, head: ResponseHead, body: bytes) -> None:
        """The usual answer that is no stream, all of it there: what the other steps come to, without them."""
        self.head = head
        self.remaining = 0
        self._held.append(body)
        self.first, self.ending = read_whole(body)
        if self.first is _ERROR:
            self.error_event = body
        self.phase = _ENDED
        self.ready = True

    def _read_head(self, data: bytes) -> bytes:
        """The bytes behind the head, once it is there."""
        buffer = self._buffer + data if self._buffer else data
        while True:
            end = buffer.find(b"\r\n\r\n")
            if end < 0:
                if len(buffer) > HEAD_BYTES_MAX:
                    raise FramingError("response head too long")
                self._buffer = buffer
                return b""
            head = parse_response_head(buffer[:end])
            buffer = buffer[end + 4 :]
            if head.status >= 200:
                break
            if head.status == 101:
                raise FramingError("the engine switched protocols")
        self._buffer = b""
        if head.is_plain and len(buffer) == head.length <= self._hold_bytes_max:
            self._take_whole(head, buffer)
            return b""
        self.head = head
        self.phase = _HELD
        self.remaining = head.length
        if head.chunked:
            self.chunks = ChunkedReader(collect=True)
        if head.is_events:
            self._events = EventReader()
            self.is_stream = True
        return buffer

    # --- HELD ---

    def _hold(self, data: bytes) -> None:
        ended = self._advance(data)
        if self.trailing:
            data = data[: self._message_end]
        payload = self._take_payload(data)
        self._held.append(payload if self._dechunk else data)
        self._held_bytes += len(data)
        self._keep(data)
        if self._events is not None and self.first is _NOTHING:
            self._read_events(payload)
        elif self._events is None and ended:
            self._read_body()
        if ended:
            self._close_message()
        if ended or self.first is not _NOTHING or self._held_bytes > self._hold_bytes_max or self._too_long():
            self.ready = True

    def _too_long(self) -> bool:
        """A body that is not worth holding: too long, or of a kind that is not read here (audio, compressed streams)."""
        if self._events is not None:
            return False
        return self.remaining > self._hold_bytes_max or (self._held_bytes > 0 and not self._is_readable())

    def _is_readable(self) -> bool:
        head = self.head
        assert head is not None
        return head.status >= 400 or (not head.encoded and head.content_type.startswith(b"application/json"))

    def _read_events(self, payload: bytes) -> None:
        assert self._events is not None
        for event in self._events.feed(payload):
            says = meaning(event)
            if says is not _NOTHING:
                self.first = says
                self.error_event = event if says is _ERROR else b""
                return

    def _read_body(self) -> None:
        assert self.head is not None
        if self.head.status != 200 or not self._is_readable():
            return
        body = b"".join(self._held)
        if self.chunks is not None and not self._dechunk:
            body = unchunked(body)
        self.first, self.ending = read_whole(body)
        self.error_event = body if self.first is _ERROR else b""

    # --- PASSING ---

    def _pass(self, data: bytes) -> bytes:
        chunks = self.chunks
        if chunks is None:
            ended = self._advance(data)
            if self.trailing:
                data = data[: self._message_end]
            self._keep(data)
            if ended:
                self._close_message()
            return data
        end = chunks.feed(data)
        if end >= 0:
            return self._end_chunked(data, end)
        self._keep(data)
        if self._dechunk:
            return self._take_payload(data)
        if self._carry:
            return self._pass_torn(data)
        if chunks.at_boundary or self._events is None:
            return data
        cut = chunks.boundary
        self._carry = data[cut:]
        return data[:cut]

    def _pass_torn(self, data: bytes) -> bytes:
        """Bytes behind a torn chunk: everything up to the last whole chunk."""
        assert self.chunks is not None
        if self.chunks.at_boundary or len(self._carry) + len(data) > TORN_BYTES_MAX:
            whole, self._carry = self._carry + data, b""
            return whole
        cut = self.chunks.boundary
        if cut == 0:
            self._carry += data
            return b""
        whole, self._carry = self._carry + data[:cut], data[cut:]
        return whole

    def _end_chunked(self, data: bytes, end: int) -> bytes:
        assert self.chunks is not None
        self.trailing = end < len(data)
        self._message_end = end
        data = data[:end]
        self._keep(data)
        self._close_message()
        payload = self._take_payload(data)
        carry, self._carry = self._carry, b""
        if self._dechunk:
            return payload
        if self.cut_short:
            # Without the terminating chunk: an error event goes before it.
            return carry + data[: self.chunks.boundary] if self.chunks.boundary else b""
        return carry + data

    def _close_message(self) -> None:
        """The last byte of the message is here: read how it ended."""
        held = self.phase is _HELD
        self.phase = _ENDED
        tail = b"".join(self._tail)
        self._tail.clear()
        if self._events is not None:
            quick = read_usual_end(tail) if self.chunks is not None and not self._torn else None
            self.ending = quick or read_ending(tail, chunked=self.chunks is not None, torn=self._torn)
            if self._must_end_with_done and not (self.ending.done or self.ending.finished or self.ending.error):
                self.cut_short = True
                self._tail.append(tail)  # the error event goes on with its numbers
        elif not held:
            self.ending = read_tail(tail)

    # --- framing ---

    def _advance(self, data: bytes) -> bool:
        """Whether the message ends within `data`; sets `trailing`."""
        if self.chunks is not None:
            end = self.chunks.feed(data)
            self._message_end = end
            self.trailing = 0 <= end < len(data)
            return end >= 0
        if self.remaining < 0:
            return False
        self._message_end = self.remaining
        self.trailing = len(data) > self.remaining
        self.remaining -= min(len(data), self.remaining)
        return self.remaining == 0

    def _take_payload(self, data: bytes) -> bytes:
        if self.chunks is None:
            return data
        payload = b"".join(self.chunks.payload)
        self.chunks.payload.clear()
        return payload

    def _keep(self, data: bytes) -> None:
        self._tail.append(data)
        self._tail_bytes += len(data)
        if self._tail_bytes > TAIL_BYTES_MAX:
            self._cut_tail()

    def _catch_up(self) -> None:
        """With what passed without `feed`. Each chunk was an event of its own: where as many passed, what came before them has
        nothing to do with how the stream ends."""
        if self.stream is not None:
            self.take_passed(self.stream)
            self.stream = None
        passed, self.passed = self.passed, 0
        if not passed or self.chunks is None:
            return
        self.chunks.chunks += passed
        if passed > LAST_EVENTS_KEPT:
            self._tail.clear()
            self._tail_bytes, self._torn = 0, b""
        self._keep(b"".join(self.last))
        self.last.clear()

    def _cut_tail(self) -> None:
        tail = b"".join(self._tail)
        if self._must_end_with_done:
            self._torn = last_beginning(tail, len(tail) - TAIL_BYTES_KEPT, self._torn)
        kept = tail[-TAIL_BYTES_KEPT:]
        self._tail = [kept]
        self._tail_bytes = len(kept)
