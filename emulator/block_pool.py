"""Pages of KV memory, and which of them still hold something worth keeping.

The KV cache of an engine is a fixed number of equal blocks. A block is always in exactly one of these states:

    used        some live sequence refers to it (`references > 0`)
    cached      nobody refers to it, but it holds the KV of a full, hashed block of tokens: evictable, and until then a hit
    empty       nobody refers to it and it holds nothing that can be found again

`cached` and `empty` blocks wait in one free queue. Allocation takes from the front; taking a cached block evicts it, which is
the only way (besides a reset) that content is lost. Everything interesting is in the order of that queue:

* A sequence gives its blocks back when it ends (or is preempted), **last block first**, at the queue's end. So the queue is
  ordered by last use, and among the blocks of one sequence the tail comes first: a tail is useless without its head, a head
  is useful without its tail. That is LRU over a tree without keeping a tree. * A hit takes a cached block out of the middle
  of the queue and counts a reference; when it comes back it is the youngest.

Only **full** blocks are cached, under a chained hash, so that equal hashes mean equal prefixes. The lookup walks the hashes
of a prompt until the first one missing. A hit never covers the whole prompt: at least the last token is computed again,
because its logits are what the first output token is sampled from. A prompt of exactly n blocks therefore hits n - 1,
computes the last one into a fresh block and caches it under a hash that another block already carries.

So **one hash can have several copies**. Nothing is deduplicated: tables of live sequences are append-only, and swapping a
block under a running kernel is not worth it. Each copy is announced by its own `Stored` and taken back by its own
`Removed`; whoever follows the events must count, not keep a set. Of several copies a lookup returns the oldest.

Block 0 is the null block: vLLM keeps it as padding and never hands it out, so a pool of n blocks serves n - 1, and usage is a
share of n - 1. It is counted in `num_gpu_blocks` everywhere.

Events are collected in the order in which they happen and are drained by the engine at the end of a step: an eviction
before the store that caused it. `Cleared` waits for the next step like any other: an idle engine publishes nothing.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence as Items
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple


class Origin(NamedTuple):
    """Whose blocks they are, as far as events tell; "" for none."""

    lora: str = ""
    cache_salt: str = ""
    session: str = ""


PLAIN = Origin()


@dataclass(frozen=True, slots=True)
class Stored:
    """Blocks that were filled and hashed, in chain order. token_ids: flat uint32, all tokens of all blocks.

    parent: hash of the block before; None where the first of these is the first of its sequence.
    """

    hashes: tuple[int, ...]
    parent: int | None
    token_ids: bytes
    origin: Origin = PLAIN


@dataclass(frozen=True, slots=True)
class Removed:
    """One copy of a block was evicted."""

    hash: int


@dataclass(frozen=True, slots=True)
class Cleared:
    """The whole prefix cache was dropped."""


Event = Stored | Removed | Cleared


class BlockPool:
    """A fixed number of blocks with reference counts and a prefix cache."""

    def __init__(self, num_blocks: int, *, caching: bool = True) -> None:
        """ValueError: fewer than 2 blocks (one is the null block)."""
        if num_blocks < 2:
            raise ValueError(f"{num_blocks} blocks: at least 2 are needed, one of them is the null block")
        self.num_blocks = num_blocks
        self.caching = caching
        self._references = [0] * num_blocks
        self._hash_of: list[int | None] = [None] * num_blocks
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(1, num_blocks))
        self._copies: dict[int, dict[int, None]] = {}
        self._events: list[Event] = []

    @property
    def num_free(self) -> int:
        """Blocks that can be allocated now, cached ones included."""
        return len(self._free)

    @property
    def num_used(self) -> int:
        return self.num_blocks - 1 - len(self._free)

    @property
    def usage(self) -> float:
        """Share of the blocks held by live sequences, 0 to 1; cached blocks that nobody holds do not count."""
        return self.num_used / (self.num_blocks - 1)

    @property
    def num_cached(self) -> int:
        """Blocks that carry a hash, held or not."""
        return sum(len(copies) for copies in self._copies.values())

    def cached_counts(self) -> dict[int, int]:
        """Copies by hash: what a follower of the events must arrive at."""
        return {key: len(copies) for key, copies in self._copies.items()}

    def free_order(self) -> list[int]:
        """Block ids, the next to be allocated first."""
        return list(self._free)

    def references(self, block: int) -> int:
        return self._references[block]

    def hash_of(self, block: int) -> int | None:
        return self._hash_of[block]

    def find(self, hashes: Items[int], limit: int) -> list[int]:
        """Blocks of the longest cached prefix of the first `limit` hashes of this chain, without taking them."""
        found: list[int] = []
        for key in islice(hashes, limit):
            copies = self._copies.get(key)
            if copies is None:
                break
            found.append(next(iter(copies)))
        return found

    def num_evictable(self, blocks: Items[int]) -> int:
        """How many of these sit in the free queue: touching them takes that many from `num_free`."""
        return sum(1 for block in blocks if self._references[block] == 0)

    def touch(self, blocks: Items[int]) -> None:
        """Take a reference on found blocks."""
        for block in blocks:
            if self._references[block] == 0:
                del self._free[block]
            self._references[block] += 1

    def allocate(self, count: int) -> list[int]:
        """Blocks from the front of the queue, evicting what they hold. AssertionError: the caller did not check `num_free`."""
        assert count <= len(self._free), f"{count} blocks wanted, {len(self._free)} are free"
        blocks = [self._free.popitem(last=False)[0] for _ in range(count)]
        for block in blocks:
            self._evict(block)
            self._references[block] = 1
        return blocks

    def release(self, blocks: Items[int]) -> None:
        """Give back one sequence's blocks, in the order of the sequence; they queue up last block first."""
        for block in reversed(blocks):
            count = self._references[block] - 1
            assert count >= 0, f"block {block} released more often than taken"
            self._references[block] = count
            if count == 0:
                self._free[block] = None

    def store(
        self, blocks: Items[int], hashes: Items[int], token_ids: bytes, *, parent: int | None, origin: Origin = PLAIN
    ) -> None:
        """Put full blocks of one sequence under their hashes and announce them. parent: hash of the block before, if any."""
        if not self.caching or not blocks:
            return
        for block, key in zip(blocks, hashes, strict=True):
            assert self._references[block] > 0, f"block {block} is stored while nobody holds it"
            assert self._hash_of[block] is None, f"block {block} is stored twice"
            self._hash_of[block] = key
            self._copies.setdefault(key, {})[block] = None
        self._events.append(Stored(tuple(hashes), parent, token_ids, origin))

    def announce(self, hashes: Items[int], token_ids: bytes, *, parent: int | None, origin: Origin = PLAIN) -> None:
        """Say again that these are here, without a new copy (report mode `full`)."""
        if self.caching and hashes:
            self._events.append(Stored(tuple(hashes), parent, token_ids, origin))

    def reset(self) -> bool:
        """Forget every cached block. False, and nothing done, while blocks are in use."""
        if self.num_used:
            return False
        for copies in self._copies.values():
            for block in copies:
                self._hash_of[block] = None
        self._copies.clear()
        if self.caching:
            self._events.append(Cleared())
        return True

    def drain_events(self) -> list[Event]:
        """What happened since the last call, oldest first."""
        events, self._events = self._events, []
        return events

    def _evict(self, block: int) -> None:
        key = self._hash_of[block]
        if key is None:
            return
        self._hash_of[block] = None
        copies = self._copies[key]
        del copies[block]
        if not copies:
            del self._copies[key]
        self._events.append(Removed(key))
