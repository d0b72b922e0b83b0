"""A request's name, and its place in its caller's trace (W3C trace context). Pure but for random beginnings."""

from __future__ import annotations

import random
import re

_TRACEPARENT = re.compile(rb"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-([0-9a-f]{2})(?:-.*)?")
_STEP = 0x9E3779B97F4A7C15
"""Odd, so that steps of it come back to where they began after 2^64 of them; large, so that neighbours look unlike."""
_MASK = 2**56 - 1
AT_ONCE = 64
"""Names are made so many at a time, alike but for their last two digits: one by one they cost eight times as much."""
_PLACE = "*"


class Ids:
    """Names of requests that brought none: 32 hexadecimal digits, the first half this process's, all different.

    A random number for each would cost four times as much.
    """

    __slots__ = ("_at", "_lines", "_names", "ready")

    def __init__(self) -> None:
        process = f"{random.getrandbits(64) | 1:016x}"
        self._at = random.getrandbits(56)
        spans = [f"{_PLACE}{number:02x}" for number in range(AT_ONCE)]
        self._names = "\0".join([process + span for span in spans])
        lines = [lines_of((process + span).encode(), begun_with(process + span, span)) for span in spans]
        self._lines = b"\0".join(lines)
        self.ready: list[tuple[str, bytes]] = []
        """What `begin` gives next, last first."""

    def next(self) -> str:
        return self.begin()[0]

    def begin(self) -> tuple[str, bytes]:
        """A name, and the header lines of it and of the trace that begins under it, as `lines_of` writes them."""
        ready = self.ready
        if not ready:
            self.fill()
        return ready.pop()

    def fill(self) -> None:
        """Make more of them."""
        self._at = (self._at + _STEP) & _MASK or _STEP  # a span of zeros is none
        digits = f"{self._at:014x}"
        names = self._names.replace(_PLACE, digits).split("\0")
        lines = self._lines.replace(_PLACE.encode(), digits.encode()).split(b"\0")
        self.ready += zip(names, lines, strict=True)


def begun(name: str) -> bytes:
    """A trace that begins here, under the name of its request. name: of `Ids`."""
    return begun_with(name, name[16:])


def begun_with(trace: str, span: str) -> bytes:
    """The same of its parts."""
    return f"00-{trace}-{span}-01".encode()


def lines_of(request_id: bytes, traceparent: bytes) -> bytes:
    """Both header lines, each behind its CRLF, in this order."""
    return b"\r\nx-request-id: " + request_id + b"\r\ntraceparent: " + traceparent


def without_id(both: bytes) -> bytes:
    """both: of `lines_of`. The trace alone."""
    return both[both.find(b"\r\n", 2) :]


def continued(traceparent: bytes) -> bytes:
    """The caller's trace with a span of our own; b"": the caller's header is none."""
    found = _TRACEPARENT.fullmatch(traceparent)
    return b"00-%b-%016x-%b" % (found[1], random.getrandbits(64) | 1, found[2]) if found is not None else b""
