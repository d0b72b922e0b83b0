"""An engine that takes uploads as they come: says how much is here, reads only while it is told to, answers when told."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable

import httptools

from tests.fakes.connections import Connections

WAIT_S = 10.0
OK = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}"


class UploadServer:
    """body: of the request under way, or the last upload; reads: while set; answer_after: bytes of body, 0: at its end."""

    def __init__(self) -> None:
        self.url = ""
        self.body = bytearray()
        self.left = 0
        self.answer = OK
        self.answer_after = 0
        self.reads = asyncio.Event()
        self.reads.set()
        self._changed = asyncio.Condition()
        self._connections = Connections(self._serve)

    @classmethod
    async def start(cls, *, tls: ssl.SSLContext | None = None) -> UploadServer:
        server = cls()
        port = await server._connections.listen(tls=tls)
        server.url = f"{'https' if tls else 'http'}://127.0.0.1:{port}"
        return server

    async def stop(self) -> None:
        await self._connections.stop()

    async def until(self, condition: Callable[[UploadServer], bool]) -> None:
        """TimeoutError."""
        async with asyncio.timeout(WAIT_S), self._changed:
            await self._changed.wait_for(lambda: condition(self))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await self._one(reader, writer):
            pass

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """One request; False: the client left."""
        message = _Message()
        parser = httptools.HttpRequestParser(message)
        while not message.complete:
            await self.reads.wait()
            data = await reader.read(64 * 1024)
            if not data:
                self.left += message.begun
                await self._notify()
                return False
            parser.feed_data(data)
            if b"multipart" in message.content_type:
                self.body = message.body
            await self._notify()
            if self.answer_after and len(message.body) > self.answer_after:
                break
        writer.write(self.answer)
        await writer.drain()
        return True

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()


class _Message:
    def __init__(self) -> None:
        self.body = bytearray()
        self.begun = self.complete = False
        self.content_type = b""

    def on_message_begin(self) -> None:
        self.begun = True

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"content-type":
            self.content_type = value

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        self.complete = True
