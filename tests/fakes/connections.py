"""The TCP server of a fake: every connection is a task, and they end with it."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable

BACKLOG = 4096
BUFFER_BYTES_MAX = 64 * 1024

Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Connections:
    """talk: one connection, which is closed after it. Whoever leaves in the middle of it has left, and that is all."""

    def __init__(self, talk: Talk) -> None:
        self._talk = talk
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def listen(self, port: int = 0, *, tls: ssl.SSLContext | None = None) -> int:
        """On 127.0.0.1; the port."""
        self._server = await asyncio.start_server(
            self._accept, "127.0.0.1", port, backlog=BACKLOG, limit=BUFFER_BYTES_MAX, ssl=tls
        )
        return int(self._server.sockets[0].getsockname()[1])

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            await self._talk(reader, writer)
        except (OSError, EOFError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            writer.close()
