"""Blocks the router believes a worker holds because it has just sent them there.

Between a dispatch and the engine's own event lie a queue, a prefill and a batch interval. Without a guess for that time, the
second request of a conversation, or the second of a burst with one system prompt, would be judged as if the first had never
been sent. A guess is confirmed (the engine announces the block), contradicted (it removes it) or forgotten.

Workers with events forget after a time; workers without events keep guesses up to their cache's capacity, least recently
used first and, within one request, its last block first: the engine's own order.
"""

from __future__ import annotations

from array import array
from collections import deque
from itertools import islice, takewhile
from typing import TypeAlias

Chain: TypeAlias = "array[int] | tuple[int, ...]"
"""Block hashes of a prompt, first block first. Of a short one a tuple: its numbers are made once, and read many times."""

SPECULATION_TTL_S = 5.0
"""How long a guess about a worker with events may wait for its event: a deep queue and a long prefill, not a lost request."""
SPECULATION_BLOCKS_MAX = 65_536
"""Guesses kept for one worker with events, whatever their age."""
FEW_BLOCKS = 12
"""Noted one by one: what is made for the notes of many together costs as much."""
EVICTED_SHARE = 1 / 64
"""Of its capacity that a full cache forgets at once. A dictionary remembers where its oldest entries were until it is made
anew, and whoever asks for the oldest one walks over them: one by one, that was half the price of such a dispatch."""


class Guesses:
    """One endpoint's guesses. Pure; `now` is monotonic seconds and never goes back."""

    __slots__ = ("_capacity", "_ttl_s", "made_at")

    def __init__(self, capacity_blocks: int, ttl_s: float | None) -> None:
        """capacity_blocks: guesses kept; ttl_s: None where only the capacity bounds them."""
        self._capacity = max(1, capacity_blocks)
        self._ttl_s = ttl_s
        self.made_at: dict[int, float] = {}
        """Block hash to the time of its last dispatch, oldest first: re-insertion moves a key to the end."""

    def __len__(self) -> int:
        return len(self.made_at)

    @property
    def expires(self) -> bool:
        """Whether time alone forgets some of them."""
        return self._ttl_s is not None and bool(self.made_at)

    def __contains__(self, block: int) -> bool:
        return block in self.made_at

    def add(self, blocks: Chain, now: float) -> None:
        """blocks: in the order of the prompt."""
        made_at = self.made_at
        if len(blocks) <= FEW_BLOCKS:
            for block in reversed(blocks):
                if block in made_at:
                    del made_at[block]
                made_at[block] = now
        else:
            newest = blocks[::-1]
            if not made_at.keys().isdisjoint(newest):
                for block in newest:
                    made_at.pop(block, None)
            made_at.update(dict.fromkeys(newest, now))
        if len(made_at) > self._capacity:
            self._forget_oldest(len(made_at) - self._capacity + int(self._capacity * EVICTED_SHARE))

    def since(self, at: float) -> list[int]:
        """Those made after this moment; of one prompt the first block first."""
        newest = takewhile(lambda guess: guess[1] > at, reversed(self.made_at.items()))
        return [block for block, _ in newest]

    def discard(self, blocks: array[int]) -> None:
        made_at = self.made_at
        if not made_at.keys().isdisjoint(blocks):  # a third of the loop's time, and nearly always the answer
            for block in blocks:
                made_at.pop(block, None)

    def run(self, hashes: Chain, start: int) -> int:
        """The first position at or after `start` that is not guessed."""
        guessed = map(self.made_at.__contains__, hashes[start:] if start else hashes)
        return start + sum(takewhile(bool, guessed))

    def expire(self, now: float, budget: int) -> int:
        """Forgets at most `budget` guesses that are too old; returns how many."""
        if self._ttl_s is None:
            return 0
        oldest_allowed = now - self._ttl_s
        stale: list[int] = []
        for block, at in self.made_at.items():
            if at > oldest_allowed or len(stale) >= budget:
                break
            stale.append(block)
        for block in stale:
            del self.made_at[block]
        return len(stale)

    def clear(self) -> None:
        self.made_at.clear()

    def _forget_oldest(self, count: int) -> None:
        made_at = self.made_at
        deque(map(made_at.__delitem__, list(islice(made_at, count))), maxlen=0)
