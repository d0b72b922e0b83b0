"""Choosers: a policy's whole choice in one go, where every endpoint is a candidate: the short way of `usual`.

Each does what its profile's scorers and picker do, to the same sums, the same ties and the same chance (a test holds them
against each other). A call of `min` or a list comprehension costs as much as a dozen steps of a loop, so over a few endpoints
it is a loop that is cheap.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import inf

from controlplane.endpoint import Standing
from controlplane.picker import Turn

_NEVER = 1 << 62

Chooser = Callable[[Sequence[Standing], dict[int, int], int, str, Turn], Standing]
"""(endpoints by slot, matched tokens by slot (above 0 only), prompt tokens, model, turn) -> the chosen one. Never called
without endpoints."""


def round_robin(rows: Sequence[Standing], matched: dict[int, int], tokens: int, model: str, turn: Turn) -> Standing:
    """The next slot after the last one that had a turn."""
    last, chosen = turn.after(model), rows[0]
    for row in rows:
        if row.slot > last:
            chosen = row
            break
    turn.took(model, chosen.slot)
    return chosen


def least_load(rows: Sequence[Standing], matched: dict[int, int], tokens: int, model: str, turn: Turn) -> Standing:
    """Fewest requests there."""
    low, chosen, ties = _NEVER, rows[0], False
    for row in rows:
        load = row.batch
        if load <= low:
            ties = load == low
            low, chosen = load, row
    return turn.rng.choice([row for row in rows if row.batch == low]) if ties else chosen


def prefix(rows: Sequence[Standing], matched: dict[int, int], tokens: int, model: str, turn: Turn) -> Standing:
    """The longest match."""
    if not matched:
        return least_load(rows, matched, tokens, model, turn)
    longest, low, chosen, ties = 0, 0, rows[0], False
    for row in rows:
        if row.slot in matched:
            there, load = matched[row.slot], row.batch
            if there > longest:
                longest, low, chosen, ties = there, load, row, False
            elif there == longest and load <= low:
                ties = load == low
                low, chosen = load, row
    if not ties:
        return chosen
    return turn.rng.choice([row for row in rows if matched.get(row.slot) == longest and row.batch == low])


def lmetric(rows: Sequence[Standing], matched: dict[int, int], tokens: int, model: str, turn: Turn) -> Standing:
    """The least of (uncached + queued prefill tokens) x batch size."""
    least, chosen, ties = inf, rows[0], False
    uncached = tokens
    for row in rows:
        if matched:
            uncached = tokens - matched[row.slot] if row.slot in matched else tokens
        cost = (uncached + row.prefill_tokens) * (row.batch + 1)
        if cost <= least:
            ties = cost == least
            least, chosen = cost, row
    if not ties:
        return chosen
    tied = []
    for row in rows:
        uncached = tokens - matched.get(row.slot, 0)
        if (uncached + row.prefill_tokens) * (row.batch + 1) == least:
            tied.append(row)
    return _least_loaded(tied, turn)


def kv_cost(rows: Sequence[Standing], matched: dict[int, int], tokens: int, model: str, turn: Turn) -> Standing:
    """The least of blocks to prefill, queued ones included, and blocks that decoding requests hold."""
    costs = [
        (tokens - matched.get(row.slot, 0) + row.prefill_tokens + row.context_tokens) / row.endpoint.record.block_size
        for row in rows
    ]
    least = min(costs)
    return _least_loaded([row for row, cost in zip(rows, costs, strict=True) if cost == least], turn)


def weighted(prefix_share: float, queue_share: float, kv_share: float) -> Chooser:
    """The best weighted mean of prefix, queue and free KV; the shares add up to 1."""

    def choose(rows: Sequence[Standing], matched: dict[int, int], tokens: int, model: str, turn: Turn) -> Standing:
        low, high = _NEVER, 0
        for row in rows:
            length = row.no_first_byte
            if row.waiting > length:
                length = row.waiting
            if length < low:
                low = length
            if length > high:
                high = length
        span = high - low
        best, chosen = -1.0, rows[0]
        tied: list[Standing] = []
        for row in rows:
            total = prefix_share * (matched[row.slot] / tokens) if matched and row.slot in matched else 0.0
            if span:
                length = row.no_first_byte
                if row.waiting > length:
                    length = row.waiting
                total += queue_share * ((high - length) / span)
            else:
                total += queue_share
            free = 1.0 - row.kv_usage
            total += kv_share * (free if 0.0 <= free <= 1.0 else float(free > 1.0))
            if total > best:
                best, chosen = total, row
                if tied:
                    tied = []
            elif total == best:
                tied.append(row)
        return _least_loaded([chosen, *tied], turn) if tied else chosen

    return choose


def _least_loaded(tied: Sequence[Standing], turn: Turn) -> Standing:
    """Of several, by slot, never none; chance among those as loaded."""
    low = min([row.batch for row in tied])
    least = [row for row in tied if row.batch == low]
    return least[0] if len(least) == 1 else turn.rng.choice(least)
