"""How an attempt ended, as the control plane wants to hear it. Pure."""

from __future__ import annotations

from contract.outcome import End
from dataplane.relay import Relay
from proto import routing_pb2 as pb


def outcome(
    *,
    decision_id: int,
    end: End,
    relay: Relay | None,
    sent_at: float,
    first_at: float,
    last_at: float,
    now: float,
    request_id: str,
    model: str,
    url: str,
    input_tokens: int,
    connected: bool = True,
) -> pb.Outcome:
    """Times are seconds of one clock; first_at: 0 where no event with content came.

    model, url and input_tokens go along only where the decision was made without the control plane, or where it is away and
    may come back without remembering: connected False.
    """
    found = pb.Outcome(decision_id=decision_id, end=int(end), e2e_s=now - sent_at, request_id=request_id)  # type: ignore[arg-type]
    if not decision_id or not connected:
        found.model, found.url, found.input_tokens = model, url, input_tokens
    if relay is None or relay.head is None:
        return found
    found.http_status = relay.head.status
    found.streamed = relay.is_stream
    ending = relay.ending
    if ending.prompt_tokens is not None:
        found.prompt_tokens = ending.prompt_tokens
    if ending.cached_tokens is not None:
        found.cached_tokens = ending.cached_tokens
    events = relay.chunks.chunks - ending.done if relay.chunks is not None and relay.is_stream and first_at else 0
    found.output_tokens = ending.output_tokens if ending.output_tokens is not None else events
    if relay.is_stream and first_at:
        found.ttft_s = first_at - sent_at
        if found.output_tokens > 1:
            found.itl_s = (last_at - first_at) / (found.output_tokens - 1)
    return found
