"""A listening port that can be left without losing those who are at the door.

Closing a listening socket resets every connection that the kernel has made and nobody has accepted yet. So the end is: stop
being told of new connections, accept what is there, close at once. What remains is the time between the last accept and the
close, microseconds, and handshakes that are under way over a slow network. A successor that was handed the socket itself
(`handover`) meets neither: in it the socket lives on.
"""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from collections.abc import Callable, Sequence
from typing import Any

from runtime.sockets import Door, Sockets

BACKLOG = 4096


class Listener:
    """protocol: makes the protocol of a connection; sockets: where plain connections are kept."""

    def __init__(self, protocol: Callable[[], asyncio.Protocol], sockets: Sockets) -> None:
        self._protocol = protocol
        self._kept = sockets
        self._servers: list[asyncio.Server] = []
        self._doors: list[Door] = []
        self._sockets: list[socket.socket] = []
        self._tls: ssl.SSLContext | None = None
        self._late: set[asyncio.Task[tuple[asyncio.BaseTransport, asyncio.Protocol]]] = set()

    async def open(
        self,
        host: str,
        port: int,
        *,
        reuse_port: bool,
        tls: ssl.SSLContext | None,
        handshake_timeout_s: float,
        taken: Sequence[socket.socket] = (),
    ) -> int:
        """The port that was bound. OSError: the address cannot be had.

        taken: sockets that listen there already, in place of new ones.
        """
        self._tls = tls
        create = asyncio.get_running_loop().create_server
        more: dict[str, Any] = {"backlog": BACKLOG, "start_serving": False}
        if tls is not None:
            more |= {"ssl": tls, "ssl_handshake_timeout": handshake_timeout_s}
        if taken:
            self._servers = [await create(self._protocol, sock=each, **more) for each in taken]
        else:
            self._servers = [await create(self._protocol, host, port, reuse_port=reuse_port or None, **more)]
        bound = [each for server in self._servers for each in server.sockets]
        self._sockets = [socket.socket(fileno=os.dup(each.fileno())) for each in bound]
        if tls is None:
            self._close_servers()  # theirs are copies: what they bound stays so
            for each in self._sockets:
                each.listen(BACKLOG)
            self._doors = [self._kept.listen(each, self._protocol) for each in self._sockets]
        else:
            for server in self._servers:
                await server.start_serving()
        return int(self._sockets[0].getsockname()[1])

    def filenos(self) -> list[int]:
        """Of the sockets that listen; none after the end."""
        return [each.fileno() for each in self._sockets]

    def close(self) -> None:
        """Nobody new; those the kernel has already connected are served."""
        self._close_servers()
        for door in self._doors:
            door.close()
        last = []
        for listening in self._sockets:
            last += _backlog(listening)
            listening.close()
        self._sockets.clear()
        self._doors.clear()
        for accepted in last:
            self._welcome(accepted)

    @property
    def arriving(self) -> bool:
        """Connections of the last moment that have no protocol yet."""
        return bool(self._late)

    def _close_servers(self) -> None:
        for server in self._servers:
            server.close()
        self._servers.clear()

    def _welcome(self, accepted: socket.socket) -> None:
        if self._tls is None:
            self._kept.add(accepted, self._protocol())
            return
        loop = asyncio.get_running_loop()
        task = loop.create_task(loop.connect_accepted_socket(self._protocol, accepted, ssl=self._tls))
        self._late.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[tuple[asyncio.BaseTransport, asyncio.Protocol]]) -> None:
        self._late.discard(task)
        if not task.cancelled():
            task.exception()  # one that left before its handshake is nobody's failure


def _backlog(listening: socket.socket) -> list[socket.socket]:
    listening.setblocking(False)
    found = []
    for _ in range(2 * BACKLOG):
        try:
            accepted, _ = listening.accept()
        except OSError:
            break
        accepted.setblocking(False)
        found.append(accepted)
    return found
