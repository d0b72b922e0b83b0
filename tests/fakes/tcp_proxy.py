"""A network path with a hand on it: between a client and a server, to cut, to stall, to delay and to throttle."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

Connected = tuple[asyncio.StreamReader, asyncio.StreamWriter]
CHUNK_BYTES = 65_536


class TcpProxy:
    """Listens on 127.0.0.1; every accepted connection is forwarded to the server's Unix socket."""

    def __init__(self, server_socket: Path) -> None:
        self._server_socket = server_socket
        self._listener: asyncio.Server | None = None
        self._links: set[asyncio.Task[None]] = set()
        self.port = 0
        self.connections = 0
        """Accepted, ever."""
        self.reply_delay_s = 0.0
        """Every piece of a reply waits this long."""
        self.bytes_per_s = 0.0
        """Of replies; 0: unbounded."""
        self._flowing = asyncio.Event()
        self._flowing.set()

    async def start(self) -> None:
        """On the same port as before, where there was one."""
        self._listener = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
        self.port = self._listener.sockets[0].getsockname()[1]

    async def cut(self) -> None:
        """Connections break, new ones are refused. `start` ends it."""
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        links = list(self._links)
        for link in links:
            link.cancel()
        await asyncio.gather(*links, return_exceptions=True)

    def stall(self) -> None:
        """Connections stay (and new ones are accepted), and not a byte passes, in either direction."""
        self._flowing.clear()

    def flow(self) -> None:
        """Ends a stall: what waited goes on."""
        self._flowing.set()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        link = asyncio.current_task()
        assert link is not None
        self._links.add(link)
        self.connections += 1
        server: asyncio.StreamWriter | None = None
        try:
            server_reader, server = await asyncio.open_unix_connection(str(self._server_socket))
            async with asyncio.TaskGroup() as both:
                both.create_task(self._pass(reader, server, self._at_once))
                both.create_task(self._pass(server_reader, writer, self._slowly))
        except* (OSError, asyncio.CancelledError):
            pass
        finally:
            self._links.discard(link)
            for end in (writer, server):
                if end is not None:
                    end.transport.abort()

    async def _pass(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, pause: Callable[[int], Awaitable[None]]
    ) -> None:
        while data := await source.read(CHUNK_BYTES):
            await self._flowing.wait()
            await pause(len(data))
            sink.write(data)
            await sink.drain()
        raise ConnectionResetError("one end closed: the other is closed with it")

    async def _at_once(self, size: int) -> None:
        pass

    async def _slowly(self, size: int) -> None:
        wait_s = self.reply_delay_s + (size / self.bytes_per_s if self.bytes_per_s else 0.0)
        if wait_s:
            await asyncio.sleep(wait_s)  # what it is there for: a slow path
