"""The line to a control plane on the same host: what the RouteStream says, without gRPC in between. See contract.frames."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

from contract.frames import Frames, frame, line_path
from runtime.tasks import within

CONNECT_TIMEOUT_S = 2.0


def path_of(target: str) -> str:
    """Of the control plane at this gRPC target; empty: it is not on a Unix socket, so there is none."""
    return line_path(target.removeprefix("unix:").removeprefix("//")) if target.startswith("unix:") else ""


class Line(asyncio.Protocol):
    """receive: takes one packed message, ValueError where it cannot be read; lost: called once, when it has ended."""

    def __init__(self, receive: Callable[[bytes], None], lost: Callable[[], object]) -> None:
        self._receive = receive
        self._lost = lost
        self._frames = Frames()
        self._room = asyncio.Event()
        self._room.set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        try:
            for body in self._frames.feed(data):
                self._receive(body)
        except ValueError:
            self._transport.abort()

    def pause_writing(self) -> None:
        self._room.clear()

    def resume_writing(self) -> None:
        self._room.set()

    def connection_lost(self, error: Exception | None) -> None:
        self._room.set()
        self._lost()

    @property
    def has_room(self) -> bool:
        """What is written now is taken at once, or soon."""
        return self._room.is_set() and not self._transport.is_closing()

    def write(self, body: bytes) -> None:
        """Where there is room."""
        self._transport.write(frame(body))

    async def send(self, body: bytes) -> None:
        """Waits while the other end takes nothing. ConnectionError: it has ended."""
        await self._room.wait()
        if self._transport.is_closing():
            raise ConnectionResetError("the line has ended")
        self.write(body)

    def deafen(self) -> None:
        """What still comes is nobody's any more, nor is its end."""
        self._receive = self._lost = _ignore

    def close(self) -> None:
        self._transport.abort()


def _ignore(*_: object) -> None:
    pass


async def connect(path: str, key: bytes, receive: Callable[[bytes], None], lost: Callable[[], object]) -> Line:
    """OSError, TimeoutError: nobody there."""
    async with within(CONNECT_TIMEOUT_S):
        _, line = await asyncio.get_running_loop().create_unix_connection(lambda: Line(receive, lost), path)
    await line.send(key)
    return line
