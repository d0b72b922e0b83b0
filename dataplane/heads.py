"""Heads of requests that were seen before: a caller sends the same one again and again, with another body.

The strict parser is the judge. A whole request that it took, whose head says nothing out of the ordinary, is remembered by the
bytes of its head with the digits of its Content-Length cut out. Bytes that agree with a remembered head mean what that one
meant, but for the length, which is read here; whatever does not agree is the parser's to read. So both ways of reading a
request agree by construction, and a test holds them against each other.
"""

from __future__ import annotations

import re

from dataplane.http1 import HOP_BY_HOP, Request, plain_head
from dataplane.openai import Kind, classify

HEADS_MAX = 4096
"""Remembered; beyond it all are forgotten. Callers decide how many there are: it bounds memory, not how well it works."""
HEAD_BYTES_MAX = 2048
"""Longer heads are not remembered."""

LENGTH_DIGITS_MAX = 9

_LENGTH = re.compile(rb"\r\n[Cc]ontent-[Ll]ength: ?([0-9]{1,%d})\r\n" % LENGTH_DIGITS_MAX)
_OUT_OF_THE_ORDINARY = (HOP_BY_HOP - {b"connection"}) | {
    b"expect",
    b"content-encoding",
    b"x-request-id",
    b"traceparent",
    b"tracestate",
}


class KnownHeads:
    """Of one process. body_bytes_max: longer bodies are the parser's to refuse."""

    def __init__(self, body_bytes_max: int) -> None:
        self._body_bytes_max = body_bytes_max
        self._known: dict[bytes, Request] = {}
        self._before, self._behind, self._last = b"", b"", Request()
        """The head that was read last, around the digits of its length: most often it is the next one's, too."""

    def __len__(self) -> int:
        return len(self._known)

    def read(self, data: bytes) -> Request | None:
        """data: what one read gave, between two requests. None: not exactly one whole request with a head seen before."""
        start = len(self._before)
        stop = data.find(b"\r\n", start, start + LENGTH_DIGITS_MAX + 2)
        if start and data.startswith(self._before) and data.startswith(self._behind, stop) and data[start:stop].isdigit():
            known, body_at = self._last, stop + len(self._behind)
        else:
            end = data.find(b"\r\n\r\n")
            found = _LENGTH.search(data, 0, end + 2)
            if found is None:
                return None
            start, stop = found.span(1)
            before, behind = data[:start], data[stop:end]
            remembered = self._known.get(before + behind)
            if remembered is None:
                return None
            known, body_at = remembered, end + 4
            self._before, self._behind, self._last = before, behind + b"\r\n\r\n", known
        length = int(data[start:stop])
        if len(data) != body_at + length or length > self._body_bytes_max:
            return None
        return Request(
            known.method, known.target, known.path, known.headers, known.fields, data[body_at:], forwarded=known.forwarded
        )

    def learn(self, data: bytes, request: Request) -> None:
        """data: what one read gave, between two requests; request: the one request that the parser found to be all of it."""
        end = data.find(b"\r\n\r\n")
        found = _LENGTH.search(data, 0, end + 2)
        if found is None or end > HEAD_BYTES_MAX or not _is_ordinary(request) or len(data) != end + 4 + len(request.body):
            return
        head = data[: end + 2]
        if head.lower().count(b"content-length") != 1 or head.count(b"\n") != head.count(b"\r\n"):
            return
        start, stop = found.span(1)
        headers = [(name, value) for name, value in request.headers if name != b"content-length"]
        known = Request(request.method, request.target, request.path, headers, dict(reversed(headers)))
        known.forwarded = plain_head(known)
        if len(self._known) >= HEADS_MAX:
            self._known.clear()
        self._known[data[:start] + data[stop:end]] = known


def _is_ordinary(request: Request) -> bool:
    if request.method != "POST" or request.http10 or not request.keep_alive or request.stream is not None:
        return False
    if not request.get(b"content-type").lower().startswith(b"application/json"):
        return False
    if request.get(b"connection").lower() not in (b"", b"keep-alive"):
        return False
    if classify(request.method, request.path) is not Kind.ROUTED:
        return False
    return all(
        name not in _OUT_OF_THE_ORDINARY and not name.startswith((b"x-headway-", b"x-data-parallel"))
        for name, _ in request.headers
    )
