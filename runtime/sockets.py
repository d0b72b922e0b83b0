"""Plain stream sockets, read and written here rather than by the event loop.

They stand in an epoll set of their own, which the loop sees as one file that has something to be read: whatever is ready then
is read in one pass, and what is written leaves at once, while it is warm. TLS stays with the loop's own transports.
"""

from __future__ import annotations

import asyncio
import logging
import os
import select
import socket
from collections.abc import Callable
from typing import Any, TypeVar

from runtime.passing import compiled, receive
from runtime.stream_transport import StreamTransport

log = logging.getLogger(__name__)

EVENTS_MAX = 512
"""In one pass; then it is the loop's turn."""
ACCEPTS_MAX = 256
"""In one pass."""
ACCEPT_PAUSE_S = 1.0
"""Where a connection cannot be taken because the process has no file descriptor left."""

P = TypeVar("P", bound=asyncio.Protocol)

_IN = select.EPOLLIN


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
