"""Block hash to the set of lanes that hold it, as a plain dictionary: the shortest thing that is right."""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterator, Sequence


class DictTable:
    """The interface of `prefix_index.Table` over one `dict[int, int]`."""

    def __init__(self) -> None:
        self._lanes_of: dict[int, int] = {}
        self._retired: set[int] = set()

    def __len__(self) -> int:
        return len(self._lanes_of)

    def add(self, lane: int, hashes: array[int]) -> int:
        bit = 1 << lane
        table = self._lanes_of
        new = 0
        for block in hashes:
            lanes = table.get(block, 0)
            if not lanes & bit:
                table[block] = lanes | bit
                new += 1
        return new

    def discard(self, lane: int, hashes: array[int]) -> int:
        bit = 1 << lane
        table = self._lanes_of
        gone = 0
        for block in hashes:
            lanes = table.get(block, 0)
            if lanes & bit:
                gone += 1
                if lanes == bit:
                    del table[block]
                else:
                    table[block] = lanes & ~bit
        return gone

    def add_many(self, lanes: Sequence[int], hashes: Sequence[array[int]]) -> list[int]:
        return [self.add(lane, blocks) for lane, blocks in zip(lanes, hashes, strict=True)]

    def discard_many(self, lanes: Sequence[int], hashes: Sequence[array[int]]) -> list[int]:
        return [self.discard(lane, blocks) for lane, blocks in zip(lanes, hashes, strict=True)]

    def retire(self, lane: int) -> None:
        self._retired.add(lane)

    @property
    def at_rest(self) -> bool:
        return not self._retired

    def sweep(self, rows_max: int) -> list[int]:
        """All at once, whatever `rows_max`: this implementation does not slice."""
        if not self._retired:
            return []
        freed = sorted(self._retired)
        keep = ~sum(1 << lane for lane in freed)
        self._lanes_of = {block: lanes & keep for block, lanes in self._lanes_of.items() if lanes & keep}
        self._retired = set()
        return freed

    def prefixes(self, hashes: array[int], lanes: int) -> Iterator[tuple[int, int]]:
        get = self._lanes_of.get
        alive = lanes
        position = 0
        for block in hashes:
            held = alive & get(block, 0)
            if held != alive:
                if position:
                    yield alive & ~held, position
                alive = held
                if not alive:
                    return
            position += 1
        if alive and position:
            yield alive, position

    def run(self, lane: int, hashes: array[int], start: int) -> int:
        bit = 1 << lane
        get = self._lanes_of.get
        position = start
        while position < len(hashes) and get(hashes[position], 0) & bit:
            position += 1
        return position

    def memory_bytes(self) -> int:
        return sys.getsizeof(self._lanes_of) + len(self._lanes_of) * 48
