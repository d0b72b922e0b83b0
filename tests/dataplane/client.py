"""A client that writes bytes and reads responses: what the proxy is spoken to with."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httptools

from tests.waiting import turns

WAIT_S = 10.0


class Response:
    """One response, as httptools reads it. raw: its bytes."""

    def __init__(self) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self.names: list[str] = []
        self.body = b""
        self.chunks: list[bytes] = []
        self.complete = False
        self.raw = b""

    def on_header(self, name: bytes, value: bytes) -> None:
        self.names.append(name.decode().lower())
        self.headers[name.decode().lower()] = value.decode()

    def on_body(self, body: bytes) -> None:
        self.body += body
        self.chunks.append(body)

    def on_message_complete(self) -> None:
        self.complete = True

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def events(self) -> list[Any]:
        """The data of every event; JSON where it is JSON."""
        found = [part.removeprefix(b"data: ") for part in self.body.split(b"\n\n") if part.strip()]
        return [data.decode() if data == b"[DONE]" else json.loads(data) for data in found]

    @property
    def text(self) -> str:
        """The content of a chat stream."""
        return "".join(
            event["choices"][0]["delta"].get("content") or ""
            for event in self.events
            if isinstance(event, dict) and event.get("choices")
        )


class Truncated(Exception):
    """The connection ended before the response did; `response` is what there was."""

    def __init__(self, response: Response) -> None:
        super().__init__(f"truncated: status {response.status}, {len(response.body)} bytes of body, raw {response.raw[:200]!r}")
        self.response = response


class Client:
    """One connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self._left = b""

    @classmethod
    async def connect(cls, port: int) -> Client:
        return cls(*await asyncio.open_connection("127.0.0.1", port))

    async def send(self, data: bytes, *, bytewise: bool = False) -> None:
        if not bytewise:
            self.writer.write(data)
        else:
            for index in range(len(data)):
                self.writer.write(data[index : index + 1])
                await turns()
        await self.writer.drain()

    async def read(self, *, head_only: bool = False) -> Response:
        """The next response. Truncated, TimeoutError."""
        response = Response()
        parser = httptools.HttpResponseParser(response)
        async with asyncio.timeout(WAIT_S):
            while not response.complete:
                data = self._left or await self.reader.read(65536)
                self._left = b""
                if not data:
                    unframed = "content-length" not in response.headers and "transfer-encoding" not in response.headers
                    if response.headers and unframed:
                        break
                    response.status = parser.get_status_code() if response.raw else 0
                    raise Truncated(response)
                response.raw += data
                if head_only and b"\r\n\r\n" in response.raw:
                    parser.feed_data(response.raw[: response.raw.index(b"\r\n\r\n") + 4])
                    break
                if not head_only:
                    data = self._first_message(response, data)
                    parser.feed_data(data)
        response.status = parser.get_status_code()
        return response

    def _first_message(self, response: Response, data: bytes) -> bytes:
        """Pipelined responses with a Content-Length: only the first one's bytes; the others stay for later."""
        head, found, rest = response.raw.partition(b"\r\n\r\n")
        lowered = head.lower()
        if not found or b"content-length:" not in lowered:
            return data
        length = int(lowered.split(b"content-length:")[1].split(b"\r\n")[0])
        extra = len(rest) - length
        if extra <= 0:
            return data
        self._left = data[len(data) - extra :]
        response.raw = response.raw[: len(response.raw) - extra]
        return data[: len(data) - extra]

    async def at_end(self) -> bool:
        """Whether the other side closes now, without another byte."""
        async with asyncio.timeout(WAIT_S):
            try:
                return await self.reader.read(1) == b""
            except ConnectionResetError:
                return True

    def close(self) -> None:
        self.writer.close()

    def reset(self) -> None:
        self.writer.transport.abort()


def request(
    body: bytes | dict[str, Any] | None = None,
    path: str = "/v1/chat/completions",
    *,
    method: str = "POST",
    headers: dict[str, str] | None = None,
    version: str = "1.1",
    close: bool = False,
) -> bytes:
    """The bytes of one request."""
    data = json.dumps(body).encode() if isinstance(body, dict) else body or b""
    fields = {"Host": "proxy", "Content-Type": "application/json", **(headers or {})}
    if method == "POST":
        fields["Content-Length"] = str(len(data))
    if close:
        fields["Connection"] = "close"
    lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"{method} {path} HTTP/{version}\r\n{lines}\r\n".encode() + data


def chat(text: str = "hi", *, model: str = "m", stream: bool = False, **more: Any) -> dict[str, Any]:
    """A chat body."""
    return {"model": model, "messages": [{"role": "user", "content": text}], "stream": stream, **more}


async def ask(port: int, data: bytes, *, bytewise: bool = False) -> Response:
    """One request on a connection of its own."""
    client = await Client.connect(port)
    try:
        await client.send(data, bytewise=bytewise)
        return await client.read()
    finally:
        client.close()
