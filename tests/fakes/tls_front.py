"""TLS in front of a Unix socket: what stands before a Redis that speaks none."""

from __future__ import annotations

import asyncio
import contextlib
import ssl

from tests.fakes.connections import Connections


class TlsFront:
    """port: where it listens, on 127.0.0.1."""

    def __init__(self, path: str, context: ssl.SSLContext) -> None:
        self._path = path
        self._context = context
        self._connections = Connections(self._serve)
        self.port = 0

    async def start(self) -> None:
        self.port = await self._connections.listen(tls=self._context)

    async def stop(self) -> None:
        await self._connections.stop()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        behind_reader, behind = await asyncio.open_unix_connection(self._path)
        try:
            await asyncio.gather(_copy(reader, behind), _copy(behind_reader, writer))
        finally:
            behind.close()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(64 * 1024):
        writer.write(data)
        await writer.drain()
    with contextlib.suppress(OSError):
        writer.close()
