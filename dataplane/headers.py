"""The heads and error events that a routed request's client gets. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

from dataplane import errors
from dataplane.gateway import Target
from dataplane.relay import Relay


def passed_on(relay: Relay, request_id: bytes, ours: Iterable[bytes], *, http10: bool, close: bool) -> bytes:
    """The engine's head without its hop-by-hop lines, and `ours` behind it."""
    head = relay.head
    assert head is not None
    lines = [head.status_line, *head.lines]
    if relay.chunks is not None and not http10:
        lines.append(b"transfer-encoding: chunked")
    if not head.has_request_id:
        lines.append(b"x-request-id: " + request_id)
    lines += ours
    if close:
        lines.append(b"connection: close")
    return b"\r\n".join(lines) + b"\r\n\r\n"


def about(target: Target | None, attempts: int, *, predicted: bool) -> list[bytes]:
    """Where the request went and why. target: the last one; attempts: 0 where it went nowhere; predicted: the prompt was read,
    so that matched tokens are a prediction and not just nothing."""
    lines = [b"x-headway-attempts: %d" % attempts] if attempts else []
    if target is None:
        return lines
    lines.append(b"x-headway-worker: " + _printable(target.worker))
    if target.decision_id:
        lines.append(b"x-headway-decision: %016x" % target.decision_id)
    if predicted:
        lines.append(b"x-headway-matched-tokens: %d" % target.matched_tokens)
    lines.append(b"x-headway-policy: " + _printable(target.policy))
    if target.by_fallback:
        lines.append(b"x-headway-fallback: 1")
    return lines


def error_event(message: str, relay: Relay, path: str, *, http10: bool) -> bytes:
    """With the end of the chunked body, where it is one. Blank lines first: the event before it may be torn."""
    event = b"\n\n" + errors.stream_broken(message).event_for(path, relay.sequence_number + 1)
    if relay.chunks is None or http10:
        return event
    return b"%x\r\n%b\r\n0\r\n\r\n" % (len(event), event)


@lru_cache(maxsize=4096)
def _printable(text: str) -> bytes:
    """As a header value: visible ASCII only."""
    return bytes(byte if 32 <= byte < 127 else 63 for byte in text.encode("latin-1", "replace"))
