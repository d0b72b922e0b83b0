"""Connections to engines: kept alive between requests, one request at a time on each.

vLLM closes idle connections after 5 s, so older ones are not used again; one that was closed in the instant of its reuse
shows as a reset before any response byte, which `exchange` repairs with a fresh connection.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol, cast
from urllib.parse import urlsplit

from dataplane.engines import Engines, Steps
from dataplane.http1 import EVENT_END, OPENINGS, USUAL_BYTES_MAX, ResponseHead, event_chunks
from dataplane.relay import LAST_EVENTS_KEPT
from dataplane.token_times import TokenTimes
from runtime.clock import Clock
from runtime.sockets import Sockets
from runtime.stream_transport import StreamTransport
from runtime.tasks import within
from runtime.tls import client_context

if TYPE_CHECKING:
    from runtime._passing import Stream

log = logging.getLogger(__name__)

IDLE_PER_ENDPOINT_MAX = 1024
WRITE_BUFFER_BYTES_MAX = 64 * 1024
WHOLE_HEADS_MAX = 4096
"""Remembered; beyond it all are forgotten."""
WHOLE_HEAD_BYTES_MAX = 2048
"""Longer ones are not remembered."""
_PORTS = {"http": 80, "https": 443}


LAST_FOUR = slice(-4, None)
"""Made once."""
NOT_ONE = (b"", b"")
"""Nothing lies between."""


class WholeHeads(dict[int, tuple[bytes, int, bytes, bytes]]):
    """Of answers that came whole in one read, by their size: the head, how long it is, as it is passed on, what is `behind` it.

    Engines of one kind send the same head again and again, but for its Content-Length and its date: an answer of a size seen
    before that begins with the head seen then is as long as its head says.
    """

    def __init__(self) -> None:
        self.streams: dict[bytes, ResponseHead] = {}
        """Of streams, by the bytes of a read that was nothing but such a head."""

    def add_stream(self, data: bytes, head: ResponseHead) -> None:
        if len(self.streams) >= WHOLE_HEADS_MAX:
            self.streams.clear()
        if len(data) <= WHOLE_HEAD_BYTES_MAX:
            self.streams[data] = head

    def add(self, size: int, head: tuple[bytes, int, bytes, bytes]) -> None:
        if len(self) >= WHOLE_HEADS_MAX:
            self.clear()
        if head[1] <= WHOLE_HEAD_BYTES_MAX:
            self[size] = head


class Owner(Protocol):
    """Whoever's request is on a connection."""

    def upstream_data(self, data: bytes) -> None: ...

    def upstream_lost(self, error: Exception | None) -> None: ...

    def upstream_full(self, full: bool) -> None: ...


class Passing(Protocol):
    """A stream whose usual reads go to the client as they are: how many did, the last of them, and where to; `stream`: where
    more of both are counted."""

    passed: int
    last: deque[bytes]
    write: Callable[[bytes], None]
    to: asyncio.Transport | None
    stream: Stream | None

    def take_passed(self, stream: Stream) -> None: ...


