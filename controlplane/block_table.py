"""Block hash to the set of lanes that hold it, in flat memory: exact, with all blocks of a question looked up at once.

A generation is an array of (key, lane bits) pairs; eight neighbours are a bucket, two cache lines that are fetched together. A
hash has a home, the pair that its low bits name; where that is taken it lives elsewhere in its bucket, and where the bucket is
full (0.2 % of the blocks at the highest load) in the generation's `spill`, a dictionary. A question so reads one place of
memory per block, all of them in flight at the same time, and a second one for every fifth. A key without bits is a tombstone:
the same hash takes it up again, anything else does not, and the next move drops it. Lanes above 64 have their bits in
further arrays. Buckets of four cost the same time and spill ten times as much.

Shortly before a generation is full, at 14 of 32 parts, the next one is allocated and its pages touched a few at a time (memory
that the system has yet to hand out costs a fault a page, and a thousand faults are a pause). At 15 it takes over, and the old
one moves in slices, a piece with every change and every sweep, and gives its memory back behind them; until it has, a question
asks both. That moment is when a block costs most, 34 bytes in the old and 68 in the new, and less with every block since. A
lane retires by name: its bits stay, the caller masks them out of every answer, and sweeps take them away in slices. So nothing
here takes longer than the slice it was given, whatever the size of the table. (The 65th lane, and each 64th after it, adds an
array of words; the system hands its memory out as it is touched.)
"""

from __future__ import annotations

import mmap
from array import array
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from controlplane.speculation import Chain

Words = NDArray[np.uint64]
Positions = NDArray[np.int64]
Flags = NDArray[np.bool_]

SHIFT = 3
KEYS = 1 << SHIFT
"""Keys a bucket."""
LANE_BITS = 64
"""Lanes a word."""
WORD = (1 << LANE_BITS) - 1
PLACES_MIN = 1_024
LOAD_MAX = 15
"""Thirty-seconds of its places that a generation fills, tombstones included, before the next takes over."""
MOVE_PLACES_MIN = 1_024
"""Places of the old generation that any change moves at least; a larger one moves as many a block as the move needs to end
when the new generation has filled half of its room."""
WALK_BLOCKS_MAX = 20
"""Shorter questions are walked a block at a time: the fixed price of a dozen calls of numpy is what twenty steps cost."""
SPILL_ENTRY_BYTES = 150
"""A dictionary entry with its key and its value, measured."""

PAGE_WORDS = 512
TOUCH_PLACES_MIN = 4_096
"""Places of the next generation that any change touches at least; a larger one touches"""
TOUCH_PLACES = 68
"""for every block of it: just enough to be done when it takes over, since both are in memory from then on."""

RELEASE_PLACES = 131_072
"""Places of a left generation whose memory goes back in one step: 2 MiB."""

_ZERO = np.uint64(0)
_ONE = np.uint64(1)
_NONE: Positions = np.empty(0, np.int64)


def _view(hashes: array[int]) -> Words:
    return np.frombuffer(hashes, np.uint64)


def _unique(hashes: array[int]) -> Words:
    blocks = _view(hashes)
    if len(blocks) > 1:
        ordered = np.sort(blocks)
        if (ordered[1:] == ordered[:-1]).any():
            return np.unique(blocks)
    return blocks


def _as_words(lanes: int, words: int) -> list[int]:
    """A bit set of lanes as 64-bit words, lowest first; a negative number is a set with infinitely many lanes."""
    return [lanes >> (LANE_BITS * word) & WORD for word in range(words)]


def _memory(size: int) -> mmap.mmap:
    """That many bytes of zeros, which the system hands out page by page as they are touched.

    Not numpy's own memory: it asks for huge pages, and each of those is half a millisecond when first touched. And not memory
    that could be shared with other processes, Python's default: given back, it stays until it is unmapped, at once.
    """
    if not hasattr(mmap, "MAP_ANONYMOUS"):
        return mmap.mmap(-1, size)
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_NOHUGEPAGE"):
        memory.madvise(mmap.MADV_NOHUGEPAGE)
    return memory


