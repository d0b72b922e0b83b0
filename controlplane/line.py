"""Lines: the other way for what is said on RouteStreams, see contract.frames."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Callable, Sequence
from typing import cast

from contract.frames import Frames, frame, line_path
from runtime.addresses import UNIX_PATH_BYTES_MAX, split_address

log = logging.getLogger(__name__)

Receive = Callable[[bytes], None]
"""Takes one packed message. ValueError: it cannot be read."""
Claim = Callable[[bytes, "Line"], Receive | None]
"""(key, line) -> who takes what comes on it; None: nobody was given this key."""


class Line(asyncio.Protocol):
    """One data plane's. An answer that its reader does not take yet keeps the next question waiting."""

    def __init__(self, claim: Claim) -> None:
        self._claim = claim
        self._receive: Receive | None = None
        self._frames = Frames()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        try:
            for body in self._frames.feed(data):
                if self._receive is not None:
                    self._receive(body)
                    continue
                self._receive = self._claim(body, self)
                if self._receive is None:
                    self._transport.abort()
                    return
        except ValueError as error:
            log.warning("a line is closed: it cannot be read", extra={"f": {"error": error}})
            self._transport.abort()

    def pause_writing(self) -> None:
        self._transport.pause_reading()

    def resume_writing(self) -> None:
        self._transport.resume_reading()

    def send(self, body: bytes) -> None:
        """Where it is closed, nobody waits for it any more."""
        if not self._transport.is_closing():
            self._transport.write(frame(body))

    @property
    def state(self) -> str:
        """For whoever looks for what waits."""
        ended = ", ended" if self._transport.is_closing() else ""
        return f"line, {self._transport.get_write_buffer_size()} bytes unsent{ended}"

    def close(self) -> None:
        self._transport.close()


class Lines:
    """Those of one control plane: one socket beside each Unix socket that it listens on."""

    def __init__(self, claim: Claim) -> None:
        self._claim = claim
        self._servers: list[tuple[asyncio.AbstractServer, str]] = []

    async def start(self, addresses: Sequence[str]) -> None:
        """Where one cannot be had, its data planes stay with gRPC."""
        for address in addresses:
            where = split_address(address)
            if isinstance(where, str):
                await self._listen(line_path(where))

    async def _listen(self, path: str) -> None:
        if len(path.encode()) > UNIX_PATH_BYTES_MAX:
            return
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)  # of a process that was killed: the socket it lies beside is ours
        try:
            server = await asyncio.get_running_loop().create_unix_server(lambda: Line(self._claim), path)
        except OSError as error:
            log.warning("no line: questions come by gRPC alone", extra={"f": {"path": path, "error": error}})
            return
        self._servers.append((server, path))

    async def close(self) -> None:
        for server, path in self._servers:
            server.close()
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