class UpstreamConnection(asyncio.Protocol):
    """One connection to an engine. While it has no owner it is idle, and any byte or break ends it.

    passing: set while a read that is events of a stream, each in a chunk of its own, need not be shown to the owner.
    """

    __slots__ = (
        "_pool",
        "direct",
        "engine",
        "heads",
        "host",
        "idle_since",
        "last",
        "owner",
        "passing",
        "reused",
        "steps",
        "tokens",
        "transport",
        "url",
        "write",
    )

    def __init__(self, pool: UpstreamPool, url: str) -> None:
        self._pool = pool
        self.url = url
        self.engine = pool.engines[url]
        self.steps: Steps = self.engine  # or the rank that its request is steered to
        self.host = pool.host(url)
        self.heads = pool.heads
        self.tokens = pool.tokens
        self.owner: Owner | None = None
        self.passing: Passing | None = None
        self.direct: StreamTransport | None = None  # the transport, where streams pass without `data_received`
        self.last: deque[bytes] = deque(maxlen=LAST_EVENTS_KEPT)  # of one stream after the other
        self.transport: asyncio.Transport | None = None
        self.reused = False
        self.idle_since = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop registers no subclass
        self.write: Callable[[bytes], None] = self.transport.write
        if isinstance(transport, StreamTransport) and transport.can_pass:
            self.direct = transport
        no_delay(transport)

    def data_received(self, data: bytes) -> None:
        passing = self.passing
        if passing is not None and data[LAST_FOUR] == EVENT_END:
            if passing.stream is not None:
                passing.take_passed(passing.stream)
            size = len(data)
            least, beyond = OPENINGS[size] if size < USUAL_BYTES_MAX else NOT_ONE
            if least <= data < beyond:
                passing.passed += 1
                passing.last.append(data)
                usual = True
            else:
                usual = _several(passing, data)
            if usual:
                write = passing.write
                write(data)
                tokens = self.tokens
                if tokens.wanted:
                    steps = self.steps
                    keeper = steps.timekeeper
                    if keeper is self or keeper is None:
                        steps.timekeeper = self
                        steps.tokens_at = tokens.now()
                if self.direct is not None:
                    self._pass_on(self.direct, passing)
                return
        owner = self.owner
        if owner is not None:
            owner.upstream_data(data)
        else:
            self.abort()

    def _pass_on(self, transport: StreamTransport, passing: Passing) -> None:
        """What follows goes there without being shown here, until something else comes."""
        stream = transport.pass_to(passing.to)
        if stream is None:
            return
        if passing.stream is not stream:
            stream.take()  # of whoever was here before
            passing.stream = stream
        self.steps.streams[stream] = None

    def pass_no_more(self) -> None:
        """The stream has ended, or goes on otherwise."""
        self.passing = None
        self.keep_no_time()
        if self.direct is not None:
            self.direct.pass_no_more()

    def connection_lost(self, exc: Exception | None) -> None:
        self.keep_no_time()
        self.transport = self.passing = self.direct = None
        self._pool.forget(self)
        owner, self.owner = self.owner, None
        if owner is not None:
            owner.upstream_lost(exc)

    def pause_writing(self) -> None:
        if self.owner is not None:
            self.owner.upstream_full(True)

    def resume_writing(self) -> None:
        if self.owner is not None:
            self.owner.upstream_full(False)

    def pause(self) -> None:
        """Read no more for now."""
        self.keep_no_time()
        if self.transport is not None and not self.transport.is_closing():
            self.transport.pause_reading()

    def resume(self) -> None:
        if self.transport is not None and not self.transport.is_closing():
            self.transport.resume_reading()

    def abort(self) -> None:
        """Close at once; the owner hears nothing more."""
        self.owner = self.passing = None
        self.keep_no_time()
        if self.transport is not None:
            self.transport.abort()

    def keep_no_time(self) -> None:
        """Nothing comes here for now, and another stream may know better when its engine's tokens came."""
        steps, transport = self.steps, self.direct
        if steps.timekeeper is self:
            steps.timekeeper = None
        if transport is not None and transport.stream is not None:
            steps.streams.pop(transport.stream, None)


def _several(passing: Passing, data: bytes) -> bool:
    """Events that had to wait for their reader: noted, or not what passes as it is."""
    count, kept = len(event_chunks(data)), data
    if not count:
        return False
    if len(data) >= USUAL_BYTES_MAX:  # of each stream a few KB are kept
        if count <= LAST_EVENTS_KEPT:
            return False
        before = data.rsplit(EVENT_END, LAST_EVENTS_KEPT + 1)[0]
        kept = data[len(before) + len(EVENT_END) :]
        passing.last.clear()
    passing.passed += count
    passing.last.append(kept)
    return True


def no_delay(transport: asyncio.BaseTransport) -> None:
    """Small writes leave at once: with Nagle's algorithm and delayed acknowledgements they take 40 ms."""
    raw = transport.get_extra_info("socket")
    if raw is not None and raw.family in (socket.AF_INET, socket.AF_INET6):
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


