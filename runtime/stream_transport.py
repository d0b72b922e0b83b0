"""One plain connection of `runtime.sockets`, as asyncio says a transport is.

Events of streams that go from one transport to another as they are need no Python at all where `_passing.c` was compiled, which
an installation does if it finds a compiler: `StreamTransport.pass_to`.
"""

from __future__ import annotations

import asyncio
import select
import socket
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, cast

from runtime.passing import compiled, receive, send

if TYPE_CHECKING:
    from runtime._passing import Stream
    from runtime.sockets import Sockets

WRITE_BYTES_MAX = 256 * 1024
HIGH_WATER_BYTES = 64 * 1024

_IN, _OUT = select.EPOLLIN, select.EPOLLOUT
_TO_READ = select.EPOLLIN | select.EPOLLHUP | select.EPOLLERR
"""The ends of a connection are found by reading."""


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
