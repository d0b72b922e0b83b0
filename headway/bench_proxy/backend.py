"""backend.c for machines without a compiler: `python -m headway.bench_proxy.backend FIRST_PORT PORTS`."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import cast

import uvloop

_EVENT = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "m"}
_PLAIN = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1,
    "model": "m",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "hello"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 5, "completion_tokens": 1, "total_tokens": 6},
}
_MODELS = {"object": "list", "data": [{"id": "m", "object": "model"}], "model_path": "m", "is_generation": True, "version": "0"}
_STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


def _whole(body: object) -> bytes:
    data = json.dumps(body).encode()
    return b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(data), data)


def _chunk(delta: str, finish: str | None, more: bytes = b"") -> bytes:
    choices = [{"index": 0, "delta": {"content": delta}, "logprobs": None, "finish_reason": finish}]
    data = b"data: " + json.dumps({**_EVENT, "choices": choices}).encode() + b"\n\n" + more
    return b"%x\r\n%b\r\n" % (len(data), data)


PLAIN, MODELS = _whole(_PLAIN), _whole(_MODELS)
EVENT, LAST = _chunk("word ", None), _chunk("end", "stop", b"data: [DONE]\n\n") + b"0\r\n\r\n"


class Engine(asyncio.Protocol):
    """One connection."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._buffer = b""

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        _, found, length = self._buffer[:end].lower().partition(b"content-length:")
        size = end + 4 + (int(length.split(b"\r\n")[0]) if found else 0)
        if len(self._buffer) >= size:
            request, self._buffer = self._buffer[:size], self._buffer[size:]
            self._answer(request[:4] == b"GET ", request[end + 4 :])

    def _answer(self, asks: bool, body: bytes) -> None:
        wants = {} if asks or not body else json.loads(body)
        if wants.get("stream") is True:
            self._transport.write(_STREAM_HEAD)
            self._next(int(wants.get("max_tokens") or 1), (wants.get("seed") or 0) / 1000)
        else:
            self._transport.write(MODELS if asks else PLAIN)

    def _next(self, left: int, pace_s: float) -> None:
        loop = asyncio.get_running_loop()
        if self._transport.is_closing():
            return
        if left <= 1:
            self._transport.write(LAST)
        else:
            self._transport.write(EVENT)
            loop.call_later(pace_s, self._next, left - 1, pace_s)


async def main(first_port: int, ports: int) -> None:
    """Serves until killed."""
    loop = asyncio.get_running_loop()
    servers = [await loop.create_server(Engine, "127.0.0.1", first_port + offset, backlog=4096) for offset in range(ports)]
    await asyncio.gather(*(server.serve_forever() for server in servers))


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1]), int(sys.argv[2])))
