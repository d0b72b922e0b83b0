"""A request's name, and its place in its caller's trace (W3C trace context). Pure but for random beginnings."""

from __future__ import annotations

import random
import re

_TRACEPARENT = re.compile(rb"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-([0-9a-f]{2})(?:-.*)?")
_STEP = 0x9E3779B97F4A7C15
"""Odd, so that steps of it come back to where they began after 2^64 of them; large, so that neighbours look unlike."""
_MASK = 2**64 - 1


class Ids:
    """Names of requests that brought none: 32 hexadecimal digits, the first half this process's, all different.

    A random number for each would cost four times as much.
    """

    __slots__ = ("_at", "_process")

    def __init__(self) -> None:
        self._process = b"%016x" % (random.getrandbits(64) | 1)
        self._at = random.getrandbits(64)

    def next(self) -> bytes:
        self._at = (self._at + _STEP) & _MASK
        return self._process + b"%016x" % self._at


def begun(request_id: bytes) -> bytes:
    """A trace that begins here, under the name of its request. request_id: of `Ids`."""
    return b"00-" + request_id + b"-" + request_id[16:] + b"-01"


def continued(traceparent: bytes) -> bytes:
    """The caller's trace with a span of our own; b"": the caller's header is none."""
    found = _TRACEPARENT.fullmatch(traceparent)
    return b"00-%b-%016x-%b" % (found[1], random.getrandbits(64) | 1, found[2]) if found is not None else b""
