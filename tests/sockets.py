"""Two ends of one TCP connection on this machine."""

from __future__ import annotations

import socket
from contextlib import ExitStack


def connected(stack: ExitStack) -> tuple[socket.socket, socket.socket]:
    """Both non-blocking, small writes leave at once. The first is closed with the stack, the second belongs to whoever asks."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        ours = stack.enter_context(socket.create_connection(server.getsockname()))
        theirs, _ = server.accept()
    for each in (ours, theirs):
        each.setblocking(False)
        each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return ours, theirs