class UpstreamPool:
    """Idle connections by base URL, newest first."""

    def __init__(
        self,
        *,
        clock: Clock,
        idle_s: float,
        connect_timeout_s: float,
        engines: Engines | None = None,
        tokens: TokenTimes | None = None,
        sockets: Sockets | None = None,
        ca: str = "",
    ) -> None:
        """engines: where idle connections are kept; tokens: who is told of the reads of streams; sockets: of this process; ca:
        authority of engines with https URLs; "": the system's. TlsError."""
        self.engines = Engines() if engines is None else engines
        self.tokens = tokens or TokenTimes(clock.now, self.engines)
        self.idle_s = idle_s
        self._clock = clock
        self._connect_timeout_s = connect_timeout_s
        self._sockets = sockets or Sockets()
        self._tls = client_context(ca) if ca else None
        self._connecting: set[asyncio.Task[None]] = set()
        self._addresses: dict[str, tuple[str, int, bytes]] = {}
        self.heads = WholeHeads()

    @property
    def idle(self) -> int:
        return sum(len(engine.idle) for engine in self.engines.values())

    def host(self, url: str) -> bytes:
        """The Host header of a base URL."""
        return self._address(url)[2]

    def take(self, url: str, now: float) -> UpstreamConnection | None:
        """An idle connection that is still young; older ones are closed."""
        idle = self.engines[url].idle
        if not idle:
            return None
        connection = idle.pop()
        transport = connection.transport
        if transport is not None and now - connection.idle_since <= self.idle_s and not transport.is_closing():
            connection.reused = True
            return connection
        idle.append(connection)
        self._close(idle)
        return None

    def give(self, connection: UpstreamConnection, now: float) -> None:
        """Back, its response read to the end."""
        connection.owner = None
        connection.pass_no_more()
        engine = connection.engine = connection.steps = self.engines[connection.url]  # it may have been forgotten meanwhile
        idle, transport = engine.idle, connection.transport
        if transport is None or len(idle) >= IDLE_PER_ENDPOINT_MAX or transport.is_closing():
            connection.abort()
            return
        if transport.get_write_buffer_size():  # it answered without reading its request, whose rest stands in the way
            connection.abort()
            return
        connection.idle_since = now
        idle.append(connection)

    def connect(self, url: str, done: Callable[[UpstreamConnection | Exception], None]) -> None:
        """A new connection, or why there is none: OSError, TimeoutError, ValueError for a URL that is none."""
        task = asyncio.get_running_loop().create_task(self._connect(url, done))
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)

    def sweep(self) -> None:
        """Close what has been idle for too long."""
        oldest = self._clock.now() - self.idle_s
        for engine in self.engines.values():
            idle = engine.idle
            if idle and idle[0].idle_since < oldest:
                self._close([connection for connection in idle if connection.idle_since < oldest])
                engine.idle = [connection for connection in idle if connection.idle_since >= oldest]
        self.engines.sweep()

    def forget(self, connection: UpstreamConnection) -> None:
        """It closed."""
        idle = connection.engine.idle
        if connection in idle:
            idle.remove(connection)

    def close(self) -> None:
        """Everything idle, and connects under way."""
        for task in self._connecting:
            task.cancel()
        for engine in self.engines.values():
            self._close(engine.idle)

    async def _connect(self, url: str, done: Callable[[UpstreamConnection | Exception], None]) -> None:
        try:
            host, port, _ = self._address(url)
            async with within(self._connect_timeout_s):
                connection = await self._dial(url, host, port)
        except (OSError, ValueError) as error:  # TimeoutError is an OSError
            done(error)
            return
        except Exception as error:  # whoever waits for this connection has no other deadline
            log.exception("connecting failed", extra={"f": {"url": url}})
            done(error)
            return
        done(connection)

    async def _dial(self, url: str, host: str, port: int) -> UpstreamConnection:
        def made() -> UpstreamConnection:
            return UpstreamConnection(self, url)

        if not url.startswith("https:"):
            return await self._sockets.connect(host, port, made)
        if self._tls is None:
            self._tls = client_context("")
        _, connection = await asyncio.get_running_loop().create_connection(made, host, port, ssl=self._tls)
        return connection

    def _address(self, url: str) -> tuple[str, int, bytes]:
        found = self._addresses.get(url)
        if found is None:
            parts = urlsplit(url)
            if parts.scheme not in _PORTS or not parts.hostname:
                raise ValueError("its URL is no http:// or https:// URL")
            found = (parts.hostname, parts.port or _PORTS[parts.scheme], parts.netloc.rpartition("@")[2].encode())
            self._addresses[url] = found
        return found

    def _close(self, idle: list[UpstreamConnection]) -> None:
        closing, idle[:] = idle[:], []
        for connection in closing:
            connection.abort()
