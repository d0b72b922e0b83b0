"""GET over one kept-alive connection, for what is asked ten times a second.

A general client's request objects, headers, timers and queues cost 0.3 ms of CPU a scrape, mostly on caches gone cold since
the last one; this asks and answers in a few calls. No redirects, no cookies, and no compression: a page that vLLM packs for
each scrape costs its API server 0.7 ms.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from typing import cast
from urllib.parse import urlsplit

import httptools

ATTEMPTS_MAX = 2
"""A kept connection may be closed by the server in the very moment in which it is used again."""


class NoConnection(OSError):
    """Nothing listens there, or no connection comes about in time."""


class BadHttp(OSError):
    """An answer that is not HTTP, or that is longer than allowed."""


class KeptConnection:
    """url: base URL, without user and password; context: for https; headers: sent with each request."""

    def __init__(
        self,
        url: str,
        *,
        headers: dict[str, str],
        context: ssl.SSLContext | None,
        connect_s: float,
        idle_s_max: float,
        body_max: int,
    ) -> None:
        """connect_s: bound for a connection, its name's resolution included; idle_s_max: an older one is not used again;
        body_max: bytes of an answer."""
        parts = urlsplit(url)
        self._host, self._prefix = parts.hostname or "", parts.path.rstrip("/")
        self._port = parts.port or (443 if parts.scheme == "https" else 80)
        self._context = context if parts.scheme == "https" else None
        said = {"Host": parts.netloc, "Accept": "*/*", "Accept-Encoding": "identity"} | headers
        self._headers = "".join(f"{name}: {value}\r\n" for name, value in said.items()).encode("latin-1")
        self._connect_s, self._idle_s_max, self._body_max = connect_s, idle_s_max, body_max
        self._kept: _Conversation | None = None

    async def get(self, path: str, timeout_s: float) -> tuple[int, bytes]:
        """Status and body. NoConnection; BadHttp; TimeoutError: no whole answer in time; OSError: it broke twice."""
        request = b"GET %s HTTP/1.1\r\n%s\r\n" % ((self._prefix + path).encode(), self._headers)
        async with asyncio.timeout(timeout_s):
            for attempt in range(1, ATTEMPTS_MAX + 1):
                one, self._kept = self._kept, None
                if one is None or not one.usable(time.monotonic() - self._idle_s_max):
                    if one is not None:
                        one.close()
                    one = await self._connect()
                try:
                    answer = await one.ask(request)
                except BadHttp:
                    raise
                except OSError:
                    if attempt == ATTEMPTS_MAX:
                        raise
                    continue
                except BaseException:
                    one.close()
                    raise
                if self._kept is None and one.usable(0.0):
                    self._kept = one
                else:
                    one.close()
                return answer
        raise AssertionError("every attempt returns or raises")

    def close(self) -> None:
        if self._kept is not None:
            self._kept.close()
            self._kept = None

    async def _connect(self) -> _Conversation:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._connect_s):
                _, one = await loop.create_connection(
                    lambda: _Conversation(self._body_max), self._host, self._port, ssl=self._context
                )
        except TimeoutError:
            raise NoConnection(f"no connection to {self._host}:{self._port} in {self._connect_s:g} s") from None
        except OSError as error:
            raise NoConnection(f"{self._host}:{self._port}: {str(error) or type(error).__name__}") from error
        return one


class _Conversation(asyncio.Protocol):
    """A question at a time."""

    def __init__(self, body_max: int) -> None:
        self._body_max = body_max
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None
        self._answer: asyncio.Future[tuple[int, bytes]] | None = None
        self._body: list[bytes] = []
        self._length = 0
        self._status = 0
        self._sized = self._keep = False
        self._quiet_since = 0.0

    def usable(self, since: float) -> bool:
        """Whether it can be asked. since: monotonic seconds; its last answer must be younger."""
        return self._transport is not None and not self._transport.is_closing() and self._keep and self._quiet_since >= since

    def ask(self, request: bytes) -> asyncio.Future[tuple[int, bytes]]:
        """Resolves to status and body; OSError: the connection broke. BadHttp."""
        self._answer = asyncio.get_running_loop().create_future()
        if self._transport is None or self._transport.is_closing():
            self._fail(ConnectionResetError("closed"))
        else:
            self._transport.write(request)
        return self._answer

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    # ------------------------------------------------------------------------------------------------------ the transport's

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is one without being a subclass

    def data_received(self, data: bytes) -> None:
        if self._answer is None or self._answer.done():
            self.close()  # nobody asked
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._fail(BadHttp(f"not HTTP: {error}"))

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if self._status and not self._sized and exc is None:
            self.on_message_complete()  # a body that ends with the connection
        else:
            self._fail(exc if isinstance(exc, OSError) else ConnectionResetError("closed"))

    # --------------------------------------------------------------------------------------------------------- the parser's

    def on_message_begin(self) -> None:
        self._body, self._length, self._status, self._sized = [], 0, 0, False

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() in (b"content-length", b"transfer-encoding"):
            self._sized = True

    def on_headers_complete(self) -> None:
        self._status = self._parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        self._length += len(body)
        if self._length > self._body_max:
            self._fail(BadHttp(f"an answer of more than {self._body_max} bytes"))
        else:
            self._body.append(body)

    def on_message_complete(self) -> None:
        if self._status < 200:
            return  # 100 Continue, 103 Early Hints: the answer follows
        self._keep = self._sized and self._parser.should_keep_alive()
        self._quiet_since = time.monotonic()
        status, self._status = self._status, 0
        if self._answer is not None and not self._answer.done():
            self._answer.set_result((status, b"".join(self._body)))
        self._body = []

    def _fail(self, error: OSError) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(error)
        self.close()