class _Generation:
    """One fixed-size array of places and its spill."""

    __slots__ = (
        "_buckets",
        "_mask",
        "_memories",
        "_pairs",
        "cells",
        "flat",
        "keys",
        "left",
        "places",
        "spill",
        "touched",
        "used",
        "words",
    )

    def __init__(self, places: int, words: int) -> None:
        """places: a power of two, at least 16; words: of lane bits a key."""
        self.places = places
        memory = _memory(16 * places)
        self._memories = [(memory, 16)]  # with the bytes of a place
        self.cells = memoryview(memory).cast("Q")  # for one at a time: four times as quick as numpy
        self.flat: Words = np.frombuffer(memory, np.uint64)
        self.keys: Words = self.flat[0::2]
        self.words: list[Words] = [self.flat[1::2]]
        self._pairs = self.flat.view(np.complex128)  # sixteen bytes that numpy copies as one element
        self._buckets: Words = self.flat.reshape(-1, 2 * KEYS)
        self._mask = np.uint64(places - 1)
        self.spill: dict[int, int] = {}
        self.used = 0  # keys in places, tombstones included
        self.touched = 0  # places whose memory the system has handed out
        self.left = 0  # places before this one have moved, and their memory went back
        # An empty place has key 0, so hash 0 would be found in any of them. Its bucket, the first, is therefore full from
        # the start with a key that belongs elsewhere: what falls there lives in the spill.
        self.keys[:KEYS] = KEYS
        self.widen(words)

    def widen(self, words: int) -> None:
        while len(self.words) < words:
            memory = _memory(8 * self.places)
            self._memories.append((memory, 8))
            self.words.append(np.frombuffer(memory, np.uint64))

    def load(self, more: int = 0) -> float:
        """Thirty-seconds of the places that are in use."""
        return 32 * (self.used + more) / self.places

    def touch(self, places: int) -> None:
        """Have the system hand out the memory of the next `places` places."""
        end = min(self.touched + places, self.places)
        if end > self.touched:
            self.flat[2 * self.touched : 2 * end : PAGE_WORDS] |= _ZERO
            for word in self.words[1:]:
                word[self.touched : end : PAGE_WORDS] |= _ZERO
            self.touched = end

    def leave(self, end: int) -> None:
        """Nobody holds a place before `end` any more: give its memory back, in pieces of RELEASE_PLACES."""
        end = end // RELEASE_PLACES * RELEASE_PLACES
        # The first bucket stays, for hash 0 (see `__init__`), and with it its page.
        self._give_back(max(self.left, PAGE_WORDS), end)
        self.left = max(self.left, end)

    def release(self, places: int) -> bool:
        """Give the memory of that many places back, last ones first: all of it at once is a pause. True: nothing is left."""
        start = max(self.left, self.touched - places)
        self._give_back(start, self.touched)
        self.touched = start
        return start == self.left

    def _give_back(self, start: int, end: int) -> None:
        for memory, size in self._memories if end > start and hasattr(mmap.mmap, "madvise") else ():
            memory.madvise(mmap.MADV_DONTNEED, size * start, size * (end - start))

    def home(self, blocks: Words) -> Positions:
        return (blocks & self._mask).view(np.int64)

    def keys_at(self, at: Positions) -> Words:
        return self.flat.take(at + at)  # `take` of a strided view would copy all of it first

    def bits_at(self, word: int, at: Positions) -> Words:
        return self.flat.take(at + at + 1) if word == 0 else self.words[word].take(at)

    def bits(self, block: int) -> int:
        """The lanes of one block, the quick way for one; 0 where it is neither here nor in the spill."""
        home = block & (self.places - 1)
        cells = self.cells
        if cells[home + home] == block:
            return self._all_words(home)
        start = home & -KEYS
        bucket = cells[2 * start : 2 * (start + KEYS) : 2].tolist()
        if block in bucket:
            return self._all_words(start + bucket.index(block))
        return self.spill.get(block, 0)

    def _all_words(self, place: int) -> int:
        bits = self.cells[place + place + 1]
        for number, word in enumerate(self.words[1:], 1):
            bits |= int(word[place]) << (LANE_BITS * number)
        return bits

    def find(self, blocks: Words) -> Positions:
        """The place of every block, -1 where it has none (the spill is not asked)."""
        at = self.home(blocks)
        away = (self.keys_at(at) != blocks).nonzero()[0]
        if len(away):
            bucket = at.take(away) >> SHIFT
            wanted = blocks.take(away)
            hits = (self._buckets.take(bucket, axis=0)[:, ::2] == wanted[:, None]).ravel().nonzero()[0]
            at[away] = -1
            which = hits >> SHIFT
            at[away.take(which)] = (bucket.take(which) << SHIFT) + (hits & (KEYS - 1))
        return at

    def lanes(self, blocks: Words, words: list[int]) -> list[Words]:
        """These words of the lane bits of every block; 0 where it has no place (the spill is not asked)."""
        at = self.home(blocks)
        pairs = self._pairs.take(at).view(np.uint64)
        first = pairs[1::2]
        away = (pairs[::2] != blocks).nonzero()[0]
        if len(away):
            rows = self._buckets.take(at.take(away) >> SHIFT, axis=0)
            hits = (rows[:, ::2] == blocks.take(away)[:, None]).ravel().nonzero()[0]
            found = away
            if len(hits) < len(away):
                found = away.take(hits >> SHIFT)
                first[away] = 0
            first[found] = rows.reshape(-1).take(hits * 2 + 1)
            if words != [0]:
                places = (at.take(found) & -KEYS) + (hits & (KEYS - 1))
                at[away] = 0  # in the first bucket, which nobody ever holds
                at[found] = places
        return [self.words[word].take(at) if word else first for word in words]

    def insert(self, blocks: Words) -> Positions:
        """Gives places to blocks (distinct, none of them here). -1: its bucket is full, the caller spills it."""
        at = np.full(len(blocks), -1, np.int64)
        pending = np.arange(len(blocks))
        for step in range(KEYS):
            home = self.home(blocks.take(pending))
            place = (home & -KEYS) | ((home + step) & (KEYS - 1))
            empty = self.keys_at(place) == 0
            trying = pending[empty]
            place = place[empty]
            self.keys[place] = blocks.take(trying)  # two for one place: the last one gets it
            won = self.keys_at(place) == blocks.take(trying)
            at[trying[won]] = place[won]
            self.used += int(np.count_nonzero(won))
            pending = (at < 0).nonzero()[0]
            if not len(pending):
                break
        return at

    def occupied(self, at: Positions) -> Flags:
        """Whether any lane holds the key at each place."""
        held: Flags = self.bits_at(0, at) != 0
        for word in range(1, len(self.words)):
            held |= self.bits_at(word, at) != 0
        return held

    def nbytes(self) -> int:
        return (self.touched - self.left) * 8 * (1 + len(self.words)) + len(self.spill) * SPILL_ENTRY_BYTES


