"""HTTP for thousands of streams at once: raw asyncio protocols, a C parser, one exchange at a time on a connection.

aiohttp costs about 100 us a request and 20 us a chunk; this reads a socket, parses, decodes and stamps in a few. What it
leaves out it does not need: redirects, cookies, compression, proxies.
"""

from __future__ import annotations

import asyncio
import ssl
from dataclasses import dataclass, field
from typing import cast
from urllib.parse import urlsplit

import httptools
import msgspec

from loadgen import answer as ends
from loadgen.answer import Answer
from loadgen.errors import LoadError
from loadgen.workload import TimedRequest
from runtime.clock import Clock

IDLE_CONNECTION_S_MAX = 4.0
"""Servers close idle connections after 5 s."""
IDLE_CONNECTIONS_MAX = 1024
CONNECT_TIMEOUT_S = 10.0
HEADERS_MAX = 200
SESSION_CHARS_MAX = 256
"""What a router takes (its data plane refuses longer names)."""

_WANTED_HEADERS = (b"x-headway-", b"x-request-id", b"retry-after")


@dataclass(frozen=True, slots=True)
class Target:
    """Where requests go."""

    host: str
    port: int
    tls: bool
    base: str
    """path before /v1, without a slash at its end"""

    @classmethod
    def parse(cls, url: str) -> Target:
        """LoadError: not an http(s) URL."""
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise LoadError(f"{url!r}: {error}") from None
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise LoadError(f"{url!r} is not an address such as http://127.0.0.1:8000")
        tls = parts.scheme == "https"
        base = parts.path.rstrip("/").removesuffix("/v1")
        return cls(parts.hostname, port or (443 if tls else 80), tls, base)

    @property
    def authority(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    @property
    def url(self) -> str:
        return f"{'https' if self.tls else 'http'}://{self.authority}{self.base}"


@dataclass(slots=True)
class Exchange:
    """One request and all that is known of its answer."""

    sent: float
    """on the client's clock: when it began to be sent, connecting included"""
    answer: Answer = field(default_factory=Answer)
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    """lower-case names; only those of the router"""
    ended: float = 0.0
    end: str = ""
    error: str = ""
    reconnects: int = 0
    """a kept connection turned out to be closed, and the request went out again on a new one"""


class ConnectionLost(Exception):
    """The server closed or reset a connection that had an exchange on it."""


class Connection(asyncio.Protocol):
    """One socket. `exchange` runs one request to its end; afterwards the connection is reusable if `reusable` says so."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._parser = httptools.HttpResponseParser(self)
        self._exchange: Exchange | None = None
        self._done: asyncio.Future[None] | None = None
        self._transport: asyncio.Transport | None = None
        self._until_eof = False
        self._headers = 0
        self._now = 0.0
        self.idle_since = 0.0
        self.reusable = False
        self.answered = False
        """any byte of an answer came for the exchange in progress"""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one in deed, not in descent
        self.reusable = True

    async def run(self, exchange: Exchange, request: bytes) -> None:
        """Writes the request and waits for the end of the answer. ConnectionLost, httptools errors."""
        assert self._transport is not None
        self._exchange = exchange
        self._headers = 0
        self.answered = self._until_eof = False
        self._done = asyncio.get_running_loop().create_future()
        if not self.reusable:
            raise ConnectionLost
        self._transport.write(request)
        try:
            await self._done
        finally:
            self._exchange = self._done = None

    def close(self) -> None:
        self.reusable = False
        if self._transport is not None:
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        if self._exchange is None:  # nothing was asked: the server is out of step
            self.close()
            return
        self.answered = True
        self._now = self._clock.now()
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._fail(error)
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self.reusable = False
        if self._until_eof and exc is None:
            self._finish()
        else:
            self._fail(ConnectionLost())

    def on_header(self, name: bytes, value: bytes) -> None:
        exchange = self._exchange
        self._headers += 1
        if exchange is None or self._headers > HEADERS_MAX:
            return
        name = name.lower()
        if name == b"content-type":
            exchange.answer.streaming = value.startswith(b"text/event-stream")
        elif name.startswith(_WANTED_HEADERS):
            exchange.headers[name.decode("latin-1")] = value.decode("latin-1")
        if name in (b"content-length", b"transfer-encoding"):
            self._until_eof = False

    def on_message_begin(self) -> None:
        self._until_eof = True

    def on_headers_complete(self) -> None:
        if self._exchange is not None:
            self._exchange.status = self._parser.get_status_code()
            self.reusable = not self._until_eof and self._parser.should_keep_alive()

    def on_body(self, body: bytes) -> None:
        if self._exchange is not None:
            self._exchange.answer.feed(body, self._now)

    def on_message_complete(self) -> None:
        self._finish()

    def _finish(self) -> None:
        if self._done is not None and not self._done.done():
            self._done.set_result(None)

    def _fail(self, error: Exception) -> None:
        if self._done is not None and not self._done.done():
            self._done.set_exception(error)


class Client:
    """Sends requests to one target. Not a failure is raised by `send`: they are what the exchange says."""

    def __init__(self, target: Target, *, clock: Clock, timeout_s: float, headers: dict[str, str] | None = None) -> None:
        self._target = target
        self._clock = clock
        self._timeout_s = timeout_s
        self._tls = ssl.create_default_context() if target.tls else None
        self._idle: list[Connection] = []
        fixed = {"host": target.authority, "content-type": "application/json", **(headers or {})}
        self._fixed = "".join(f"{name}: {value}\r\n" for name, value in fixed.items())

    async def send(self, request: TimedRequest, exchange: Exchange) -> None:
        """One request to its end, within the client's timeout; `exchange` is filled in as it goes on."""
        session = f"x-headway-session: {request.session}\r\n" if _is_header_value(request.session) else ""
        head = (
            f"POST {self._target.base}{request.path} HTTP/1.1\r\n{self._fixed}{session}x-request-id: {request.request_id}\r\n"
        )
        message = f"{head}content-length: {len(request.body)}\r\n\r\n".encode() + request.body
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._exchange(exchange, message)
        except TimeoutError:
            exchange.end, exchange.error = ends.TIMED_OUT, f"no end within {self._timeout_s:g} s"
        except asyncio.CancelledError:
            exchange.end, exchange.error = ends.INTERRUPTED, "cancelled"
            raise
        finally:
            exchange.ended = self._clock.now()

    async def _exchange(self, exchange: Exchange, message: bytes) -> None:
        """Fills in how it ended. A kept connection that was closed meanwhile is replaced, once."""
        while True:
            connection = self._kept()
            kept = connection is not None
            try:
                connection = connection or await self._connect()
            except OSError as error:
                exchange.end, exchange.error = ends.CONNECT_FAILED, error.strerror or str(error)
                return
            complete = await self._run(connection, exchange, message)
            if complete or exchange.end or connection.answered:
                break
            if not kept:
                exchange.end, exchange.error = ends.LOST, "the connection was closed before anything was answered"
                return
            exchange.reconnects += 1
        if not exchange.end:
            exchange.end, exchange.error = exchange.answer.verdict(exchange.status, complete=complete)

    async def _run(self, connection: Connection, exchange: Exchange, message: bytes) -> bool:
        """True: the answer came to its end. The connection is kept or closed."""
        try:
            await connection.run(exchange, message)
        except ConnectionLost:
            return False
        except httptools.HttpParserError as error:
            exchange.end, exchange.error = ends.MALFORMED, f"HTTP: {error}"
            return False
        except BaseException:  # cancelled: closing is what frees the slot at the other side
            connection.close()
            raise
        self._keep(connection)
        return True

    def _kept(self) -> Connection | None:
        now = self._clock.now()
        while self._idle:
            connection = self._idle.pop()
            if connection.reusable and now - connection.idle_since < IDLE_CONNECTION_S_MAX:
                return connection
            connection.close()
        return None

    def _keep(self, connection: Connection) -> None:
        if connection.reusable and len(self._idle) < IDLE_CONNECTIONS_MAX:
            connection.idle_since = self._clock.now()
            self._idle.append(connection)
        else:
            connection.close()

    async def _connect(self) -> Connection:
        """OSError: it cannot be reached."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                _, connection = await loop.create_connection(
                    lambda: Connection(self._clock), self._target.host, self._target.port, ssl=self._tls
                )
        except TimeoutError:
            raise OSError(f"no connection within {CONNECT_TIMEOUT_S:g} s") from None
        return connection

    async def get(self, path: str) -> tuple[int, bytes]:
        """Status and the first 64 KiB of a body. LoadError: no answer."""
        exchange = Exchange(self._clock.now())
        message = f"GET {self._target.base}{path} HTTP/1.1\r\n{self._fixed}\r\n".encode()
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._exchange(exchange, message)
        except TimeoutError:
            exchange.end, exchange.error = ends.TIMED_OUT, f"no answer within {self._timeout_s:g} s"
        if not exchange.status:
            raise LoadError(f"{self._target.url} does not answer: {exchange.error}")
        return exchange.status, exchange.answer.body

    def close(self) -> None:
        """Closes the connections that wait for another exchange."""
        while self._idle:
            self._idle.pop().close()


def _is_header_value(text: str) -> bool:
    """Whether a recording's own name for a conversation may stand in a header, and would be taken."""
    return 0 < len(text) <= SESSION_CHARS_MAX and text.isascii() and text.isprintable()


class _Card(msgspec.Struct):
    id: str
    max_model_len: int | None = None
    parent: str | None = None


class _Cards(msgspec.Struct):
    data: list[_Card]


@dataclass(frozen=True, slots=True)
class ServedModel:
    """context_tokens_max: 0 where the server does not say."""

    name: str
    context_tokens_max: int


async def served_model(client: Client, name: str) -> ServedModel:
    """The model of that name, or the first base model for "auto". LoadError: no answer, or no such model."""
    status, body = await client.get("/v1/models")
    try:
        cards = msgspec.json.decode(body, type=_Cards).data if status == 200 else []
    except msgspec.MsgspecError:
        cards = []
    if not cards:
        raise LoadError(f"no model is served there (GET /v1/models: {status})")
    for card in cards:
        if card.id == name or (name == "auto" and card.parent is None):
            return ServedModel(card.id, card.max_model_len or 0)
    raise LoadError(f"no model {name!r} is served there; there are {', '.join(card.id for card in cards)}")
