"""How an attempt ended, as the control plane wants to hear it. Pure."""

from __future__ import annotations

from contract.outcome import End
from contract.routing import Ended
from dataplane.relay import Relay


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
) -> Ended:
    """Times are seconds of one clock; first_at: 0 where no event with content came.

    model, url and input_tokens go along only where the decision was made without the control plane, or where it is away and
    may come back without remembering: connected False.
    """
    if decision_id and connected:
        model, url, input_tokens = "", "", 0
    if relay is None or relay.head is None:
        return Ended(
            decision_id=decision_id,
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
        output_tokens = relay.chunks.chunks - ending.done if relay.chunks is not None and streamed and first_at else 0
    if streamed and first_at:
        ttft_s = first_at - sent_at
        if output_tokens > 1:
            itl_s = (last_at - first_at) / (output_tokens - 1)
    return Ended(
        decision_id=decision_id,
        end=end,
        http_status=relay.head.status,
        ttft_s=ttft_s,
        e2e_s=now - sent_at,
        output_tokens=output_tokens,
        prompt_tokens=-1 if ending.prompt_tokens is None else ending.prompt_tokens,
        cached_tokens=-1 if ending.cached_tokens is None else ending.cached_tokens,
        streamed=streamed,
        itl_s=itl_s,
        request_id=request_id,
        model=model,
        url=url,
        input_tokens=input_tokens,
    )