class BlockTable:
    """See the module. Implements `prefix_index.Table`."""

    def __init__(self, *, blocks_hint: int = 0) -> None:
        """blocks_hint: distinct blocks to have room for from the start."""
        places = PLACES_MIN
        while places * LOAD_MAX < blocks_hint * 32:
            places *= 2
        self._words = 1
        self._new = _Generation(places, 1)
        self._new.touch(places)
        self._old: _Generation | None = None
        self._next: _Generation | None = None
        self._done: list[_Generation] = []  # empty, their memory going back in slices
        self._moved = 0  # places of the old generation
        self._pace = 1  # of them to move for every block of a change
        self._blocks = 0
        self._retired = 0  # lanes whose bits may still be around
        self._sweeping = 0  # those of them that the running sweep covers
        self._cursor = 0
        self._spill_keys: list[int] = []

    def __len__(self) -> int:
        return self._blocks

    def memory_bytes(self) -> int:
        """Arrays as far as their memory was handed out, and an estimate of the spills."""
        return sum(one.nbytes() for one in (self._new, self._old, self._next, *self._done) if one is not None)

    # ----------------------------------------------------------------------------------------------------- questions

    def prefixes(self, hashes: Chain, lanes: int) -> list[tuple[int, int]]:
        """(lanes, length): how far each of `lanes` holds the chain without a hole; lengths above 0 only."""
        lanes = self._bits(hashes[0]) & lanes if hashes else 0
        if not lanes:
            return []  # most questions without a match end here, at a hundredth of the price
        if len(hashes) <= WALK_BLOCKS_MAX:
            return self._walk(hashes, lanes)
        if isinstance(hashes, tuple):
            hashes = array("Q", hashes)
        chain = _view(hashes)
        steps = self._steps(chain, lanes)
        found: list[tuple[int, int]] = []
        alive, _ = steps[0]
        for held, position in steps[1:]:
            found.append((alive & ~held, position))
            alive = held
        if alive:
            found.append((alive, len(chain)))
        return found

    def _bits(self, block: int) -> int:
        lanes = self._new.bits(block)
        return lanes if self._old is None else lanes | self._old.bits(block)

    def _walk(self, hashes: Chain, alive: int) -> list[tuple[int, int]]:
        """`prefixes`, a block at a time. alive: of `lanes`, those that hold the first block."""
        found: list[tuple[int, int]] = []
        cells, mask = self._new.cells, self._new.places - 1
        simple = self._words == 1
        for position, block in enumerate(hashes[1:], 1):
            home = 2 * (block & mask)
            held = cells[home + 1] if simple and cells[home] == block else self._bits(block)
            if alive & held != alive:
                found.append((alive & ~held, position))
                alive &= held
                if not alive:
                    return found
        found.append((alive, len(hashes)))
        return found

    def _steps(self, chain: Words, alive: int) -> list[tuple[int, int]]:
        """(lanes that hold all blocks up to and with this position, position), at 0 and wherever that set shrinks."""
        words = [word for word in range(self._words) if alive >> (LANE_BITS * word) & WORD]
        held = self._new.lanes(chain, words)
        if self._old is not None:
            held = [new | old for new, old in zip(held, self._old.lanes(chain, words), strict=True)]
        wanted = [alive >> (LANE_BITS * word) & WORD for word in words]
        if all(int(np.bitwise_and.reduce(bits)) & lanes == lanes for bits, lanes in zip(held, wanted, strict=True)):
            return [(alive, 0)]  # held to the end, so nothing of it can be in a spill
        if self._new.spill or (self._old is not None and self._old.spill):
            self._add_spilled_lanes(chain, words, held)
        until = [np.bitwise_and.accumulate(bits & np.uint64(lanes)) for bits, lanes in zip(held, wanted, strict=True)]
        changes = np.zeros(len(chain) - 1, np.bool_)
        for bits in until:
            changes |= bits[1:] != bits[:-1]
        positions = [0, *(changes.nonzero()[0] + 1).tolist()]
        return [
            (sum(int(bits[at]) << (LANE_BITS * word) for word, bits in zip(words, until, strict=True)), at) for at in positions
        ]

    def _add_spilled_lanes(self, chain: Words, words: list[int], held: list[Words]) -> None:
        """Of the blocks without a place, up to the first that is nowhere: what follows it is of no matter."""
        absent = held[0] == 0
        for more in held[1:]:
            absent &= more == 0
        for position in absent.nonzero()[0]:
            block = int(chain[position])
            lanes = self._new.spill.get(block, 0) | (0 if self._old is None else self._old.spill.get(block, 0))
            if not lanes:
                break
            for word, bits in zip(words, held, strict=True):
                bits[position] = lanes >> (LANE_BITS * word) & WORD

    def run(self, lane: int, hashes: Chain, start: int) -> int:
        """The first position at or after `start` that the lane does not hold."""
        found = self.prefixes(hashes[start:] if start else hashes, 1 << lane)
        return start + (found[0][1] if found else 0)

    # ------------------------------------------------------------------------------------------------------- changes

    def add(self, lane: int, hashes: array[int]) -> int:
        """Returns how many of them the lane did not hold."""
        return self.add_many([lane], [hashes])[0]

    def discard(self, lane: int, hashes: array[int]) -> int:
        """Returns how many of them the lane held."""
        return self.discard_many([lane], [hashes])[0]

    def add_many(self, lanes: Sequence[int], hashes: Sequence[array[int]]) -> list[int]:
        """hashes[i] for lanes[i], no lane twice. Returns how many of each were new there."""
        self._widen(max(lanes, default=0))
        blocks, owner = self._joined(hashes)
        self._prepare(blocks)
        at = self._places(blocks)
        fresh = np.ones(len(blocks), np.bool_)
        inside = at >= 0 if (at < 0).any() else slice(None)
        places = at[inside]
        vacant = places[~self._new.occupied(places)]
        self._blocks += len(np.unique(vacant)) if len(lanes) > 1 else len(vacant)
        fresh[inside] = ~self._test(places, owner[inside], lanes)
        self._set(places, owner[inside], lanes)
        for position in (at < 0).nonzero()[0].tolist():
            fresh[position] = self._add_spilled(int(blocks[position]), 1 << lanes[owner[position]])
        return [int(count) for count in np.bincount(owner[fresh], minlength=len(lanes))]

    def discard_many(self, lanes: Sequence[int], hashes: Sequence[array[int]]) -> list[int]:
        """hashes[i] from lanes[i], no lane twice. Returns how many of each were held there."""
        self._widen(max(lanes, default=0))
        blocks, owner = self._joined(hashes)
        self._prepare(blocks)
        at = self._new.find(blocks)
        held = np.zeros(len(blocks), np.bool_)
        if self._new.spill:
            for position in (at < 0).nonzero()[0].tolist():
                held[position] = self._discard_spilled(int(blocks[position]), 1 << lanes[owner[position]])
        inside = (at >= 0).nonzero()[0]
        had = self._test(at[inside], owner[inside], lanes)
        inside = inside[had]
        held[inside] = True
        self._unset(at[inside], owner[inside], lanes)
        emptied = at[inside][~self._new.occupied(at[inside])]
        self._blocks -= len(np.unique(emptied)) if len(lanes) > 1 else len(emptied)
        return [int(count) for count in np.bincount(owner[held], minlength=len(lanes))]

    @staticmethod
    def _joined(hashes: Sequence[array[int]]) -> tuple[Words, Positions]:
        """(all blocks, which of the arrays each came from)."""
        parts = [_unique(part) for part in hashes]
        if not parts:
            return np.empty(0, np.uint64), _NONE
        if len(parts) == 1:
            return parts[0], np.zeros(len(parts[0]), np.int64)
        return np.concatenate(parts), np.repeat(np.arange(len(parts)), [len(part) for part in parts])

    def _places(self, blocks: Words) -> Positions:
        """A place for every block, new ones where need be; -1 for those in the spill (or now due there)."""
        at = self._new.find(blocks)
        missing = (at < 0).nonzero()[0]
        if len(missing):
            new, back = np.unique(blocks.take(missing), return_inverse=True)
            if self._new.spill:
                fresh = np.array([block not in self._new.spill for block in new.tolist()])
                places = np.full(len(new), -1, np.int64)
                places[fresh] = self._new.insert(new[fresh])
            else:
                places = self._new.insert(new)
            at[missing] = places[back]
        return at

    def _by_word(self, owner: Positions, lanes: Sequence[int]) -> Iterator[tuple[int, Flags | slice, Words]]:
        """(word, which entries have their lane there, the lane's flag for each of those)."""
        numbers = np.array(lanes, np.int64)
        flags = _ONE << (numbers & (LANE_BITS - 1)).astype(np.uint64)
        words = set((numbers >> 6).tolist())
        for word in words:
            chosen: Flags | slice = (numbers >> 6 == word)[owner] if len(words) > 1 else slice(None)
            yield word, chosen, flags.take(owner[chosen])

    def _test(self, at: Positions, owner: Positions, lanes: Sequence[int]) -> Flags:
        held = np.zeros(len(at), np.bool_)
        for word, chosen, flags in self._by_word(owner, lanes):
            held[chosen] = self._new.bits_at(word, at[chosen]) & flags != 0
        return held

    def _set(self, at: Positions, owner: Positions, lanes: Sequence[int]) -> None:
        for word, chosen, flags in self._by_word(owner, lanes):
            np.bitwise_or.at(self._new.words[word], at[chosen], flags)

    def _unset(self, at: Positions, owner: Positions, lanes: Sequence[int]) -> None:
        for word, chosen, flags in self._by_word(owner, lanes):
            np.bitwise_and.at(self._new.words[word], at[chosen], ~flags)

    def _add_spilled(self, block: int, bit: int) -> bool:
        spill = self._new.spill
        lanes = spill.get(block, 0)
        self._blocks += not lanes
        spill[block] = lanes | bit
        return not lanes & bit

    def _discard_spilled(self, block: int, bits: int) -> bool:
        spill = self._new.spill
        lanes = spill.get(block, 0)
        if not lanes & bits:
            return False
        if lanes & ~bits:
            spill[block] = lanes & ~bits
        else:
            del spill[block]
            self._blocks -= 1
        return True

    # --------------------------------------------------------------------------------------------------- generations

    def _widen(self, lane: int) -> None:
        words = lane // LANE_BITS + 1
        if words > self._words:
            self._words = words
            self._new.widen(words)
            for other in (self._old, self._next):
                if other is not None:
                    other.widen(words)

    def _prepare(self, blocks: Words) -> None:
        """Before a change: room for its blocks, and what the old generation knows of them moves first."""
        while self._new.load(len(blocks)) > LOAD_MAX:
            self._finish_move()
            self._begin_move(len(blocks))
        if self._old is not None:
            at = self._old.find(blocks)
            self._move(self._old, np.unique(at[at >= 0]))
            if self._old.spill:
                self._move_spilled([block for block in set(blocks.tolist()) if block in self._old.spill])
            self._step_move(max(MOVE_PLACES_MIN, self._pace * len(blocks)))
        elif self._done:
            self._release()
        elif self._new.load() > LOAD_MAX - 1:
            if self._next is None:
                self._next = self._make_next(len(blocks))
            self._next.touch(max(TOUCH_PLACES_MIN, TOUCH_PLACES * len(blocks)))

    def _begin_move(self, blocks: int) -> None:
        following = self._next
        if following is None or 32 * (self._blocks + blocks) > (LOAD_MAX - 4) * following.places:
            following = self._make_next(blocks)
        following.touch(following.places)
        self._old, self._new, self._next, self._moved = self._new, following, None, 0
        room = following.places * LOAD_MAX // 32 - self._blocks
        self._pace = 1 + 2 * self._old.places // max(1, room)
        self._sweeping = 0  # begins again once everything has moved
        self._spill_keys = []

    def _release(self) -> None:
        if self._done[0].release(RELEASE_PLACES):
            del self._done[0]

    def _make_next(self, blocks: int) -> _Generation:
        """At most quarter full when everything has moved; at least half of the present size."""
        places = max(PLACES_MIN, self._new.places // 2)
        while places < (self._blocks + blocks) * 4:
            places *= 2
        return _Generation(places, self._words)

    def _step_move(self, places: int) -> None:
        old = self._old
        if old is None:
            return
        end = min(self._moved + places, old.places)
        start = max(self._moved, KEYS)  # the first bucket holds nothing
        self._move(old, start + old.keys[start:end].nonzero()[0])
        self._moved = end
        old.leave(end)
        if old.spill:
            self._move_spilled([block for block, _ in zip(old.spill, range(places // 64), strict=False)])
        if end == old.places and not old.spill:
            self._old = None
            self._done.append(old)

    def _finish_move(self) -> None:
        """For a change that is larger than all room left: callers that slice their changes never get here."""
        while self._old is not None:
            self._step_move(self._old.places)

    def _move(self, old: _Generation, at: Positions) -> None:
        """Keys of the old generation to the new one, less the bits of retired lanes."""
        at = at[old.occupied(at)]
        if not len(at):
            return
        blocks = old.keys_at(at)
        values = []
        for word, keep in enumerate(_as_words(~self._retired, len(old.words))):
            values.append(old.bits_at(word, at) & np.uint64(keep))
            old.words[word][at] = 0
        self._put(blocks, values)

    def _put(self, blocks: Words, values: list[Words]) -> None:
        """Distinct blocks, occupied in the old generation until now, with what is left of their lanes.

        None of them is in the new one: a block moves once, and whatever changes it has moved it before.
        """
        kept = values[0] != 0
        for bits in values[1:]:
            kept |= bits != 0
        if not kept.all():
            self._blocks -= len(blocks) - int(np.count_nonzero(kept))
            blocks, values = blocks[kept], [bits[kept] for bits in values]
        at = self._new.insert(blocks)
        inside = (at >= 0).nonzero()[0]
        places = at.take(inside)
        for word, bits in enumerate(values):
            self._new.words[word][places] = bits.take(inside)
        for position in (at < 0).nonzero()[0].tolist():
            lanes = sum(int(bits[position]) << (LANE_BITS * word) for word, bits in enumerate(values))
            self._new.spill[int(blocks[position])] = lanes

    def _move_spilled(self, blocks: list[int]) -> None:
        old = self._old
        if old is None or not blocks:
            return
        lanes = [_as_words(old.spill.pop(block) & ~self._retired, self._words) for block in blocks]
        self._put(np.array(blocks, np.uint64), [np.array(word, np.uint64) for word in zip(*lanes, strict=True)])

    # --------------------------------------------------------------------------------------------------------- lanes

    def retire(self, lane: int) -> None:
        """Forget everything the lane holds, a slice per `sweep`; the lane must not be used before sweep returned it."""
        self._retired |= 1 << lane

    @property
    def at_rest(self) -> bool:
        """Whether a sweep would find nothing to do."""
        return not (self._done or self._retired or self._old is not None)

    def sweep(self, rows_max: int) -> list[int]:
        """Goes on with retired lanes, looking at no more than `rows_max` keys; returns lanes that are free again."""
        if self._done:
            self._release()
        if self._old is not None:
            self._step_move(max(PLACES_MIN, rows_max // 16))
        elif self._retired:
            return self._step_sweep(rows_max)
        return []

    def _step_sweep(self, rows_max: int) -> list[int]:
        if not self._sweeping:
            self._sweeping, self._cursor = self._retired, KEYS
            self._spill_keys = list(self._new.spill)
        if self._cursor < self._new.places:
            self._sweep_places(min(self._cursor + rows_max, self._new.places))
            return []
        if self._spill_keys:
            entries = max(1, rows_max // 16)
            for block in self._spill_keys[-entries:]:
                self._discard_spilled(block, self._sweeping)
            del self._spill_keys[-entries:]
            return []
        swept, self._sweeping = self._sweeping, 0
        self._retired &= ~swept
        return [lane for lane in range(swept.bit_length()) if swept >> lane & 1]

    def _sweep_places(self, end: int) -> None:
        table, here = self._new, slice(self._cursor, end)
        before = self._count(here)
        for word, keep in zip(table.words, _as_words(~self._sweeping, len(table.words)), strict=True):
            word[here] &= np.uint64(keep)
        self._blocks -= before - self._count(here)
        self._cursor = end

    def _count(self, here: slice) -> int:
        held = self._new.words[0][here] != 0
        for word in self._new.words[1:]:
            held |= word[here] != 0
        return int(np.count_nonzero(held))
