"""A hand-written HTTP server whose every answer is a script of bytes: for what engines do on their worst days.

A handler gets the request and a `Reply` to write raw bytes to; what it does not write is not sent. It returns whether the
connection is kept. The helpers below write what vLLM writes.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from tests.fakes.connections import Connections


@dataclass
class Request:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Reply:
    writer: asyncio.StreamWriter

    async def write(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def event(self, data: bytes | dict[str, Any]) -> None:
        """One SSE event in one chunk."""
        await self.write(chunk(event(data)))


Handler = Callable[[Request, Reply], Awaitable[bool]]


@dataclass
class SseServer:
    """`async with SseServer(handler) as server:` on a port of its own; every request is kept in `requests`."""

    handler: Handler
    requests: list[Request] = field(default_factory=list)
    arrived: asyncio.Event = field(default_factory=asyncio.Event)
    connections: int = 0
    port: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def __aenter__(self) -> SseServer:
        self._listening = Connections(self._serve)
        self.port = await self._listening.listen()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._listening.stop()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        while (request := await _read(reader)) is not None:
            self.requests.append(request)
            self.arrived.set()
            if not await self.handler(request, Reply(writer)):
                break


async def _read(reader: asyncio.StreamReader) -> Request | None:
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except (asyncio.IncompleteReadError, ConnectionError):
        return None
    first, *lines = head.decode("latin-1").split("\r\n")
    method, path, _ = first.split(" ")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines if line)}
    body = await reader.readexactly(int(headers.get("content-length", 0)))
    return Request(method, path, headers, body)


def event(data: bytes | dict[str, Any]) -> bytes:
    return b"data: " + (data if isinstance(data, bytes) else json.dumps(data).encode()) + b"\n\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


LAST_CHUNK = b"0\r\n\r\n"
DONE = b"[DONE]"


def stream_head(headers: dict[str, str] | None = None) -> bytes:
    lines = {"content-type": "text/event-stream; charset=utf-8", "transfer-encoding": "chunked", **(headers or {})}
    return ("HTTP/1.1 200 OK\r\n" + "".join(f"{name}: {value}\r\n" for name, value in lines.items()) + "\r\n").encode()


def json_reply(status: int, body: object, headers: dict[str, str] | None = None) -> bytes:
    data = json.dumps(body).encode()
    lines = {"content-type": "application/json", "content-length": str(len(data)), **(headers or {})}
    return (f"HTTP/1.1 {status} X\r\n" + "".join(f"{k}: {v}\r\n" for k, v in lines.items()) + "\r\n").encode() + data


def error_object(message: str, kind: str = "InternalServerError", code: int = 500) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


def chat_role() -> dict[str, Any]:
    return {"id": "c", "choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}]}


def chat_text(text: str, finish_reason: str | None = None) -> dict[str, Any]:
    return {"id": "c", "choices": [{"index": 0, "delta": {"content": text}, "finish_reason": finish_reason}]}


def usage(prompt: int, completion: int, cached: int | None = None) -> dict[str, Any]:
    details = None if cached is None else {"cached_tokens": cached}
    counts = {"prompt_tokens": prompt, "completion_tokens": completion, "prompt_tokens_details": details}
    return {"id": "c", "choices": [], "usage": counts}


def models(name: str = "m", max_model_len: int | None = None) -> bytes:
    return json_reply(200, {"object": "list", "data": [{"id": name, "object": "model", "max_model_len": max_model_len}]})


async def complete(request: Request, reply: Reply, *, headers: dict[str, str] | None = None, cached: int | None = 0) -> bool:
    """Answers as a healthy engine does: /v1/models, or a stream of as many tokens as were asked for."""
    if request.method == "GET":
        await reply.write(models())
        return True
    tokens = request.json["max_tokens"]
    await reply.write(stream_head(headers))
    await reply.event(chat_role())
    for place in range(tokens):
        await reply.event(chat_text(f" t{place}", "length" if place == tokens - 1 else None))
    await reply.event(usage(len(request.body) // 8, tokens, cached))
    await reply.event(DONE)
    await reply.write(LAST_CHUNK)
    return True


@contextmanager
def in_thread(handler: Handler) -> Iterator[SseServer]:
    """The server on a loop of its own, for callers that block."""
    started, loop = threading.Event(), asyncio.new_event_loop()
    server = SseServer(handler)
    stop = asyncio.Event()

    async def serve() -> None:
        async with server:
            started.set()
            await stop.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    try:
        assert started.wait(10)
        yield server
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)
        loop.close()
