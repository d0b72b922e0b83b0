"""Plain stream sockets, read and written here rather than by the event loop.

They stand in an epoll set of their own, which the loop sees as one file that has something to be read: whatever is ready then
is read in one pass, and what is written leaves at once, while it is warm. A `StreamTransport` is otherwise what asyncio says a
transport is; TLS stays with the loop's own.

Events of streams that go from one transport to another as they are need no Python at all where `_passing.c` was compiled, which
an installation does if it finds a compiler: `StreamTransport.pass_to`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import select
import socket
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeVar, cast

if TYPE_CHECKING:
    from runtime._passing import Stream

_VERSION = 3
"""Of the compiled part; one that was built from other sources is left alone."""
try:
    from runtime import _passing as compiled
except ImportError:
    compiled = None  # type: ignore[assignment]
else:
    if getattr(compiled, "VERSION", 0) != _VERSION:
        compiled = None  # type: ignore[assignment]

log = logging.getLogger(__name__)


def _receive(fd: int) -> bytes | None:
    """One read; b"": the end, None: nothing there. OSError."""
    try:
        return os.read(fd, READ_BYTES)
    except BlockingIOError:
        return None


def _send(fd: int, data: bytes | bytearray | memoryview) -> int:
    """How many bytes were taken. OSError."""
    try:
        return os.write(fd, data)
    except BlockingIOError:
        return 0


receive = _receive if compiled is None else compiled.receive
send = _send if compiled is None else compiled.send

READ_BYTES = 64 * 1024
EVENTS_MAX = 512
"""In one pass; then it is the loop's turn."""
WRITE_BYTES_MAX = 256 * 1024
HIGH_WATER_BYTES = 64 * 1024
ACCEPTS_MAX = 256
"""In one pass."""
ACCEPT_PAUSE_S = 1.0
"""Where a connection cannot be taken because the process has no file descriptor left."""

P = TypeVar("P", bound=asyncio.Protocol)

_IN, _OUT = select.EPOLLIN, select.EPOLLOUT
_TO_READ = select.EPOLLIN | select.EPOLLHUP | select.EPOLLERR
"""The ends of a connection are found by reading."""


