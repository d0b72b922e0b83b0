"""HTTP/1.1 as bytes, without I/O: what a request was, how heads are written, where a response ends.

Requests are parsed by httptools (in `connection`). Response heads are split here instead: a head is needed once as a list of
lines to pass on, and body framing must say at which byte a message ends so that bytes can be relayed as they came; a
callback parser gives neither. `ChunkedReader` costs one find and one int a chunk.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from functools import lru_cache

import msgspec

from dataplane.body import BodyStream
from dataplane.errors import REASONS
from dataplane.wishes import NAMES as WISHES

_ZERO = b"0"[0]

Headers = list[tuple[bytes, bytes]]

CHUNK_LINE_BYTES_MAX = 1024
HEADS_MAX = 1024
TRAILER_BYTES_MAX = 16 * 1024

HOP_BY_HOP = frozenset(
    (
        b"connection",
        b"keep-alive",
        b"proxy-connection",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
        b"http2-settings",
    )
)
_NOT_FORWARDED = HOP_BY_HOP | WISHES | {b"host", b"content-length", b"expect"}
_OURS_TO_SAY = frozenset(
    b"access-control-" + what
    for what in (
        b"allow-origin",
        b"allow-credentials",
        b"allow-headers",
        b"allow-methods",
        b"expose-headers",
        b"max-age",
    )
)
"""What browsers may do is answered here (--cors-origin); they refuse answers in which an engine says it, too."""
_CARRIED = frozenset((b"x-request-id", b"traceparent"))
_CREDENTIALS = frozenset((b"authorization", b"x-api-key"))


class FramingError(ValueError):
    """The bytes of a peer are not HTTP/1.1."""


class Request(msgspec.Struct):
    """One request as read from a client.

    path: the target without its query string; headers: names in lower case, in the order they came; fields: the first of
    each name.
    """

    method: str = ""
    target: bytes = b""
    path: str = ""
    headers: Headers = []  # msgspec makes a new one for each
    fields: dict[bytes, bytes] = {}
    body: bytes = b""
    http10: bool = False
    keep_alive: bool = True
    stream: BodyStream | None = None  # what follows `body`, which is its beginning then
    forwarded: tuple[bytes, bytes] | None = None  # of a head seen before: what goes around the Host's value, before the ids

    def add_header(self, name: bytes, value: bytes) -> None:
        """name: in lower case."""
        self.headers.append((name, value))
        self.fields.setdefault(name, value)

    def get(self, name: bytes) -> bytes:
        """The first header of that name, b"" where there is none."""
        return self.fields.get(name, b"")


def path_of(target: bytes) -> str:
    """Without the query string; undecodable bytes become replacement characters."""
    return target.split(b"?", 1)[0].decode("utf-8", "replace")


def origin_form(target: bytes) -> bytes:
    """`http://host/path` as `/path`, which servers must understand (RFC 9112, 3.2.2); any other target as it is."""
    scheme, found, rest = target.partition(b"://")
    if not found or scheme.lower() not in (b"http", b"https"):
        return target
    _, slash, path = rest.partition(b"/")
    return slash + path if slash else b"/"


class ResponseHead(msgspec.Struct):
    """The head of an engine's response, not changed once parsed. length: -1: chunked, or ended by the connection."""

    status: int
    status_line: bytes
    lines: list[bytes]  # header lines to pass on, hop-by-hop ones left out, Content-Length kept
    passed_on: bytes = b""  # status line and those lines, without a CRLF behind the last
    is_plain: bool = False  # 200, with JSON of known length
    is_events: bool = False  # 200, with server-sent events
    length: int = -1
    chunked: bool = False
    keep_alive: bool = True
    content_type: bytes = b""
    encoded: bool = False  # Content-Encoding: the body cannot be read, only passed on
    has_request_id: bool = False


_HEAD = re.compile(rb"HTTP/1\.[01] [1-9][0-9]{2}(?: [^\r\n\0]*)?(?:\r\n[!#$%&'*+\-.^_`|~0-9A-Za-z]+:[^\r\n\0]*)*")
"""A whole response head: no folded lines, no bare CR or LF, no space before a colon."""


