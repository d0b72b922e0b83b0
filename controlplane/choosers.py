"""Choosers: a policy's whole choice in one go, where every endpoint is a candidate: the short way of `usual`.

Each does what its profile's scorers and picker do, to the same sums, the same ties and the same chance (a test holds them
against each other). A call of `min` or a list comprehension costs as much as a dozen steps of a loop, so over a few endpoints
it is a loop that is cheap. Few of them hold anything of a prompt: where that can be, those are looked at apart.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import inf

from controlplane.picker import Turn
from controlplane.row import Row
from controlplane.scorers import CACHE_AWARE_BALANCE_ABS, CACHE_AWARE_BALANCE_REL, CACHE_AWARE_MATCH_MIN

_NEVER = 1 << 62

Chooser = Callable[[Sequence[Row], Sequence[Row], int, str, Turn], Row]
"""(endpoints by slot, those of them that hold something of the prompt, prompt tokens, model, turn) -> the chosen one. Never
called without endpoints."""


def round_robin(rows: Sequence[Row], matched: Sequence[Row], tokens: int, model: str, turn: Turn) -> Row:
    """The next slot after the last one that had a turn."""
    last, chosen = turn.after(model), rows[0]
    for row in rows:
        if row.slot > last:
            chosen = row
            break
    turn.took(model, chosen.slot)
    return chosen


def least_load(rows: Sequence[Row], matched: Sequence[Row], tokens: int, model: str, turn: Turn) -> Row:
    """Fewest requests there."""
    low, chosen, ties = _NEVER, rows[0], False
    for row in rows:
        load = row.next_batch
        if load <= low:
            ties = load == low
            low, chosen = load, row
    return turn.rng.choice([row for row in rows if row.next_batch == low]) if ties else chosen


def prefix(rows: Sequence[Row], matched: Sequence[Row], tokens: int, model: str, turn: Turn) -> Row:
    """The longest match."""
    if not matched:
        return least_load(rows, matched, tokens, model, turn)
    longest, low, chosen, ties = 0, 0, rows[0], False
    for row in matched:
        there, load = row.matched_tokens, row.next_batch
        if there > longest:
            longest, low, chosen, ties = there, load, row, False
        elif there == longest and load <= low:
            ties = load == low
            low, chosen = load, row
    if not ties:
        return chosen
    return turn.rng.choice([row for row in rows if row.matched_tokens == longest and row.next_batch == low])


def cache_aware(rows: Sequence[Row], matched: Sequence[Row], tokens: int, model: str, turn: Turn) -> Row:
    """The longest match where it is worth it and the fleet is balanced, else the fewest requests."""
    longest = 0
    for row in matched:
        if row.matched_tokens > longest:
            longest = row.matched_tokens
    if not longest or longest / tokens <= CACHE_AWARE_MATCH_MIN:
        return least_load(rows, matched, tokens, model, turn)
    low, high = _NEVER, 0
    for row in rows:
        load = row.next_batch
        if load < low:
            low = load
        if load > high:
            high = load
    if high - low > CACHE_AWARE_BALANCE_ABS and high - 1 > CACHE_AWARE_BALANCE_REL * (low - 1):
        return least_load(rows, matched, tokens, model, turn)
    return prefix(rows, matched, tokens, model, turn)


def lmetric(rows: Sequence[Row], matched: Sequence[Row], tokens: int, model: str, turn: Turn) -> Row:
    """The least of (uncached + queued prefill tokens) x batch size."""
    least, chosen, ties = inf, rows[0], False
    for row in rows:  # as if none held anything of it
        cost = (tokens + row.prefill_tokens) * row.next_batch
        if cost <= least:
            ties = cost == least
            least, chosen = cost, row
    for row in matched:  # which only makes them cheaper
        cost = (tokens - row.matched_tokens + row.prefill_tokens) * row.next_batch
        if cost <= least:
            ties = cost == least
            least, chosen = cost, row
    if not ties:
        return chosen
    return _least_loaded(
        [row for row in rows if (tokens - row.matched_tokens + row.prefill_tokens) * row.next_batch == least], turn
    )


def kv_cost(rows: Sequence[Row], matched: Sequence[Row], tokens: int, model: str, turn: Turn) -> Row:
    """The least of blocks to prefill, queued ones included, and blocks that decoding requests hold."""
    costs = [
        (tokens - row.matched_tokens + row.prefill_tokens + row.context_tokens) / row.endpoint.record.block_size for row in rows
    ]
    least = min(costs)
    return _least_loaded([row for row, cost in zip(rows, costs, strict=True) if cost == least], turn)


def weighted(prefix_share: float, queue_share: float, kv_share: float) -> Chooser:
    """The best weighted mean of prefix, queue and free KV; the shares add up to 1."""

    def choose(rows: Sequence[Row], matched: Sequence[Row], tokens: int, model: str, turn: Turn) -> Row:
        low, high = _NEVER, 0
        for row in rows:
            length = row.queued
            if length < low:
                low = length
            if length > high:
                high = length
        span = high - low
        best, chosen = -1.0, rows[0]
        tied: list[Row] = []
        for row in rows:
            total = prefix_share * (row.matched_tokens / tokens) if row.matched_tokens else 0.0
            total += queue_share * ((high - row.queued) / span) if span else queue_share
            total += kv_share * row.kv_free
            if total > best:
                best, chosen = total, row
                if tied:
                    tied = []
            elif total == best:
                tied.append(row)
        return _least_loaded([chosen, *tied], turn) if tied else chosen

    return choose


def _least_loaded(tied: Sequence[Row], turn: Turn) -> Row:
    """Of several, by slot, never none; chance among those as loaded."""
    low = min([row.next_batch for row in tied])
    least = [row for row in tied if row.next_batch == low]
    return least[0] if len(least) == 1 else turn.rng.choice(least)