class Sockets:
    """The sockets of one event loop, from the first that is added until `close`. passes: streams by compiled code, if there is
    any."""

    def __init__(self, *, passes: bool = True) -> None:
        self.passes = passes and compiled is not None
        self._readers: dict[int, StreamTransport] = {}
        self._others: dict[int, Callable[[int], None]] = {}
        self.sources: dict[int, StreamTransport] = {}
        """Of streams that are passed on, or were."""
        self._epoll: select.epoll | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The loop that runs when it is first asked for."""
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
            self._epoll = select.epoll()
            self._loop.add_reader(self._epoll.fileno(), self._ready)
        return self._loop

    def add(self, connected: socket.socket, protocol: asyncio.Protocol, peer: object = None) -> StreamTransport:
        """connected: belongs to the transport from now on. `connection_made` is called before this returns."""
        connected.setblocking(False)
        return StreamTransport(self, connected, protocol, peer)

    def listen(self, listening: socket.socket, protocol: Callable[[], asyncio.Protocol]) -> Door:
        """Takes connections until the door is closed; the socket stays the caller's."""
        listening.setblocking(False)
        return Door(self, listening, protocol)

    async def connect(self, host: str, port: int, protocol: Callable[[], P]) -> P:
        """To the first address of the host that answers. OSError: none does."""
        errors: list[OSError] = []
        for family, kind, number, _, address in await self.loop.getaddrinfo(host, port, type=socket.SOCK_STREAM):
            try:
                connected = await self._dial(family, kind, number, address)
            except OSError as error:
                errors.append(error)
                continue
            made = protocol()
            self.add(connected, made, address)
            return made
        if not errors:
            raise OSError(f"{host} has no address")
        if len(errors) == 1:
            raise errors[0]
        raise OSError(errors[0].errno, "; ".join(str(error) for error in errors))

    async def _dial(self, family: int, kind: int, number: int, address: Any) -> socket.socket:
        dialling = socket.socket(family, kind, number)
        try:
            dialling.setblocking(False)
            await self.loop.sock_connect(dialling, address)
        except BaseException:
            dialling.close()
            raise
        return dialling

    def close(self) -> None:
        """Nothing is read any more; what was added is to be closed before."""
        epoll, self._epoll = self._epoll, None
        if epoll is not None and self._loop is not None:
            if not self._loop.is_closed():
                self._loop.remove_reader(epoll.fileno())
            epoll.close()

    # --- for what is in it ---

    def watch(self, fd: int, before: int, events: int, told: Callable[[int], None], reader: StreamTransport | None) -> None:
        """events: in place of `before`; 0: none, not even that the other end is gone. told: of all but bytes for `reader`."""
        epoll = self._epoll
        if epoll is None:
            return
        if not events:
            self._readers.pop(fd, None)
            del self._others[fd]
            epoll.unregister(fd)
            return
        self._others[fd] = told
        if reader is not None:
            self._readers[fd] = reader
        else:
            self._readers.pop(fd, None)
        if before:
            epoll.modify(fd, events)
        else:
            epoll.register(fd, events)

    def forget(self, fd: int) -> None:
        """It is about to be closed, and leaves the set by that."""
        self._readers.pop(fd, None)
        self._others.pop(fd, None)
        self.sources.pop(fd, None)

    def _ready(self) -> None:
        if self._epoll is None:
            return
        if not self.passes:
            self._read(self._epoll.poll(0, EVENTS_MAX))
            return
        shown, others = compiled.pass_ready(self._epoll.fileno(), EVENTS_MAX)
        for fd, events, data in shown:
            source = self.sources.get(fd)
            if source is None or source.is_closing():  # by what came before it in this pass
                continue
            if data is None and events < 0:
                source.broke(OSError(-events, os.strerror(-events)))
            elif data is None:
                source.read()
            elif events:
                source.took(data)
            else:
                source.rest(data)
        self._read(others)

    def _read(self, ready: list[tuple[int, int]]) -> None:
        readers = self._readers
        for fd, events in ready:
            reader = readers.get(fd)
            if reader is None or events != _IN:
                told = self._others.get(fd)
                if told is not None:
                    told(events)
                continue
            try:
                data = receive(fd)
            except OSError as error:
                reader.broke(error)
                continue
            if data:
                reader.took(data)
            elif data is not None:  # else another socket of that number was meant, closed in this pass
                reader.at_end()


