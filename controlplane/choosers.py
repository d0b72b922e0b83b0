"""Choosers: a policy's whole choice in one go, where every endpoint is a candidate: the short way of `usual`.

Each does what its profile's scorers and picker do, to the same sums, the same ties and the same chance (a test holds them
against each other). A call of `min` or a list comprehension costs as much as a dozen steps of a loop, so over a few endpoints
it is a loop that is cheap.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from math import inf

from controlplane.endpoint import Standing
from controlplane.picker import Turn

Chooser = Callable[[Sequence[Standing], dict[int, int], int, str, Turn], int]
"""(endpoints by slot, matched tokens by position (above 0 only), prompt tokens, model, turn) -> position of the chosen one.
Never called without endpoints."""


def round_robin(rows: Sequence[Standing], matched: dict[int, int], tokens: int, model: str, turn: Turn) -> int:
    """The next slot after the last one that had a turn."""
    at = bisect_right([row.slot for row in rows], turn.after(model))
    if at == len(rows):
        at = 0
    turn.took(model, rows[at].slot)
    return at


def least_load(rows: Sequence[Standing], matched: dict[int, int], tokens: int, model: str, turn: Turn) -> int:
    """Fewest requests there."""
    return _least_loaded(rows, range(len(rows)), turn)


def prefix(rows: Sequence[Standing], matched: dict[int, int], tokens: int, model: str, turn: Turn) -> int:
    """The longest match."""
    if not matched:
        return _least_loaded(rows, range(len(rows)), turn)
    longest = max(matched.values())
    return _least_loaded(rows, sorted(at for at, there in matched.items() if there == longest), turn)


def lmetric(rows: Sequence[Standing], matched: dict[int, int], tokens: int, model: str, turn: Turn) -> int:
    """The least of (uncached + queued prefill tokens) x batch size."""
    least, chosen, ties = inf, 0, 0
    for at, row in enumerate(rows):
        uncached = tokens - matched[at] if at in matched else tokens
        cost = (uncached + row.prefill_tokens) * (row.batch + 1)
        if cost < least:
            least, chosen, ties = cost, at, 0
        elif cost == least:
            ties += 1
    if not ties:
        return chosen
    costs = [(tokens - matched.get(at, 0) + row.prefill_tokens) * (row.batch + 1) for at, row in enumerate(rows)]
    return _least_loaded(rows, [at for at, cost in enumerate(costs) if cost == least], turn)


def kv_cost(rows: Sequence[Standing], matched: dict[int, int], tokens: int, model: str, turn: Turn) -> int:
    """The least of blocks to prefill, queued ones included, and blocks that decoding requests hold."""
    costs = [
        (tokens - matched.get(at, 0) + row.prefill_tokens + row.context_tokens) / row.endpoint.record.block_size
        for at, row in enumerate(rows)
    ]
    least = min(costs)
    return _least_loaded(rows, [at for at, cost in enumerate(costs) if cost == least], turn)


def weighted(prefix_share: float, queue_share: float, kv_share: float) -> Chooser:
    """The best weighted mean of prefix, queue and free KV; the shares add up to 1."""

    def choose(rows: Sequence[Standing], matched: dict[int, int], tokens: int, model: str, turn: Turn) -> int:
        queued = []
        low, high = 1 << 62, 0
        for row in rows:
            length = row.no_first_byte
            if row.waiting > length:
                length = row.waiting
            if length < low:
                low = length
            if length > high:
                high = length
            queued.append(length)
        span = high - low
        best, totals = -1.0, []
        for at, row in enumerate(rows):
            total = prefix_share * (matched[at] / tokens) if at in matched else 0.0
            total += queue_share * ((high - queued[at]) / span if span else 1.0)
            usage = row.kv_usage
            total += kv_share * (1.0 - usage if 0.0 <= usage <= 1.0 else float(usage < 0.0))
            if total > best:
                best = total
            totals.append(total)
        if totals.count(best) == 1:
            return totals.index(best)
        return _least_loaded(rows, [at for at, total in enumerate(totals) if total == best], turn)

    return choose


def _least_loaded(rows: Sequence[Standing], positions: Sequence[int], turn: Turn) -> int:
    """Among `positions`, ascending and never none; chance among those as loaded."""
    low = 1 << 62
    tied: list[int] = []
    for at in positions:
        load = rows[at].batch
        if load < low:
            low, tied = load, [at]
        elif load == low:
            tied.append(at)
    return tied[0] if len(tied) == 1 else turn.rng.choice(tied)
