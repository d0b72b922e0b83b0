"""Pickers: from scored candidates to one. Each returns a position; none depends on the order of the candidates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random

from controlplane.endpoint import Candidate

MODELS_TURNING_MAX = 10_000
"""Models whose turn round robin remembers."""


class Turn:
    """What pickers carry from one decision to the next: a random stream, and whose turn it is for each model."""

    __slots__ = ("_last", "rng")

    def __init__(self, rng: Random) -> None:
        self.rng = rng
        self._last: dict[str, int] = {}

    def after(self, model: str) -> int:
        """The slot that had the last turn; -1 at first."""
        return self._last.get(model, -1)

    def took(self, model: str, slot: int) -> None:
        if len(self._last) >= MODELS_TURNING_MAX and model not in self._last:
            self._last.clear()
        self._last[model] = slot


Picker = Callable[[Sequence[Candidate], Sequence[float], str, Turn], int]
"""(candidates, their totals, model, turn) -> position of the chosen one. Never called without candidates."""


def highest(candidates: Sequence[Candidate], totals: Sequence[float], model: str, turn: Turn) -> int:
    """The best total; among equals the fewest requests; among those, chance."""
    best = max(totals)
    if totals.count(best) == 1:
        return totals.index(best)
    return _least_loaded(candidates, [position for position, total in enumerate(totals) if total == best], turn)


def lowest(candidates: Sequence[Candidate], costs: Sequence[float], turn: Turn) -> int:
    """The same by costs, least first, without making scores of them."""
    least = min(costs)
    if costs.count(least) == 1:
        return costs.index(least)
    return _least_loaded(candidates, [position for position, cost in enumerate(costs) if cost == least], turn)


def uniform(candidates: Sequence[Candidate], totals: Sequence[float], model: str, turn: Turn) -> int:
    """Chance alone."""
    return turn.rng.choice(_by_slot(candidates, range(len(candidates))))


def power_of_two(candidates: Sequence[Candidate], totals: Sequence[float], model: str, turn: Turn) -> int:
    """The better of two drawn by chance."""
    positions = _by_slot(candidates, range(len(candidates)))
    if len(positions) > 2:
        positions = turn.rng.sample(positions, 2)
    return _least_loaded(candidates, positions, turn)


def round_robin(candidates: Sequence[Candidate], totals: Sequence[float], model: str, turn: Turn) -> int:
    """The next slot after the last one that had a turn for this model."""
    last = turn.after(model)
    slots = [candidate.standing.slot for candidate in candidates]
    later = [slot for slot in slots if slot > last]
    slot = min(later or slots)
    turn.took(model, slot)
    return slots.index(slot)


def _by_slot(candidates: Sequence[Candidate], positions: Sequence[int]) -> list[int]:
    return sorted(positions, key=lambda position: candidates[position].standing.slot)


def _least_loaded(candidates: Sequence[Candidate], positions: Sequence[int], turn: Turn) -> int:
    loads = [candidates[position].standing.batch for position in positions]
    low = min(loads)
    tied = [position for position, load in zip(positions, loads, strict=True) if load == low]
    return tied[0] if len(tied) == 1 else turn.rng.choice(_by_slot(candidates, tied))
