"""W3C trace context: a request's place in its caller's trace. Pure but for the random span ids."""

from __future__ import annotations

import random
import re

_TRACEPARENT = re.compile(rb"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-([0-9a-f]{2})(?:-.*)?")


def begun() -> bytes:
    """A trace that begins here."""
    return b"00-%032x-%016x-01" % (random.getrandbits(128) | 1, random.getrandbits(64) | 1)


def continued(traceparent: bytes) -> bytes:
    """The caller's trace with a span of our own; b"": the caller's header is none."""
    found = _TRACEPARENT.fullmatch(traceparent)
    return b"00-%b-%016x-%b" % (found[1], random.getrandbits(64) | 1, found[2]) if found is not None else b""
