"""The blocks on one rank and tier: how many copies of each, and what came and went since anybody asked. Pure.

Blocks come and go in lists, and nearly every list is of blocks that are new, or that are held once: such a list costs a pass of
a few set operations and no Python per block. Anything else (copies, strangers, the same block twice) takes the slow way.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Sequence

LOG_BLOCKS_MAX = 65_536
"""What came and went is kept as it happened up to this, then netted: a reader that is away costs no more than the cache."""


class Shelf:
    """A count never exceeds what was put: dropping a block that is not here changes nothing."""

    __slots__ = ("_came", "_log_blocks_max", "_log_max", "_went", "at", "cleared", "extra", "held", "total")

    def __init__(self, log_blocks_max: int = LOG_BLOCKS_MAX) -> None:
        self.held: set[int] = set()
        self.extra: dict[int, int] = {}
        """Copies beyond the first."""
        self.total = 0
        """Copies of all blocks."""
        self.cleared = False
        """Whether it was emptied since the last `take`."""
        self.at = 0.0
        """Unix time of the oldest change since then."""
        # A block's moves alternate, so what came less what went is -1, 0 or 1 of each.
        self._came: list[int] = []
        self._went: list[int] = []
        self._log_blocks_max = self._log_max = log_blocks_max

    @property
    def moves(self) -> int:
        """At least as many as `take` returns blocks; 0 where it returns none."""
        return len(self._came) + len(self._went)

    @property
    def changed(self) -> bool:
        return bool(self._came or self._went or self.cleared)

    def stamp(self, at: float) -> None:
        """Something changes now; at: Unix time."""
        if not self.changed:
            self.at = at

    def put(self, blocks: list[int]) -> None:
        """One more copy of each."""
        held = self.held
        self.total += len(blocks)
        if held.isdisjoint(blocks):
            before = len(held)
            held.update(blocks)
            if len(held) - before == len(blocks):
                self._came += blocks
                self._bound_log()
                return
            held.difference_update(blocks)  # one of them twice
        for block in blocks:
            if block in held:
                self.extra[block] = self.extra.get(block, 0) + 1
            else:
                held.add(block)
                self._came.append(block)
        self._bound_log()

    def drop(self, blocks: Sequence[int]) -> None:
        """One copy less of each that is here."""
        held, extra = self.held, self.extra
        if held.issuperset(blocks) and (not extra or extra.keys().isdisjoint(blocks)):
            before = len(held)
            held.difference_update(blocks)
            if before - len(held) == len(blocks):
                self.total -= len(blocks)
                self._went += blocks
                self._bound_log()
                return
            held.update(blocks)  # one of them twice
        for block in blocks:
            self._drop_one(block)
        self._bound_log()

    def _drop_one(self, block: int) -> None:
        if block not in self.held:
            return
        self.total -= 1
        copies = self.extra.get(block, 0)
        if copies > 1:
            self.extra[block] = copies - 1
        elif copies:
            del self.extra[block]
        else:
            self.held.discard(block)
            self._went.append(block)

    def clear(self) -> None:
        self.held.clear()
        self.extra.clear()
        self._forget_log()
        self.total = 0
        self.cleared = True

    def take(self) -> tuple[array[int], array[int]]:
        """(added, removed) since the last call, disjoint."""
        added, removed = self._net()
        self._forget_log()
        self.cleared = False
        return array("Q", added), array("Q", removed)

    def _net(self) -> tuple[list[int], list[int]]:
        if not self._came or not self._went or (self.held.issuperset(self._came) and self.held.isdisjoint(self._went)):
            return self._came, self._went  # each block moved once: one that moved twice is in both, and held or not
        came, went = set(self._came), set(self._went)
        both = came & went
        moves = Counter(block for block in self._came if block in both)
        moves.subtract(block for block in self._went if block in both)
        added = [*(came - both), *(block for block, net in moves.items() if net > 0)]
        return added, [*(went - both), *(block for block, net in moves.items() if net < 0)]

    def _bound_log(self) -> None:
        if len(self._came) + len(self._went) > self._log_max:
            self._came, self._went = self._net()
            self._log_max = self._log_blocks_max + 2 * (len(self._came) + len(self._went))

    def _forget_log(self) -> None:
        self._came, self._went = [], []
        self._log_max = self._log_blocks_max
