"""Scorers: how good each candidate is by one measure, in [0, 1], 1 best.

A scorer takes all candidates of a decision (never none) and returns one number each. Costs become scores by
`(max - x) / (max - min)` over the candidates, as llm-d does; equal costs are all 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from controlplane.endpoint import Candidate, Standing

Scorer = Callable[[Sequence[Candidate]], list[float]]
Costs = Callable[[Sequence[Candidate]], list[float]]
"""The same with numbers of any size, 0 or more, least best."""

CACHE_AWARE_MATCH_MIN = 0.3
CACHE_AWARE_BALANCE_ABS = 64
CACHE_AWARE_BALANCE_REL = 1.5
"""SGLang's defaults: share of the prompt that must match, and what counts as imbalance of requests."""


def _from_costs(costs: Sequence[float]) -> list[float]:
    low, high = min(costs), max(costs)
    if low == high:
        return [1.0] * len(costs)
    span = high - low
    return [(high - cost) / span for cost in costs]


def load_costs(candidates: Sequence[Candidate]) -> list[float]:
    """Requests there."""
    return [candidate.standing.batch for candidate in candidates]


def load(candidates: Sequence[Candidate]) -> list[float]:
    """Fewest requests there."""
    return _from_costs(load_costs(candidates))


def queue(candidates: Sequence[Candidate]) -> list[float]:
    """Shortest queue: requests without a first token by the router's count, or waiting by the report where that is more."""
    return _from_costs([_queued(candidate.standing) for candidate in candidates])


def _queued(there: Standing) -> int:
    return there.no_first_byte if there.no_first_byte > there.waiting else there.waiting


def kv_free(candidates: Sequence[Candidate]) -> list[float]:
    """Share of the KV cache that no running request uses."""
    return [min(1.0, max(0.0, 1.0 - candidate.standing.kv_usage)) for candidate in candidates]


def prefix_share(candidates: Sequence[Candidate]) -> list[float]:
    """Share of the prompt that the endpoint holds."""
    return [
        min(1.0, candidate.matched_tokens / candidate.input_tokens) if candidate.input_tokens else 0.0
        for candidate in candidates
    ]


def prefix_length(candidates: Sequence[Candidate]) -> list[float]:
    """Longest match among the candidates is 1, the others in proportion; no match anywhere: all 0."""
    longest = max(candidate.matched_tokens for candidate in candidates)
    return [candidate.matched_tokens / longest if longest else 0.0 for candidate in candidates]


def lmetric_costs(candidates: Sequence[Candidate]) -> list[float]:
    """(uncached + queued prefill tokens) x batch size, this request included in the batch."""
    return [
        (candidate.uncached_tokens + candidate.standing.prefill_tokens) * (candidate.standing.batch + 1)
        for candidate in candidates
    ]


def lmetric(candidates: Sequence[Candidate]) -> list[float]:
    """The least of `lmetric_costs`."""
    return _from_costs(lmetric_costs(candidates))


def kv_costs(candidates: Sequence[Candidate]) -> list[float]:
    """Dynamo's: blocks to prefill, queued ones included, plus blocks that decoding requests hold."""
    return [_kv_blocks(candidate) for candidate in candidates]


def kv_cost(candidates: Sequence[Candidate]) -> list[float]:
    """The least of `kv_costs`."""
    return _from_costs(kv_costs(candidates))


def _kv_blocks(candidate: Candidate) -> float:
    there = candidate.standing
    return (candidate.uncached_tokens + there.prefill_tokens + there.context_tokens) / there.endpoint.record.block_size


def cache_aware(candidates: Sequence[Candidate]) -> list[float]:
    """SGLang's: the best match where it is worth it and the fleet is balanced, else the least loaded."""
    loads = [candidate.standing.batch for candidate in candidates]
    low, high = min(loads), max(loads)
    imbalanced = high - low > CACHE_AWARE_BALANCE_ABS and high > CACHE_AWARE_BALANCE_REL * low
    shares = prefix_share(candidates)
    best = max(shares)
    if imbalanced or best <= CACHE_AWARE_MATCH_MIN:
        return _from_costs(loads)
    return [1.0 if share == best else 0.0 for share in shares]
