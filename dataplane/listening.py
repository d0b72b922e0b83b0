"""A listening port that can be left without losing those who are at the door.

Closing a listening socket resets every connection that the kernel has made and nobody has accepted yet. So the end is: stop
being told of new connections, accept what is there, close at once. What remains is the time between the last accept and the
close, microseconds, and handshakes that are under way over a slow network; where another process shares the port, Linux
hands both over to it with `net.ipv4.tcp_migrate_req=1`.
"""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from collections.abc import Callable

BACKLOG = 4096


class Listener:
    """protocol: makes the protocol of a connection."""

    def __init__(self, protocol: Callable[[], asyncio.Protocol]) -> None:
        self._protocol = protocol
        self._server: asyncio.Server | None = None
        self._sockets: list[socket.socket] = []
        self._tls: ssl.SSLContext | None = None
        self._late: set[asyncio.Task[tuple[asyncio.BaseTransport, asyncio.Protocol]]] = set()

    async def open(
        self, host: str, port: int, *, reuse_port: bool, tls: ssl.SSLContext | None, handshake_timeout_s: float
    ) -> int:
        """The port that was bound. OSError: the address cannot be had."""
        self._tls = tls
        self._server = await asyncio.get_running_loop().create_server(
            self._protocol,
            host,
            port,
            reuse_port=reuse_port or None,
            backlog=BACKLOG,
            ssl=tls,
            ssl_handshake_timeout=handshake_timeout_s if tls is not None else None,
        )
        self._sockets = [socket.socket(fileno=os.dup(each.fileno())) for each in self._server.sockets]
        return int(self._sockets[0].getsockname()[1])

    def close(self) -> None:
        """Nobody new; those the kernel has already connected are served."""
        if self._server is not None:
            self._server.close()
        for listening in self._sockets:
            for accepted in _backlog(listening):
                self._welcome(accepted)
            listening.close()
        self._sockets.clear()

    @property
    def arriving(self) -> bool:
        """Connections of the last moment that have no protocol yet."""
        return bool(self._late)

    def _welcome(self, accepted: socket.socket) -> None:
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
