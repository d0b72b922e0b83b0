"""The heads and error events that a routed request's client gets. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache

from contract.routing import Answer
from dataplane import errors, trace
from dataplane.relay import Relay


def passed_on(relay: Relay, ids: bytes, about: bytes, ours: Iterable[bytes], *, http10: bool, close: bool) -> bytes:
    """The engine's head without its hop-by-hop lines, and our lines behind it.

    ids: of `trace.lines_of`, its first line only where the engine did not say its own; about: of `about`; ours: header lines.
    """
    head = relay.head
    assert head is not None
    parts = [head.passed_on]
    if relay.chunks is not None and not http10:
        parts.append(b"\r\ntransfer-encoding: chunked")
    parts += (trace.without_id(ids) if head.has_request_id else ids, about)
    for line in ours:
        parts += (b"\r\n", line)
    parts.append(b"\r\nconnection: close\r\n\r\n" if close else b"\r\n\r\n")
    return b"".join(parts)


def about(targets: Sequence[Answer], *, predicted: bool) -> bytes:
    """Where the request went and why, each line behind its CRLF.

    targets: of its attempts; predicted: the prompt was read, so that matched tokens are a prediction and not just nothing.
    """
    if not targets:
        return b""
    target = targets[-1]
    where = place(target.worker, target.policy, len(targets))
    if target.rank >= 0:
        where += b"\r\nx-headway-rank: %d" % target.rank
    if not target.decision_id:
        return where + (
            b"\r\nx-headway-fallback: 1\r\nx-headway-matched-tokens: 0" if predicted else b"\r\nx-headway-fallback: 1"
        )
    if predicted:
        return where + b"\r\nx-headway-decision: %016x\r\nx-headway-matched-tokens: %d" % (
            target.decision_id,
            target.matched_tokens,
        )
    return where + b"\r\nx-headway-decision: %016x" % target.decision_id


class DecisionLine:
    """The line of a decision's number, behind its CRLF, in two parts: numbers follow each other and differ in LAST_DIGITS.
    Formatting each costs four times as much."""

    __slots__ = ("above", "begins")

    def __init__(self) -> None:
        self.above = -1
        self.begins = b""

    def move(self, above: int) -> None:
        """To numbers whose leading digits these are."""
        self.above = above
        self.begins = b"\r\nx-headway-decision: %013x" % above


LAST_DIGITS = [b"%03x" % number for number in range(1 << 12)]
"""Of a decision's number, by their value; its leading digits are what is above them."""
LAST_BITS = 12

MATCHED = [b"\r\nx-headway-matched-tokens: %d" % tokens for tokens in range(4096)]
"""Lines behind their CRLF, by the number in them."""


def matched(tokens: int) -> bytes:
    """The same of any number."""
    return MATCHED[tokens] if 0 <= tokens < len(MATCHED) else b"\r\nx-headway-matched-tokens: %d" % tokens


def error_event(message: str, relay: Relay, path: str, *, http10: bool) -> bytes:
    """With the end of the chunked body, where it is one. Blank lines first: the event before it may be torn."""
    event = b"\n\n" + errors.stream_broken(message).event_for(path, relay.sequence_number + 1)
    if relay.chunks is None or http10:
        return event
    return b"%x\r\n%b\r\n0\r\n\r\n" % (len(event), event)


@lru_cache(maxsize=4096)
def place(worker: str, policy: str, attempts: int) -> bytes:
    """Header lines, each behind its CRLF."""
    named = b"\r\nx-headway-worker: %b\r\nx-headway-policy: %b" % (_printable(worker), _printable(policy))
    return b"\r\nx-headway-attempts: %d" % attempts + named


def _printable(text: str) -> bytes:
    """As a header value: visible ASCII only."""
    return bytes(byte if 32 <= byte < 127 else 63 for byte in text.encode("latin-1", "replace"))
