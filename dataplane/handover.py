"""Listening sockets handed over from one data plane to the next on its port, so that none is ever closed with callers in it.

Two processes that each listen with SO_REUSEPORT have a socket each, and Linux deals new connections out to both. When the old
one closes its own, what was dealt to it in the microseconds after its last accept is reset: three connections in 220 ends of a
process under 64 busy callers. So a successor (`--share-port`) asks for the very sockets: they live on in it, with their
queues, and in as many ends none was reset (`make bench ARGS=handover`).

A process offers its sockets at an abstract Unix address made of host, port and its number, to a process of the same user and in
the same network namespace, once: the name is then free for the successor's own offer. Where nobody offers (another host, user
or container, a predecessor that crashed), the successor listens for itself, and Linux's `net.ipv4.tcp_migrate_req=1` is what
helps those at the old one's door.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import struct
from collections.abc import Callable, Sequence

log = logging.getLogger(__name__)

ANSWER_TIMEOUT_S = 2.0
SOCKETS_MAX = 64
"""Listening sockets of one process: one an address family, and those of predecessors that ran more processes."""
_PEER = struct.Struct("3i")  # pid, user, group
_HERE = b"sockets"


class Offer:
    """The sockets of this process, for the first successor that asks.

    sockets: asked for at that moment; they stay usable here.
    """

    def __init__(self, host: str, port: int, number: int, sockets: Callable[[], Sequence[int]]) -> None:
        self._sockets = sockets
        self._name = _name(host, port, number)
        self._door: socket.socket | None = None

    def open(self) -> None:
        """Where the name cannot be had there is no offer, and a successor listens for itself."""
        door = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            door.bind(self._name)
            door.listen(1)
        except OSError as error:
            log.debug("no hand-over: %s", error)
            door.close()
            return
        door.setblocking(False)
        self._door = door
        asyncio.get_running_loop().add_reader(door, self._asked)

    def close(self) -> None:
        if self._door is not None:
            asyncio.get_running_loop().remove_reader(self._door)
            self._door.close()
            self._door = None

    def _asked(self) -> None:
        if self._door is None:
            return
        try:
            asker, _ = self._door.accept()
        except OSError:
            return
        with asker:
            if not _is_ours(asker):
                return
            self.close()  # before the answer: whoever has it may take the name
            try:
                socket.send_fds(asker, [_HERE], list(self._sockets()))
                log.info("listening sockets handed over")
            except OSError as error:
                log.warning("nothing handed over: %s", error)


def take(host: str, port: int, number: int, processes: int) -> list[socket.socket]:
    """Sockets that listen on the port, of the predecessors whose part process `number` of `processes` takes. May be none.

    Blocks for at most ANSWER_TIMEOUT_S a predecessor. Where there were more processes before, one takes over from several.
    """
    taken: list[socket.socket] = []
    while found := _ask(_name(host, port, number)):
        taken += [each for each in found if _listens_on(each, port)]
        number += processes
    return taken


def _ask(name: str) -> list[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asking:
        asking.settimeout(ANSWER_TIMEOUT_S)
        try:
            asking.connect(name)
            if not _is_ours(asking):
                return []
            _, fds, _, _ = socket.recv_fds(asking, len(_HERE), SOCKETS_MAX)
        except OSError:
            return []
    return [socket.socket(fileno=fd) for fd in fds]


def _name(host: str, port: int, number: int) -> str:
    return f"\0headway-dataplane/{host}/{port}/{number}"


def _is_ours(peer: socket.socket) -> bool:
    """Whether the other end runs as the user that we run as: abstract names have no permissions of their own."""
    _, user, _ = _PEER.unpack(peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))
    return bool(user == os.geteuid())


def _listens_on(found: socket.socket, port: int) -> bool:
    fits = found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) == 1 and found.getsockname()[1] == port
    if not fits:
        found.close()
    return fits
