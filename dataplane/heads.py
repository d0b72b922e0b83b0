"""Heads of requests that were seen before: a caller sends the same one again and again, with another body.

The strict parser is the judge. A whole request that it took, whose head says nothing out of the ordinary, is remembered by the
bytes of its head with the digits of its Content-Length cut out. Bytes that agree with a remembered head mean what that one
meant, but for the length, which is read here; whatever does not agree is the parser's to read. So both ways of reading a
request agree by construction, and a test holds them against each other.
"""

from __future__ import annotations

import re

from dataplane.http1 import HOP_BY_HOP, Request, behind, plain_head
from dataplane.openai import Kind, classify

HEADS_MAX = 4096
"""Remembered; beyond it all are forgotten. Callers decide how many there are: it bounds memory, not how well it works."""
HEAD_BYTES_MAX = 2048
"""Longer heads are not remembered."""

REQUEST_BYTES_MAX = 64 * 1024
"""Longer requests are the parser's: what is saved here is nothing beside what their bodies cost."""
SIZES_MAX = 16_384
"""Remembered of all heads together; beyond it all are forgotten."""
LENGTH_DIGITS_MAX = 9

_LENGTH = re.compile(rb"\r\n[Cc]ontent-[Ll]ength: ?([0-9]{1,%d})\r\n" % LENGTH_DIGITS_MAX)
_OUT_OF_THE_ORDINARY = (HOP_BY_HOP - {b"connection"}) | {
    b"expect",
    b"content-encoding",
    b"x-request-id",
    b"traceparent",
    b"tracestate",
}


class KnownHead:
    """A head that was seen before, but for its Content-Length.

    sized: by the size of the whole request the head, its length, what goes to an engine around the Host's value then, and what
    is `behind` the head. A head and the size of what follows it allow one Content-Length only, so a read of that size that
    begins with that head is a whole request.
    """

    __slots__ = ("_request", "sized")

    def __init__(self, request: Request) -> None:
        self._request = request
        self.sized: dict[int, tuple[bytes, int, tuple[bytes, bytes], bytes]] = {}

    def request(self, body: bytes, forwarded: tuple[bytes, bytes]) -> Request:
        """With that body. forwarded: of `sized`."""
        known = self._request
        return Request(
            known.method, known.target, known.path, known.headers, known.fields, body, False, True, None, forwarded
        )  # fmt: skip

    def add(self, head: bytes, length: bytes, size: int) -> None:
        """length: the digits in the head; size: of head and body."""
        before, after = plain_head(self._request)
        self.sized[size] = head, len(head), (before, after + b"\r\ncontent-length: %d" % int(length)), behind(head)


NO_HEAD = KnownHead(Request())
"""None that any request has."""


class KnownHeads:
    """Of one process. body_bytes_max: longer bodies are the parser's; sizes_max: sizes of requests known, of all heads."""

    def __init__(self, body_bytes_max: int, *, sizes_max: int = SIZES_MAX) -> None:
        self._sizes_max = sizes_max
        self._body_bytes_max = body_bytes_max
        self._known: dict[bytes, KnownHead] = {}
        self._sizes = 0

    def __len__(self) -> int:
        return len(self._known)

    def find(self, data: bytes) -> KnownHead | None:
        """data: what one read gave, between two requests. None: not exactly one whole request with a head seen before, or a
        large one; else that head, with the size of `data` in its `sized`."""
        if len(data) > REQUEST_BYTES_MAX:
            return None
        end = data.find(b"\r\n\r\n")
        found = _LENGTH.search(data, 0, end + 2)
        if found is None:
            return None
        start, stop = found.span(1)
        known = self._known.get(data[:start] + data[stop:end])
        length = int(found[1])
        if known is None or len(data) != end + 4 + length or length > self._body_bytes_max:
            return None
        if len(data) not in known.sized or data[: end + 4] != known.sized[len(data)][0]:
            if self._sizes >= self._sizes_max:
                self._forget_sizes()
            self._sizes += 1
            known.add(data[: end + 4], found[1], len(data))
        return known

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
        if len(self._known) >= HEADS_MAX:
            self._forget_sizes()
            self._known.clear()
        self._known[data[:start] + data[stop:end]] = KnownHead(known)

    def _forget_sizes(self) -> None:
        """Connections hold on to the head they saw last: it is emptied, not just dropped."""
        for known in self._known.values():
            known.sized.clear()
        self._sizes = 0


def _is_ordinary(request: Request) -> bool:
    if request.method != "POST" or request.http10 or not request.keep_alive or request.stream is not None:
        return False
    if not request.get(b"content-type").lower().startswith(b"application/json"):
        return False
    if classify(request.method, request.path) is not Kind.ROUTED:
        return False
    return all(
        name not in _OUT_OF_THE_ORDINARY
        and not name.startswith((b"x-headway-", b"x-data-parallel"))
        and (name != b"connection" or value.lower() == b"keep-alive")
        for name, value in request.headers
    )