@lru_cache(maxsize=HEADS_MAX)
def parse_response_head(head: bytes) -> ResponseHead:
    """Remembered: the heads of one engine's streams differ by their date only, so most are equal within a second.

    head: everything up to, without, the empty line. FramingError: not a response of HTTP/1.x."""
    if _HEAD.fullmatch(head) is None:
        raise FramingError(f"not a response head: {head[:60]!r}")
    status_line, *lines = head.split(b"\r\n")
    http10 = status_line[7] == _ZERO
    found = ResponseHead(int(status_line[9:12]), b"HTTP/1.1" + status_line[8:], lines, keep_alive=not http10)
    kept, named = [], b""
    for line in lines:
        name, _, value = line.partition(b":")
        read = _READ.get(name.lower())
        if read is None or not read(found, value.strip()):
            kept.append(line)
        elif read is _connection:
            named += b"," + value
    hops = _named(named) - {b"content-length"}  # whose line says where the body ends
    found.lines = [line for line in kept if line.partition(b":")[0].lower() not in hops] if named else kept
    if found.chunked and found.length >= 0:
        raise FramingError("both Content-Length and Transfer-Encoding in the response")
    if found.status in (204, 304):
        found.length, found.chunked = 0, False
    readable = found.content_type.startswith(b"application/json") and not found.encoded
    found.is_events = found.status == 200 and found.content_type.startswith(b"text/event-stream") and not found.encoded
    found.is_plain = found.status == 200 and found.length >= 0 and readable
    found.passed_on = b"\r\n".join((found.status_line, *found.lines))
    if found.status in (429, 503) and b"\nretry-after:" not in found.passed_on.lower():
        found.passed_on += b"\r\nretry-after: 1"  # engines do not say when to come back, and callers that know come back better
    return found


def _drop(found: ResponseHead, value: bytes) -> bool:
    return True


def _connection(found: ResponseHead, value: bytes) -> bool:
    value = value.lower()
    if b"close" in value:
        found.keep_alive = False
    elif b"keep-alive" in value:
        found.keep_alive = True
    return True


def _named(connection: bytes) -> set[bytes]:
    """Headers that a peer named as of its connection alone, in lower case."""
    return {token.strip().lower() for token in connection.split(b",")}


def _transfer_encoding(found: ResponseHead, value: bytes) -> bool:
    if value.lower() != b"chunked" or found.chunked:
        raise FramingError(f"transfer encoding {value[:40]!r} in the response")
    found.chunked = True
    return True


def _content_length(found: ResponseHead, value: bytes) -> bool:
    if not value.isdigit() or len(value) > 18 or found.length not in (-1, int(value)):
        raise FramingError(f"content length {value[:40]!r} in the response")
    again = found.length >= 0  # the same once more, which clients refuse
    found.length = int(value)
    return again


def _content_type(found: ResponseHead, value: bytes) -> bool:
    found.content_type = value.lower()
    return False


def _content_encoding(found: ResponseHead, value: bytes) -> bool:
    found.encoded = value.lower() != b"identity"
    return False


def _request_id(found: ResponseHead, value: bytes) -> bool:
    found.has_request_id = True
    return False


_READ: dict[bytes, Callable[[ResponseHead, bytes], bool]] = {
    **dict.fromkeys((*HOP_BY_HOP, *_OURS_TO_SAY), _drop),
    b"connection": _connection,
    b"transfer-encoding": _transfer_encoding,
    b"content-length": _content_length,
    b"content-type": _content_type,
    b"content-encoding": _content_encoding,
    b"x-request-id": _request_id,
}
"""What a header says about the response; True: it is not passed on."""


