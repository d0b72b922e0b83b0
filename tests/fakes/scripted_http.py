"""An HTTP server that is a test's hand on the wire."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"
Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Server:
    """Runs `talk` with each connection, and counts connections and requests."""

    def __init__(self) -> None:
        self.connections = 0
        self.requests: list[bytes] = []
        self.answers: dict[bytes, bytes] = {}
        """By path; what is not here gets what `talk` says."""
        self.talk: Talk = self.answer(OK)
        self._server: asyncio.Server | None = None

    def answer(self, *answers: bytes, then_close: bool = False) -> Talk:
        """The next of these for each request, the last again and again."""

        async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            left = list(answers)
            while True:
                self.requests.append(await reader.readuntil(b"\r\n\r\n"))
                path = self.requests[-1].split(b" ", 2)[1]
                writer.write(self.answers.get(path) or (left.pop(0) if len(left) > 1 else left[0]))
                await writer.drain()
                if then_close:
                    return

        return talk

    async def start(self, tls: ssl.SSLContext | None = None) -> str:
        """Its URL."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=tls)
        return f"{'https' if tls else 'http'}://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            await self.talk(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()
