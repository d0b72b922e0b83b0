"""An engine that answers as told: a hand-written HTTP/1.1 server on raw sockets.

    backend = await Backend.start()
    backend.script(status(503), chat_stream(["a", "b"]))     # one step a request; the last one stays
    backend.requests[0].body                                 # what came in

A step is a coroutine function that gets the request and a `Wire` to write on. It may send half a response and break off.
"""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field

from tests.fakes.connections import Connections
from tests.waiting import turns

WAIT_S = 10.0


@dataclass
class Seen:
    """One request as it came in."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes
    connection: int

    @property
    def json(self) -> dict[str, object]:
        found = json.loads(self.body)
        assert isinstance(found, dict)
        return found


class Broken(Exception):
    """A step ended the connection."""


class Wire:
    """The connection, as a step sees it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self.gone = asyncio.Event()

    async def send(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def bytewise(self, data: bytes) -> None:
        """One write a byte, each on its way before the next."""
        for index in range(len(data)):
            await self.send(data[index : index + 1])
            await turns()

    def reset(self) -> None:
        """RST in place of an orderly end."""
        raw = self._writer.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.transport.abort()
        raise Broken

    def close(self) -> None:
        self._writer.close()
        raise Broken

    async def until_gone(self) -> None:
        """Waits for the other side to leave."""
        await asyncio.wait_for(self._reader.read(1), WAIT_S)
        self.gone.set()


Step = Callable[[Seen, Wire], Awaitable[None]]


@dataclass
class Backend:
    """url: where it listens. connections: how many were made; open: how many there are; left: requests whose peer left."""

    url: str = ""
    requests: list[Seen] = field(default_factory=list)
    connections: int = 0
    open: int = 0
    left: int = 0
    accepts: bool = True

    def __post_init__(self) -> None:
        self._steps: list[Step] = []
        self._default: Step = chat_json("hello")
        self._listening = Connections(self._serve)
        self._changed = asyncio.Condition()

    @classmethod
    async def start(cls, port: int = 0) -> Backend:
        backend = cls()
        backend.url = f"http://127.0.0.1:{await backend._listening.listen(port)}"
        return backend

    @property
    def port(self) -> int:
        return int(self.url.rsplit(":", 1)[1])

    def script(self, *steps: Step) -> None:
        """The next requests' answers, in turn; the last one also for all that follow."""
        self._steps = list(steps[:-1])
        self._default = steps[-1]

    async def stop(self) -> None:
        await self._listening.stop()

    async def until(self, condition: Callable[[Backend], bool]) -> None:
        """Waits until `condition` holds, for at most WAIT_S. TimeoutError."""
        async with asyncio.timeout(WAIT_S), self._changed:
            await self._changed.wait_for(lambda: condition(self))

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.open += 1
        number = self.connections
        try:
            while True:
                seen = await _read_request(reader, number)
                if seen is None:
                    return
                self.requests.append(seen)
                await self._notify()
                step = self._steps.pop(0) if self._steps else self._default
                await step(seen, Wire(reader, writer))
        except Broken:
            pass
        except (ConnectionError, asyncio.IncompleteReadError):
            self.left += 1
        except asyncio.CancelledError:
            pass
        finally:
            self.open -= 1
            writer.close()
            try:
                await self._notify()
            except asyncio.CancelledError:
                pass


async def _read_request(reader: asyncio.StreamReader, connection: int) -> Seen | None:
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except (asyncio.IncompleteReadError, ConnectionError):
        return None
    first, *lines = head.decode("latin-1").split("\r\n")[:-2]
    method, target, _ = first.split(" ")
    headers = {name.lower(): value.strip() for name, value in (line.split(":", 1) for line in lines)}
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    return Seen(method, target, headers, body, connection)


# --- steps ---


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


LAST_CHUNK = b"0\r\n\r\n"
STREAM_HEAD = b"\r\n".join(
    (
        b"HTTP/1.1 200 OK",
        b"server: scripted",
        b"content-type: text/event-stream; charset=utf-8",
        b"transfer-encoding: chunked",
        b"",
        b"",
    )
)


def event(payload: object) -> bytes:
    text = payload if isinstance(payload, str) else json.dumps(payload, separators=(",", ":"))
    return b"data: " + text.encode() + b"\n\n"


def delta(text: str | None = None, *, role: str | None = None, finish: str | None = None) -> dict[str, object]:
    """One chat chunk."""
    fields: dict[str, object] = {}
    if role is not None:
        fields["role"] = role
    if text is not None:
        fields["content"] = text
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "m",
        "choices": [{"index": 0, "delta": fields, "finish_reason": finish}],
    }