class ChunkedReader:
    """Finds the end of a chunked body, fed in pieces of any size.

    `feed` returns the index just behind the message's last byte, or -1 where more is to come. While `collect` is set, the
    payload without its framing gathers in `payload`. `chunks` counts data chunks begun (one an event in vLLM's streams).
    `boundary` is the index, in the bytes last fed, behind the last whole data chunk (0: none ended there).
    """

    __slots__ = ("_in_trailer", "_line", "_need", "_trailer_bytes", "boundary", "chunks", "collect", "payload")

    def __init__(self, *, collect: bool = False) -> None:
        self.chunks = 0
        self.collect = collect
        self.payload: list[bytes] = []
        self.boundary = 0
        self._need = 0  # bytes of the current chunk still to come, its CRLF included
        self._line = b""  # a torn size or trailer line
        self._in_trailer = False
        self._trailer_bytes = 0

    @property
    def at_boundary(self) -> bool:
        """Between two chunks: what was fed so far ends with a whole one."""
        return self._need == 0 and not self._line and not self._in_trailer

    def end(self, count: int) -> None:
        """As `feed` leaves it behind so many whole chunks, at a boundary, and the last one."""
        self.chunks += count
        self._in_trailer = True

    def feed(self, data: bytes) -> int:
        """FramingError: a malformed size line, a chunk without its CRLF, endless trailers."""
        position, size = 0, len(data)
        self.boundary = 0
        if not self._need and not self._line and not self._in_trailer:
            position = self._take_whole(data)
            if position == size:
                return -1
            if size - position == 5 and data[position:] == LAST_CHUNK:
                self._in_trailer = True
                return size
        while position < size:
            need = self._need
            if need:
                position = self._consume(data, position, need)
                if self._need == 0:
                    self.boundary = position
                continue
            end = data.find(b"\n", position)
            if end < 0:
                self._line += data[position:]
                if len(self._line) > CHUNK_LINE_BYTES_MAX:
                    raise FramingError("chunk size line too long")
                return -1
            line = data[position:end]
            if self._line:
                line, self._line = self._line + line, b""
            position = end + 1
            if line[-1:] != b"\r":
                raise FramingError("chunk size line without CRLF")
            if self._in_trailer:
                if len(line) == 1:
                    return position
                self._trailer_bytes += len(line)
                if self._trailer_bytes > TRAILER_BYTES_MAX:
                    raise FramingError("trailers too long")
                continue
            length = _chunk_size(line)
            if length:
                self.chunks += 1
                self._need = length + 2
            else:
                self._in_trailer = True
        return -1

    def _take_whole(self, data: bytes) -> int:
        """The small chunks at the beginning that are there as a whole: what `feed` comes to, in half the time. Returns their
        end."""
        position, size = 0, len(data)
        while position < size:
            end = data.find(b"\r\n", position, position + _SIZE_DIGITS_MAX + 2)
            if end < 0:
                break
            stop = _TO_STOP.get(data[position:end], size + 1) + end
            if stop > size or data[stop - 2 : stop] != b"\r\n":
                break
            self.chunks += 1
            if self.collect:
                self.payload.append(data[end + 2 : stop - 2])
            position = self.boundary = stop
        return position

    def _consume(self, data: bytes, position: int, need: int) -> int:
        available = len(data) - position
        take = need if need <= available else available
        stop = position + take
        rest = need - take
        if self.collect and need > 2:
            self.payload.append(data[position : stop - max(0, 2 - rest)])
        if rest == 0:
            if data[stop - 1] != 10 or (take > 1 and data[stop - 2] != 13):
                raise FramingError("a chunk does not end with CRLF")
        elif rest == 1 and data[stop - 1] != 13:
            raise FramingError("a chunk does not end with CRLF")
        self._need = rest
        return stop


LAST_CHUNK = b"0\r\n\r\n"
USUAL_BYTES_MAX = 4096
EVENT_END = b"\n\n\r\n"
"""Of a chunk that ends as an event of a stream does."""


def behind(opening: bytes) -> bytes:
    """opening: ends with LF. What comes behind all that begins with it: bytes between the two begin with it, which two
    comparisons tell in half the time of `startswith`."""
    return opening[:-1] + b"\v"


def _openings() -> list[tuple[bytes, bytes]]:
    """By the length of a chunk, framing included: its size line, and what is `behind` it. Where no chunk is as long, nothing
    lies between."""
    found = [(b"", b"")] * USUAL_BYTES_MAX
    for size in range(1, USUAL_BYTES_MAX):
        line = b"%x\r\n" % size
        if len(line) + size + 2 < USUAL_BYTES_MAX:
            found[len(line) + size + 2] = line, behind(line)
    return found


OPENINGS = _openings()
"""Up to, without, USUAL_BYTES_MAX. With EVENT_END it tells the usual read of a stream, one event in one chunk, without looking
at what it says: `UpstreamConnection.data_received`."""


def event_chunks(data: bytes) -> list[bytes]:
    """The chunks that `data` is, each without EVENT_END, where it is nothing but chunks that end as events do, of less than
    USUAL_BYTES_MAX; else none.

    What lies between two such ends and is as long as its size line says is a chunk, whatever is in it. A quarter of what
    `ChunkedReader` takes.
    """
    parts = data.split(EVENT_END)
    if parts.pop():
        return []
    for part in parts:
        size = len(part) + len(EVENT_END)
        if size >= USUAL_BYTES_MAX:
            return []
        least, beyond = OPENINGS[size]
        if not least <= part < beyond:
            return []
    return parts


