"""A request's name, and its place in its caller's trace (W3C trace context). Pure but for random beginnings."""

from __future__ import annotations

import random
import re

_TRACEPARENT = re.compile(rb"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-([0-9a-f]{2})(?:-.*)?")
_STEP = 0x9E3779B97F4A7C15
"""Odd, so that steps of it come back to where they began after 2^64 of them; large, so that neighbours look unlike."""
_MASK = 2**64 - 1
AT_ONCE = 64
"""Names are made so many at a time: one by one they cost twice as much."""


class Ids:
    """Names of requests that brought none: 32 hexadecimal digits, the first half this process's, all different.

    A random number for each would cost four times as much.
    """

    __slots__ = ("_at", "_process", "_ready")

    def __init__(self) -> None:
        self._process = f"{random.getrandbits(64) | 1:016x}"
        self._at = random.getrandbits(64)
        self._ready: list[str] = []

    def next(self) -> str:
        return self.begin()[0]

    def begin(self) -> tuple[str, bytes]:
        """A name, and the header lines of it and of the trace that begins under it, as `lines_of` writes them."""
        if not self._ready:
            self._fill()
        process, digits = self._process, self._ready.pop()
        lines = f"\r\nx-request-id: {process}{digits}\r\ntraceparent: 00-{process}{digits}-{digits}-01"
        return process + digits, lines.encode()

    def _fill(self) -> None:
        at, made = self._at, []
        for _ in range(AT_ONCE):
            at = (at + _STEP) & _MASK
            made.append(at.to_bytes(8))
        self._at = at
        digits = b"".join(made).hex()
        self._ready = [digits[start : start + 16] for start in range(0, 16 * AT_ONCE, 16)]


def begun(name: str) -> bytes:
    """A trace that begins here, under the name of its request. name: of `Ids`."""
    return f"00-{name}-{name[16:]}-01".encode()


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