def usage(prompt: int, output: int, cached: int) -> dict[str, object]:
    return {
        "prompt_tokens": prompt,
        "completion_tokens": output,
        "total_tokens": prompt + output,
        "prompt_tokens_details": {"cached_tokens": cached},
    }


def stream_events(texts: Iterable[str], *, finish: str = "stop", usage_of: dict[str, object] | None = None) -> list[bytes]:
    """The events of a chat stream as vLLM sends them."""
    events = [event(delta("", role="assistant")), *(event(delta(text)) for text in texts), event(delta(finish=finish))]
    if usage_of is not None:
        events.append(event({"id": "chatcmpl-1", "object": "chat.completion.chunk", "choices": [], "usage": usage_of}))
    return [*events, event("[DONE]")]


def stream_bytes(events: Iterable[bytes]) -> bytes:
    """A whole chunked body, one event a chunk."""
    return b"".join(map(chunk, events)) + LAST_CHUNK


def raw(data: bytes, *, close: bool = False, bytewise: bool = False) -> Step:
    """Exactly these bytes."""

    async def step(seen: Seen, wire: Wire) -> None:
        await (wire.bytewise(data) if bytewise else wire.send(data))
        if close:
            wire.close()

    return step


def chat_stream(
    texts: Iterable[str],
    *,
    finish: str = "stop",
    usage_of: dict[str, object] | None = None,
    pause: Callable[[int], Awaitable[None]] | None = None,
) -> Step:
    """A chat stream; `pause` is awaited before each event, with its index."""
    events = stream_events(texts, finish=finish, usage_of=usage_of)

    async def step(seen: Seen, wire: Wire) -> None:
        await wire.send(STREAM_HEAD)
        for index, each in enumerate(events):
            if pause is not None:
                await pause(index)
            await wire.send(chunk(each))
        await wire.send(LAST_CHUNK)

    return step


def json_bytes(payload: object, status: int = 200, extra: bytes = b"") -> bytes:
    """A whole JSON response."""
    body = json.dumps(payload).encode()
    return b"HTTP/1.1 %d Scripted\r\ncontent-type: application/json\r\n%bcontent-length: %d\r\n\r\n%b" % (
        status,
        extra,
        len(body),
        body,
    )


def chat_payload(text: str, *, finish: str = "stop", usage_of: dict[str, object] | None = None) -> dict[str, object]:
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish}],
        "usage": usage_of or usage(5, 2, 0),
    }


def chat_json(text: str, *, finish: str = "stop", usage_of: dict[str, object] | None = None) -> Step:
    return raw(json_bytes(chat_payload(text, finish=finish, usage_of=usage_of)))


def status(code: int, message: str = "scripted", extra: bytes = b"") -> Step:
    """An error as vLLM writes it."""
    return raw(json_bytes({"error": {"message": message, "type": "Scripted", "param": None, "code": code}}, code, extra))


def resets(before: bytes = b"") -> Step:
    """Some bytes, then RST."""

    async def step(seen: Seen, wire: Wire) -> None:
        if before:
            await wire.send(before)
            await asyncio.sleep(0.02)  # RST discards what the peer has not read yet
        wire.reset()

    return step


def closes(before: bytes = b"") -> Step:
    """Some bytes, then an orderly end of the connection."""

    async def step(seen: Seen, wire: Wire) -> None:
        if before:
            await wire.send(before)
        wire.close()

    return step


def hangs(before: bytes = b"") -> Step:
    """Some bytes, then silence until the other side leaves."""

    async def step(seen: Seen, wire: Wire) -> None:
        if before:
            await wire.send(before)
        await wire.until_gone()
        raise ConnectionResetError

    return step
