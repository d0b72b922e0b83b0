"""How an attempt ended, as the control plane wants to hear it. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from contract.outcome import End
from contract.routing import Ended
from dataplane.ranks import BALANCED

if TYPE_CHECKING:
    from dataplane.attempt import Attempt


def outcome(attempt: Attempt, end: End, now: float, request_id: str, model: str, input_tokens: int, connected: bool) -> Ended:
    """connected: to the control plane. model, input_tokens and the attempt's URL go along only where it did not decide, or is
    away and may come back without remembering."""
    target, relay, sent_at, first_at = attempt.target, attempt.relay, attempt.sent_at, attempt.first_at
    url = target.url
    if target.decision_id and connected:
        model, url, input_tokens = "", "", 0
    if relay is None or relay.head is None:
        return Ended(
            decision_id=target.decision_id,
            end=end,
            e2e_s=now - sent_at,
            request_id=request_id,
            model=model,
            url=url,
            input_tokens=input_tokens,
        )
    ending, streamed = relay.ending, relay.is_stream
    output_tokens, ttft_s, itl_s = ending.output_tokens, -1.0, -1.0
    if output_tokens is None:
        output_tokens = relay.chunk_count - ending.done if relay.chunks is not None and streamed and first_at else 0
    if streamed and first_at:
        ttft_s = first_at - sent_at
        if output_tokens > 1:
            itl_s = (attempt.last_at - first_at) / (output_tokens - 1)
    return Ended(
        decision_id=target.decision_id,
        end=end,
        http_status=relay.head.status,
        ttft_s=ttft_s,
        e2e_s=now - sent_at,
        output_tokens=output_tokens,
        prompt_tokens=-1 if ending.prompt_tokens is None else ending.prompt_tokens,
        cached_tokens=-1 if ending.cached_tokens is None or target.rank == BALANCED else ending.cached_tokens,
        streamed=streamed,
        itl_s=itl_s,
        request_id=request_id,
        model=model,
        url=url,
        input_tokens=input_tokens,
    )