_SIZE_DIGITS_MAX = 3
_TO_STOP = {b"%x" % size: size + 4 for size in range(1, 16**_SIZE_DIGITS_MAX)}
"""From a size line's end to its chunk's, by the digits: two line ends and the payload."""
_HEX = frozenset(b"0123456789abcdefABCDEF")


def _chunk_size(line: bytes) -> int:
    """line: with its CR. FramingError: not a hexadecimal number of at most 16 digits."""
    digits = line[:-1]
    if digits.find(b";") >= 0:
        digits = digits.split(b";", 1)[0].rstrip(b" \t")
    if not 0 < len(digits) <= 16 or not _HEX.issuperset(digits):
        raise FramingError(f"chunk size {line[:20]!r}")
    return int(digits, 16)


def boundary_in(held: bytes) -> int:
    """Index in `held`, the beginning of a chunked body, behind its last whole chunk."""
    reader = ChunkedReader()
    reader.feed(held)
    return reader.boundary


def unchunked(raw: bytes) -> bytes:
    """The payload of a chunked body, or of its beginning."""
    reader = ChunkedReader(collect=True)
    reader.feed(raw)
    return b"".join(reader.payload)


def forward_head(
    request: Request,
    *,
    host: bytes,
    ids: bytes,
    rank: int = -1,
    credential: bytes | None = None,
) -> bytes:
    """The head that goes to the engine: the caller's headers but hop-by-hop ones, Host rewritten, ids carried on.

    ids: the request's name and trace as header lines, each behind its CRLF; rank: data-parallel, -1: any; credential: a header
    line behind its CRLF in place of the caller's key, b"" for no key; None: the caller's passes.
    """
    if request.forwarded is not None and credential is None and rank < 0:
        before, behind = request.forwarded
        return b"".join((before, host, behind, ids, b"\r\n\r\n"))
    dropped = _NOT_FORWARDED
    if credential is not None:
        dropped = dropped | _CREDENTIALS
    if b"connection" in request.fields:
        dropped = dropped | _named(b",".join([value for name, value in request.headers if name == b"connection"]))
    if rank >= 0:
        dropped = dropped | {b"x-data-parallel-rank"}
    parts = [request.method.encode(), b" ", request.target, b" HTTP/1.1\r\nhost: ", host, _lines(request.headers, dropped)]
    if credential:
        parts.append(credential)
    if rank >= 0:
        parts.append(b"\r\nx-data-parallel-rank: %d" % rank)
    stream = request.stream
    if stream is None:
        parts.append(b"\r\ncontent-length: %d" % len(request.body))
    elif stream.length >= 0:
        parts.append(b"\r\ncontent-length: %d" % stream.length)
    else:
        parts.append(b"\r\ntransfer-encoding: chunked")
    parts += (ids, b"\r\n\r\n")
    return b"".join(parts)


def plain_head(request: Request) -> tuple[bytes, bytes]:
    """What goes around the Host's value, of a request without hop-by-hop headers, ids or a stream; without its length."""
    before = request.method.encode() + b" " + request.target + b" HTTP/1.1\r\nhost: "
    return before, _lines(request.headers, _NOT_FORWARDED)


def _lines(headers: Headers, dropped: frozenset[bytes]) -> bytes:
    """Each behind its CRLF."""
    parts: list[bytes] = []
    for name, value in headers:
        if name not in dropped and name not in _CARRIED:
            parts += (b"\r\n", name, b": ", value)
    return b"".join(parts)


def reply(
    status: int,
    body: bytes,
    *,
    content_type: bytes = b"application/json",
    extra: Iterable[bytes] = (),
    about: bytes = b"",
    close: bool = False,
    head_only: bool = False,
) -> bytes:
    """A whole response of our own. extra: header lines; about: more of them, each behind its CRLF."""
    lines = [b"HTTP/1.1 %d " % status + REASONS.get(status, b"Status")]
    if status != 204:
        lines += (b"content-type: " + content_type, b"content-length: %d" % len(body))
    lines += extra
    if close:
        lines.append(b"connection: close")
    head = b"\r\n".join(lines) + about + b"\r\n\r\n"
    return head if head_only else head + body
