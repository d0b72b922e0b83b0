"""Recorded exchanges with a real vLLM, and what of them must be equal: statuses, framing, keys, order and kinds of values."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from tests.emulator.conftest import FIXTURES

HTTP = FIXTURES / "http"


@dataclass(frozen=True)
class Answer:
    """status; headers with names in lower case; chunks of the body, as framed."""

    status: int
    headers: dict[str, str]
    chunks: list[bytes]

    @property
    def body(self) -> bytes:
        return b"".join(self.chunks)

    @property
    def events(self) -> list[Any]:
        """Data of every SSE event, JSON where it is."""
        return [_data(event) for event in self.body.decode().split("\n\n") if event]


def _data(event: str) -> Any:
    line = next(line for line in event.split("\n") if line.startswith("data: "))
    return line if line == "data: [DONE]" else json.loads(line.removeprefix("data: "))


def parse(raw: bytes) -> Answer:
    """Bytes of one response whose connection was closed after it."""
    head, _, body = raw.partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:])}
    chunks = _dechunk(body) if headers.get("transfer-encoding") == "chunked" else [body]
    return Answer(int(lines[0].split()[1]), headers, chunks)


def _dechunk(body: bytes) -> list[bytes]:
    chunks = []
    while body:
        size, _, body = body.partition(b"\r\n")
        count = int(size, 16)
        if count == 0:
            assert body == b"\r\n", f"{body!r} follows the last chunk"
            return chunks
        chunks.append(body[:count])
        assert body[count : count + 2] == b"\r\n"
        body = body[count + 2 :]
    raise AssertionError("the body ends without its last chunk")


def recorded_request(name: str) -> bytes:
    return (HTTP / f"{name}.req.raw").read_bytes()


def recorded(name: str) -> Answer:
    return parse((HTTP / f"{name}.resp.raw").read_bytes())


async def exchange(url: str, request: bytes) -> Answer:
    """Send exact bytes, read until the server closes."""
    address = urlsplit(url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    try:
        writer.write(request)
        return parse(await asyncio.wait_for(reader.read(), 15))
    finally:
        writer.close()


def shape(value: Any) -> Any:
    """Keys in order and kinds of values; lists by their first item."""
    if isinstance(value, dict):
        return [(key, shape(item)) for key, item in value.items()]
    if isinstance(value, list):
        return [shape(item) for item in value[:1]]
    if isinstance(value, bool) or value is None:
        return value
    return "number" if isinstance(value, int | float) else type(value).__name__
