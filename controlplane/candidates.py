"""From a question to its candidates: one row per serving endpoint."""

from __future__ import annotations

from controlplane.endpoint import Candidate, Endpoint
from controlplane.question import Question, Request
from controlplane.snapshot import Lane


def usable(blocks: int, endpoint: Endpoint, request: Request) -> int:
    """Matched blocks to tokens. An engine computes at least the last token of a prompt, so that block never counts."""
    if not blocks:
        return 0
    size = endpoint.record.block_size
    return min(blocks, max(0, request.input_tokens - 1) // size) * size


def last_block(question: Question, endpoint: Endpoint) -> int:
    """0 where the chain is not exactly the prompt's full blocks."""
    request, size = question.request, endpoint.record.block_size
    hashes = question.chains.get(size)
    return hashes[-1] if hashes and request.exact_tokens and len(hashes) == request.input_tokens // size else 0


def candidates_of(lane: Lane, request: Request, matches: dict[int, int], now: float) -> list[Candidate]:
    """One row per serving endpoint: the hot loop. Matched blocks count as `usable` says."""
    input_tokens, max_tokens = request.input_tokens, request.max_tokens
    last = max(0, input_tokens - 1)
    rows = []
    for endpoint in lane.serving:
        standing, load = endpoint.standing, endpoint.load
        if standing is None or standing.changes != load.changes:
            standing = endpoint.stands(now)
        breaker = endpoint.breaker
        admits = breaker.closed or breaker.admits(now)
        matched = 0
        if matches and endpoint.credit:
            blocks = matches.get(standing.slot)
            if blocks:
                size = endpoint.record.block_size
                whole = last // size
                matched = (blocks if blocks < whole else whole) * size
        rows.append(Candidate(standing, input_tokens, matched, input_tokens - matched, max_tokens, now, admits, load.token_at))
    return rows
