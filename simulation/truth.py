"""What one engine really holds, told from its events in the plainest way: the reference for agent and index."""

from __future__ import annotations

from collections import Counter
from itertools import islice

from contract import blocks
from emulator.block_pool import Event, Removed, Stored


class Truth:
    """Of one incarnation. model, block_size: as in the block hashes that the router uses."""

    def __init__(self, model: str, block_size: int) -> None:
        self._root = blocks.root_hash(model)
        self._block_size = block_size
        self._hash_of: dict[int, int] = {}
        self.copies: Counter[int] = Counter()
        """By engine hash, zero ones left out."""

    def follow(self, events: list[Event]) -> None:
        copies = self.copies
        for event in events:
            if isinstance(event, Stored):
                parent = self._root if event.parent is None else self._hash_of[event.parent]
                self._hash_of.update(zip(event.hashes, blocks.chain(event.token_ids, self._block_size, parent), strict=True))
                copies.update(event.hashes)
            elif isinstance(event, Removed):
                copies[event.hash] -= 1
                if not copies[event.hash]:
                    del copies[event.hash]
            else:
                copies.clear()

    def __len__(self) -> int:
        """Distinct blocks."""
        return len(self.copies)

    def held(self) -> set[int]:
        """Block hashes, the router's kind."""
        return {self._hash_of[name] for name in self.copies}

    def some(self, count: int) -> list[int]:
        """Up to `count` block hashes, the oldest first."""
        return [self._hash_of[name] for name in islice(self.copies, count)]
