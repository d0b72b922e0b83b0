"""A block pool written for clearness from the rules alone: every block a record, every question a scan."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Block:
    number: int
    holders: int = 0
    hash: int | None = None
    freed_at: int = 0
    """When it joined the free queue; the smallest is taken first."""
    hashed_at: int = 0


class ReferencePool:
    def __init__(self, num_blocks: int) -> None:
        self.blocks = [Block(number, freed_at=number) for number in range(1, num_blocks)]
        self._time = num_blocks
        self.removed: list[int] = []

    def _tick(self) -> int:
        self._time += 1
        return self._time

    def by_number(self, number: int) -> Block:
        return next(block for block in self.blocks if block.number == number)

    def free(self) -> list[Block]:
        return sorted((block for block in self.blocks if block.holders == 0), key=lambda block: block.freed_at)

    def allocate(self, count: int) -> list[int]:
        taken = self.free()[:count]
        for block in taken:
            if block.hash is not None:
                self.removed.append(block.hash)
                block.hash = None
            block.holders = 1
        return [block.number for block in taken]

    def find(self, hashes: list[int]) -> list[int]:
        found = []
        for key in hashes:
            copies = sorted((block for block in self.blocks if block.hash == key), key=lambda block: block.hashed_at)
            if not copies:
                break
            found.append(copies[0].number)
        return found

    def touch(self, numbers: list[int]) -> None:
        for number in numbers:
            self.by_number(number).holders += 1

    def store(self, numbers: list[int], hashes: list[int]) -> None:
        for number, key in zip(numbers, hashes, strict=True):
            block = self.by_number(number)
            block.hash, block.hashed_at = key, self._tick()

    def release(self, numbers: list[int]) -> None:
        for number in reversed(numbers):
            block = self.by_number(number)
            block.holders -= 1
            if block.holders == 0:
                block.freed_at = self._tick()

    def counts(self) -> dict[int, int]:
        result: dict[int, int] = {}
        for block in self.blocks:
            if block.hash is not None:
                result[block.hash] = result.get(block.hash, 0) + 1
        return result