class StreamTransport(asyncio.Transport):
    """One connection. write: leaves at once, up to what the kernel takes; the rest waits here and follows."""

    __slots__ = (
        "_buffer",
        "_closed",
        "_closing",
        "_ending",
        "_events",
        "_fd",
        "_high",
        "_loop",
        "_low",
        "_paused",
        "_peer",
        "_protocol",
        "_reading",
        "_slow",
        "_socket",
        "_sockets",
        "_streams",
        "_take",
        "_to",
        "stream",
    )

    def __init__(self, sockets: Sockets, connected: socket.socket, protocol: asyncio.Protocol, peer: object = None) -> None:
        super().__init__()
        self._sockets = sockets
        self._loop = sockets.loop
        self._socket = connected
        self._fd = connected.fileno()
        self._peer = peer
        self._buffer = bytearray()
        self._high, self._low = HIGH_WATER_BYTES, HIGH_WATER_BYTES // 4
        self._events = 0
        self._reading = True
        self._paused = False  # the protocol was told that it writes too fast
        self._ending = False  # no more is written after the buffer
        self._closing = False
        self._closed = False
        self._slow = False  # the next write is not an ordinary one
        self.stream: Stream | None = None  # what passes from here to `_to`
        self._to: StreamTransport | None = None
        self._streams: list[Stream] = []  # what passes to here from others
        self.set_protocol(protocol)
        protocol.connection_made(self)
        self._watch()

    # --- what asyncio asks for ---

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """socket, peername, sockname. The peer's name is known when the connection is closed, too, where it was accepted."""
        if name == "socket":
            return self._socket
        if name == "peername":
            if self._peer is None:
                self._peer = self._name(self._socket.getpeername)
            return default if self._peer is None else self._peer
        if name == "sockname":
            found = self._name(self._socket.getsockname)
            return default if found is None else found
        return default

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._protocol = cast(asyncio.Protocol, protocol)
        self._take: Callable[[bytes], None] = self._protocol.data_received

    def get_protocol(self) -> asyncio.Protocol:
        return self._protocol

    def is_closing(self) -> bool:
        return self._closing

    def is_reading(self) -> bool:
        return self._reading and not self._closing

    def pause_reading(self) -> None:
        self._reading = False
        self._watch()

    def resume_reading(self) -> None:
        self._reading = True
        self._watch()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """high: HIGH_WATER_BYTES, or four times `low`; low: a quarter of it. ValueError."""
        if high is None:
            high = HIGH_WATER_BYTES if low is None else 4 * low
        if low is None:
            low = high // 4
        if not high >= low >= 0:
            raise ValueError(f"high ({high}) must be at least low ({low}), and that not negative")
        self._high, self._low = high, low
        self._press()

    def get_write_buffer_size(self) -> int:
        return len(self._buffer)

    def get_write_buffer_limits(self) -> tuple[int, int]:
        return self._low, self._high

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self._slow:
            self._write_later(data)
            return
        try:
            sent = send(self._fd, data)
        except OSError as error:
            self.broke(error)
            return
        if sent != len(data):
            self._write_later(memoryview(data)[sent:])

    def writelines(self, list_of_data: Iterable[bytes | bytearray | memoryview]) -> None:
        self.write(b"".join(list_of_data))

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        if self._ending or self._closing:
            return
        self._ending = True
        self._slow_down()
        if not self._buffer:
            self._shut_down()

    def close(self) -> None:
        """After what is in the buffer has left."""
        if self._closing:
            return
        self._closing = True
        self._slow_down()
        if self._buffer:
            self._watch()
        else:
            self._end(None)

    def abort(self) -> None:
        """At once."""
        self._end(None)

    # --- streams passed on ---

    @property
    def can_pass(self) -> bool:
        """Whether `pass_to` may do something."""
        return self._sockets.passes

    def pass_to(self, other: asyncio.BaseTransport | None) -> Stream | None:
        """From now on reads that are whole events, each in one chunk of HTTP/1.1, go there without being shown to the protocol,
        until something else comes: that is shown, and whether more is to pass must be said again.

        None: not now, or never; nothing was done.
        """
        if not self._sockets.passes or not isinstance(other, StreamTransport) or other._slow or not self.is_reading():
            return None
        stream = self.stream
        if stream is None:
            stream = self.stream = compiled.Stream()
        if self._to is not other:
            self._leave()
            self._to = other
            other._streams.append(stream)
        self._sockets.sources[self._fd] = self
        stream.start(self._fd, other._fd)
        return stream

    def pass_no_more(self) -> None:
        """What comes next is shown to the protocol."""
        if self.stream is not None:
            self.stream.stop()
            self._leave()

    def _leave(self) -> None:
        if self._to is not None and self.stream is not None:
            if not self._to._closed:  # else it has forgotten
                self._to._streams.remove(self.stream)
            self._to = None

    def _slow_down(self) -> None:
        """The next write is not an ordinary one, and nothing may overtake what waits."""
        self._slow = True
        for stream in self._streams:
            stream.stop()

    # --- for Sockets ---

    def read(self) -> None:
        """What one read brings, or what it says instead."""
        try:
            data = receive(self._fd)
        except OSError as error:
            self.broke(error)
            return
        if data:
            self.took(data)
        elif data is not None:
            self.at_end()

    def took(self, data: bytes) -> None:
        """It was read here."""
        if self._closing:
            return
        take = self._take
        try:
            take(data)
        except Exception as error:
            self._failed(error)

    def rest(self, data: bytes) -> None:
        """Of what was passed on from here, not all was taken there."""
        if self._to is not None:
            self._to.write(data)

    def at_end(self) -> None:
        """The other end will send no more."""
        if self._protocol.eof_received():
            self._reading = False
            self._watch()
        else:
            self.close()

    def broke(self, error: OSError) -> None:
        """The connection did."""
        self._end(error)

    def _failed(self, error: Exception) -> None:
        self._loop.call_exception_handler(
            {
                "message": "Fatal error: protocol.data_received() call failed.",
                "exception": error,
                "transport": self,
                "protocol": self._protocol,
            }
        )
        self._end(error)

    def _told(self, events: int) -> None:
        if events & _OUT:
            self._flush()
        if events & _TO_READ and self._reading and not self._closing:
            self.read()

    # --- the socket ---

    def _watch(self) -> None:
        if self._closed:
            return
        reads = self._reading and not self._closing
        events = (_IN if reads else 0) | (_OUT if self._buffer else 0)
        if events != self._events:
            self._sockets.watch(self._fd, self._events, events, self._told, self if reads else None)
            self._events = events

    def _write_later(self, data: bytes | bytearray | memoryview) -> None:
        if self._closing or self._ending:
            return  # as asyncio does: whoever writes will hear that it has ended
        self._buffer += data
        if self._buffer:
            self._slow_down()
            self._watch()
            self._press()

    def _press(self) -> None:
        if not self._paused and len(self._buffer) > self._high:
            self._paused = True
            self._protocol.pause_writing()

    def _flush(self) -> None:
        buffer = self._buffer
        try:
            with memoryview(buffer) as whole:
                sent = send(self._fd, whole[:WRITE_BYTES_MAX])
        except OSError as error:
            self.broke(error)
            return
        del buffer[:sent]
        if not buffer:
            self._slow = self._ending or self._closing
            if self._closing:
                self._end(None)
                return
            if self._ending:
                self._shut_down()
            self._watch()
        if self._paused and len(buffer) <= self._low:
            self._paused = False
            self._protocol.resume_writing()

    def _shut_down(self) -> None:
        try:
            self._socket.shutdown(socket.SHUT_WR)
        except OSError as error:
            self.broke(error)

    def _end(self, error: Exception | None) -> None:
        """The socket is closed here, and the protocol told in the loop's next turn."""
        if self._closed:
            return
        self._closed = self._closing = True
        self._slow_down()
        self.pass_no_more()
        self._streams.clear()
        self._buffer.clear()
        self._sockets.forget(self._fd)
        self._socket.close()
        self._loop.call_soon(self._protocol.connection_lost, error)

    @staticmethod
    def _name(ask: Callable[[], Any]) -> Any:
        try:
            return ask()
        except OSError:
            return None


