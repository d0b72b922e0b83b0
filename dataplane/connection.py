"""One client connection: HTTP/1.1 requests in, one after the other, responses out.

Requests are parsed by httptools and queue here where a client pipelines. While one is being served further bytes are kept
unparsed, up to a bound, and the socket is still read: that is how a client that leaves is noticed at once.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, cast

import httptools

from dataplane.body import BodyStream
from dataplane.errors import WHO, ApiError, protocol_error, too_large
from dataplane.heads import NO_HEAD
from dataplane.http1 import Request, origin_form, path_of, reply
from dataplane.openai import MULTIPART_SCAN_BYTES_MAX, multipart_model
from dataplane.upstream import WRITE_BUFFER_BYTES_MAX, no_delay

if TYPE_CHECKING:
    from dataplane.exchange import Exchange
    from dataplane.server import Server
    from dataplane.usual import UsualExchange

PENDING_BYTES_MAX = 256 * 1024
LINGER_S = 2.0
NEVER = float("inf")
_RESET = struct.pack("ii", 1, 0)
"""What was written is dropped, and the other side told."""


class _Refused(Exception):
    """Ends the parser from inside a callback; the reason is `ClientConnection._refusal`."""


class ClientConnection(asyncio.Protocol):
    """server: what answers requests."""

    __slots__ = (
        "_behind_body",
        "_body",
        "_body_bytes",
        "_closing",
        "_deadline",
        "_has_host",
        "_head_bytes",
        "_head_bytes_fed",
        "_in_head",
        "_in_message",
        "_known",
        "_lingering",
        "_next",
        "_parser",
        "_pending",
        "_pending_bytes",
        "_pumping",
        "_queue",
        "_refusal",
        "_request",
        "_server",
        "_stream",
        "_streamable",
        "_was_keep_alive",
        "exchange",
        "served_by",
        "stalled_since",
        "transport",
        "write",
    )

    def __init__(self, server: Server) -> None:
        self._server = server
        self._parser = httptools.HttpRequestParser(self)
        self.transport: asyncio.Transport | None = None
        self.exchange: Exchange | None = None
        self.served_by: UsualExchange | None = None  # the last request: it serves the next one, too
        self.stalled_since = 0.0
        self._request = Request()
        self._body: list[bytes] = []
        self._body_bytes = 0
        self._stream: BodyStream | None = None  # of the request under way, while its body still comes
        self._streamable = True
        self._was_keep_alive = True
        self._head_bytes = 0
        self._head_bytes_fed = 0
        self._has_host = False
        self._behind_body = False
        self._in_message = False
        self._in_head = True
        self._queue: deque[Request] = deque()
        self._pending: list[bytes] = []
        self._pending_bytes = 0
        self._refusal: ApiError | None = None
        self._pumping = False
        self._closing = False
        self._lingering = False
        self._deadline = NEVER
        self._known = self._next = NO_HEAD

    # --- asyncio ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop registers no subclass
        self.write: Callable[[bytes], None] = self.transport.write
        self.transport.set_write_buffer_limits(high=WRITE_BUFFER_BYTES_MAX)
        no_delay(transport)
        self._server.connections.add(self)
        self._deadline = self._server.clock.now() + self._server.settings.keep_alive_s

    def data_received(self, data: bytes) -> None:
        known = self._next
        sized = known.sized.get(len(data))
        if sized is not None and sized[0] <= data < sized[3]:
            self._next = NO_HEAD
            self._server.handle_known(self, known.request(data[sized[1] :], sized[2]))
            return
        self._next = NO_HEAD
        if self._closing:
            return
        if self.exchange is not None or self._queue:
            if self._stream is not None:
                self._parse_streamed(data)
                return
            self._pending.append(data)
            self._pending_bytes += len(data)
            if self._pending_bytes > PENDING_BYTES_MAX and self.transport is not None:
                self.transport.pause_reading()
            return
        if self._in_message or self._refusal is not None or self.stalled_since or self._pending:
            self._parse(data)
        else:
            found = self._server.heads.find(data)
            if found is not None:
                self._known = found
                _, start, forwarded, _ = found.sized[len(data)]
                self._server.handle_known(self, found.request(data[start:], forwarded))
                return
            parser = self._parser
            self._parse(data)
            if len(self._queue) == 1 and not self._in_message and self._refusal is None and self._parser is parser:
                self._server.heads.learn(data, self._queue[0])
        self._pump()

    def eof_received(self) -> None:
        """A half-closed connection is a client that has left, as for the engines."""

    def connection_lost(self, exc: Exception | None) -> None:
        self._closing = True
        self._next = NO_HEAD
        self.served_by = None
        self.transport = None
        self._server.connections.discard(self)
        self._stream = None
        self._queue.clear()
        self._pending.clear()
        exchange, self.exchange = self.exchange, None
        if exchange is not None:
            exchange.client_gone()

    def pause_writing(self) -> None:
        self._next = NO_HEAD
        self.stalled_since = self._server.clock.now()
        if self.exchange is not None:
            self.exchange.pause()

    def resume_writing(self) -> None:
        self.stalled_since = 0.0
        if self.exchange is not None:
            self.exchange.resume()
        elif not self._pumping:
            self._pump()

    # --- the server's side ---

    def finished(self, *, close: bool) -> None:
        """The response to the request under way is written."""
        self.exchange = None
        if close and self._stream is not None:
            self._linger()
            return
        if close:
            self._end()
        else:
            self.answered(self._server.clock.now())

    def answered(self, now: float) -> None:
        """The response to the request under way is written, and another may come."""
        self.exchange = None
        settings = self._server.settings
        self._deadline = now + (settings.head_timeout_s if self._in_message else settings.keep_alive_s)
        if self._queue or self._pending or self._refusal is not None:
            if not self._pumping:
                self._pump()
        elif not self._in_message and not self.stalled_since and not self._closing:
            self._next = self._known

    def cut(self, *, reset: bool = False) -> None:
        """Close at once, whatever is still to be written. reset: the client's next read says so."""
        self.exchange = None
        self._closing = True
        self._next = NO_HEAD
        if self.transport is not None:
            if reset:
                self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            self.transport.abort()

    @property
    def busy(self) -> bool:
        """A request is being read, waits, or is being answered."""
        return self.exchange is not None or self._in_message or bool(self._queue)

    @property
    def idle_since(self) -> float:
        """When the last response was complete; of use only while nothing is under way."""
        return self._deadline - self._server.settings.keep_alive_s

    def close_if_idle(self) -> None:
        """For the end of the process. What was written still leaves."""
        if not self.busy and not self._lingering:
            self._end()

    def check(self, now: float) -> None:
        """Deadlines, asked about a few times a second."""
        if self.exchange is not None:
            self.exchange.check(now)
            if self._stream is not None and now > self._deadline:
                self._break_stream(protocol_error(408, "The request body did not arrive in time.", "body_timeout"))
        elif self.stalled_since and now - self.stalled_since > self._server.settings.client_stall_s:
            self.cut()
        elif now > self._deadline:
            self._late()

    def _late(self) -> None:
        if self._lingering or not self._in_message:
            self.cut()
        elif self._in_head:
            self._reject(protocol_error(408, "The request head did not arrive in time.", "head_timeout"))
        else:
            self._reject(protocol_error(408, "The request body did not arrive in time.", "body_timeout"))

    def _pump(self) -> None:
        """Serve what is queued and parse what is pending, until a request is under way, nothing is left, or the client does
        not read its answers."""
        self._pumping = True
        while self.exchange is None and not self._closing and not self.stalled_since:
            if self._queue:
                request = self._queue.popleft()
                self._server.handle(self, request)
            elif self._refusal is not None:
                self._reject(self._refusal)
            elif self._pending:
                data = b"".join(self._pending)
                self._pending.clear()
                if self._pending_bytes > PENDING_BYTES_MAX and self.transport is not None:
                    self.transport.resume_reading()
                self._pending_bytes = 0
                self._parse(data)
            else:
                break
        self._pumping = False

    def _end(self) -> None:
        """Close after what was written; input is ignored."""
        self._closing = True
        self._next = NO_HEAD
        if self.transport is not None:
            self.transport.close()

    def _reject(self, refusal: ApiError) -> None:
        """Answer and close, but go on reading for a moment: a reset would reach the client before the answer."""
        self._server.rejected(self, self._request, refusal)
        if self.transport is not None:
            extra = self._server.extra_headers
            if refusal.status == 401:
                extra = (*extra, WHO)
            self.write(reply(refusal.status, refusal.body_for(self._request.path), extra=extra, close=True))
        self._linger()

    def _linger(self) -> None:
        """Close after what was written, reading on for a moment."""
        self._closing = self._lingering = True
        self._next = NO_HEAD
        self._stream = None
        self._deadline = self._server.clock.now() + LINGER_S
        if self.transport is not None:
            self.transport.resume_reading()
            if self.transport.can_write_eof():
                self.transport.write_eof()
            else:
                self.transport.close()

    # --- bodies passed on while they come ---

    def _try_stream(self) -> None:
        """A long form whose model is known by now is served at once, its body as it comes."""
        request = self._request
        if self.exchange is not None or self._queue or request.get(b"content-encoding"):
            return
        if not request.get(b"content-type").lower().startswith(b"multipart/"):
            return
        if self._server.reads_forms(request):
            return
        prefix = b"".join(self._body)
        if not multipart_model(prefix) or self.transport is None:
            return
        length = request.get(b"content-length")
        self._stream = request.stream = BodyStream(
            int(length) if length else -1, pause=self.transport.pause_reading, resume=self.transport.resume_reading
        )
        self._stream.feed(prefix)
        self._body = []
        request.body = prefix
        # Until its body is here, whatever ends the request ends the connection.
        self._was_keep_alive, request.keep_alive = request.keep_alive, False
        self._queue.append(request)

    def _parse_streamed(self, data: bytes) -> None:
        self._parse(data)
        if self._refusal is not None and self._stream is not None:
            self._break_stream(self._refusal)

    def _break_stream(self, refusal: ApiError) -> None:
        """The rest of the body will not come, or is none."""
        exchange, self.exchange = self.exchange, None
        can_tell = exchange is None or exchange.is_silent
        if exchange is not None:
            exchange.client_gone()
        if can_tell:
            self._reject(refusal)
        else:
            self.cut()

    # --- httptools ---

    def _parse(self, data: bytes) -> None:
        """Feeds the parser; complete requests end in the queue, a refusal in `_refusal`."""
        if self._refusal is not None:
            return
        behind_body = self._behind_body
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._parse_upgrade(data[upgrade.args[0] :])
            return
        except httptools.HttpParserError as error:
            if self._refusal is None and not (self._queue and not self._queue[-1].keep_alive):
                self._refusal = protocol_error(400, f"The request is not valid HTTP/1.1: {error}.", "invalid_http")
            return
        if self._in_message and (self._in_head or (behind_body and self._behind_body)):
            # A header that goes on and on is no header yet: what was fed is counted. Not behind a pipelined request, where
            # it is unknown how much of the read belongs to this head.
            self._head_bytes_fed += 0 if self._queue else len(data)
            if self._head_bytes_fed > self._server.settings.head_bytes_max:
                self._refusal = protocol_error(431, "The request head is too large.", "head_too_large")

    def on_message_begin(self) -> None:
        self._request = Request()
        self._body = []
        self._body_bytes = self._head_bytes = self._head_bytes_fed = 0
        self._has_host = self._behind_body = False
        self._streamable = True
        self._in_message = self._in_head = True
        self._deadline = self._server.clock.now() + self._server.settings.head_timeout_s

    def on_url(self, url: bytes) -> None:
        self._head_bytes += len(url)
        self._request.target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._in_head:
            return  # behind the body: what is said there is no header, and nobody asked for it
        name = name.lower()
        if name == b"host":
            if self._has_host:
                self._refuse(protocol_error(400, "The request has more than one Host header.", "invalid_http"))
            self._has_host = True
        self._head_bytes += len(name) + len(value)
        self._request.add_header(name, value)

    def on_headers_complete(self) -> None:
        request, settings = self._request, self._server.settings
        self._in_head = False
        request.method = self._parser.get_method().decode()
        if request.target[:1] != b"/":
            request.target = origin_form(request.target)
        request.path = path_of(request.target)
        version = self._parser.get_http_version()
        request.http10 = version == "1.0"
        request.keep_alive = self._parser.should_keep_alive()
        if self._head_bytes > settings.head_bytes_max:
            self._refuse(protocol_error(431, "The request head is too large.", "head_too_large"))
        if version not in ("1.0", "1.1"):
            self._refuse(protocol_error(505, "Only HTTP/1.0 and HTTP/1.1 are spoken here.", "http_version"))
        if not self._has_host and not request.http10:
            self._refuse(protocol_error(400, "The request has no Host header.", "invalid_http"))
        length, coding = request.get(b"content-length"), request.get(b"transfer-encoding")
        if coding:
            self._check_coding(coding, length)
        if length.isdigit() and int(length) > settings.body_bytes_max:
            self._refuse(self._too_large())
        expectation = request.get(b"expect").lower()
        if expectation == b"100-continue":
            # HTTP/1.0 knows no such answer: who speaks it would take it for the one to its request.
            if self.exchange is None and not self._queue and not request.http10:
                self.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        elif expectation:
            self._refuse(protocol_error(417, "Only `Expect: 100-continue` is understood.", "expectation_failed"))
        self._deadline = self._server.clock.now() + settings.body_timeout_s

    def on_chunk_header(self) -> None:
        self._behind_body = True  # unless its bytes follow
        self._head_bytes_fed = 0

    def on_body(self, body: bytes) -> None:
        self._behind_body = False
        self._body_bytes += len(body)
        if self._body_bytes > self._server.settings.body_bytes_max:
            self._refuse(self._too_large())
        if self._stream is not None:
            self._stream.feed(body)
            return
        self._body.append(body)
        if self._streamable and self._body_bytes > MULTIPART_SCAN_BYTES_MAX:
            self._streamable = False
            stranger = self._server.stranger(self._request)
            if stranger is not None:
                self._refuse(replace(stranger, close=True))
            self._try_stream()

    def on_message_complete(self) -> None:
        if self._stream is not None:
            stream, self._stream = self._stream, None
            self._in_message = False
            self._request.keep_alive = self._was_keep_alive
            stream.end()
            return
        self._request.body = b"".join(self._body)
        self._body = []
        self._in_message = False
        self._queue.append(self._request)

    def _check_coding(self, coding: bytes, length: bytes) -> None:
        if length:
            self._refuse(protocol_error(400, "Both Content-Length and Transfer-Encoding were sent.", "invalid_http"))
        if self._request.http10:  # whoever speaks it does not know where such a body ends
            self._refuse(protocol_error(400, "HTTP/1.0 has no Transfer-Encoding.", "invalid_http"))
        if coding.lower() != b"chunked":
            self._refuse(protocol_error(400, "Of transfer codings only `chunked` is understood.", "invalid_http"))

    def _too_large(self) -> ApiError:
        return replace(too_large(self._server.settings.body_bytes_max), close=True)

    def _refuse(self, refusal: ApiError) -> None:
        if self._refusal is None:
            self._refusal = refusal
        raise _Refused

    def _parse_upgrade(self, rest: bytes) -> None:
        """A client that offers another protocol is answered in this one: the head once more, without the offer.

        The parser takes such a request for one without a body, so its bytes are read again by a fresh one.
        """
        request = self._queue.pop() if self._queue else self._request
        if request.method == "CONNECT":
            self._refusal = protocol_error(405, "CONNECT is not allowed here.", "method_not_allowed")
            return
        kept = [
            name + b": " + value
            for name, value in request.headers
            if name not in (b"upgrade", b"connection", b"http2-settings")
        ]
        lines = [request.method.encode() + b" " + request.target + b" HTTP/1.1", *kept]
        if not request.keep_alive:
            lines.append(b"connection: close")
        self._parser = httptools.HttpRequestParser(self)
        self._parse(b"\r\n".join(lines) + b"\r\n\r\n" + rest)