class Door:
    """A listening socket: each connection gets a protocol of its own."""

    def __init__(self, sockets: Sockets, listening: socket.socket, protocol: Callable[[], asyncio.Protocol]) -> None:
        self._sockets = sockets
        self._loop = sockets.loop
        self._listening = listening
        self._protocol = protocol
        self._pause: asyncio.TimerHandle | None = None
        self._open = True
        self._watch()

    def close(self) -> None:
        """No more are taken; those in the kernel's queue stay there."""
        if not self._open:
            return
        self._open = False
        if self._pause is not None:
            self._pause.cancel()
        else:
            self._sockets.watch(self._listening.fileno(), _IN, 0, self._told, None)

    def _watch(self) -> None:
        self._pause = None
        self._sockets.watch(self._listening.fileno(), 0, _IN, self._told, None)

    def _told(self, events: int) -> None:
        for _ in range(ACCEPTS_MAX):
            try:
                accepted, peer = self._listening.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError as error:
                log.error("connections cannot be taken", extra={"f": {"why": error, "again_in_s": ACCEPT_PAUSE_S}})
                self._sockets.watch(self._listening.fileno(), _IN, 0, self._told, None)
                self._pause = self._loop.call_later(ACCEPT_PAUSE_S, self._watch)
                return
            self._sockets.add(accepted, self._protocol(), peer)
            if not self._open:
                return
