"""Which worker holds how much of a prompt's beginning.

The question. A prompt is a chain of block hashes, each covering everything before it, so "how much of it does a worker hold"
is the number of its blocks before the first that the worker lacks. That is also where the engine itself stops.

The structure. One table from hash to the set of holders; the chain makes it a prefix tree without a single pointer. All
blocks of a question are looked up at once in flat memory (see block_table), their holder sets are and-ed from the first to
the last, and the few positions where that set shrinks are the answer for every worker together.

Why not bisection, which needs ten probes instead of five hundred? It is right only where a worker that holds a block holds
all before it. Engines evict tails first, which makes that usual; but a block evicted amid a chain, a lost delta repaired
later, or half a snapshot makes it false, and then bisection credits what is not there. Nothing in the events (hashes without
parents) lets the index know in which case it is. So it looks at every block, and pays this (1 M blocks, 64 workers, chains
cold in the cache, microseconds at p50 on a shared virtual machine; `python -m tests.bench.index` prints them anew):

    blocks asked              16       64      512    2,048   held by no one
    this table                 5       11    16-19    36-41        1            exact; twice as long while a table moves
    a dictionary, walked       2-3      7    56-63  264-323        1            exact; 90 bytes a block and stalls of 15 ms
    a dictionary, bisected     1        1        2        3        1            overcounts at holes

Words for being wrong. Overcount, credit for a block that is not there, never happens to announced blocks of a worker that is
EXACT; a worker that is not, because a delta is missing or its snapshot is still loading, gets no credit for announced blocks
at all. Undercount only follows from a hole. A guess (see speculation) is credited until an event confirms or contradicts it or
its time is up, and may be wrong meanwhile: that is its nature, and the self-check measures it. The last block of an answer is
a guess, too, from the response's end until the engine's word of it is here (see answers).

Ranks. A worker with several data-parallel ranks has one cache each, and their union exists nowhere. Where requests are steered
to ranks each of them is an endpoint (see ranks). Else every (endpoint, rank) is a lane of its own, and the endpoint earns the
best of them; guesses know no rank then and may bridge blocks of two of them. Only GPU blocks come here; other tiers cost a
copy and earn no credit.

Leaving. A worker's lane is retired by name, which is immediate for every answer, and a fresh lane is used at once when the
same worker comes back; `sweep` takes the old bits out of memory in slices. Nothing takes longer than its slice, and because
the table is three arrays instead of millions of objects, the garbage collector does not see it (see `tune_gc`).
"""

from __future__ import annotations

import gc
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from controlplane.answers import NEVER, Answers
from controlplane.block_table import BlockTable
from controlplane.index_state import IndexState
from controlplane.speculation import FEW_BLOCKS, SPECULATION_BLOCKS_MAX, SPECULATION_TTL_S, Chain, Guesses

SWEEP_ROWS = 65_536
"""Rows of the table that one call of `sweep` looks at: well under a millisecond."""
EXPIRE_BLOCKS = 4_096
"""Guesses that one call of `expire` forgets at most, over all workers."""

_CREDITED = (IndexState.EXACT,)
_NO_CLAIMS: dict[int, int] = {}
_NONE: dict[int, int] = {}


class Table(Protocol):
    """Block hash to the set of lanes that hold it. A lane is one rank of one endpoint, in one life."""

    def __len__(self) -> int:
        """Distinct blocks (those of retired lanes leave the count as they are swept)."""

    def add(self, lane: int, hashes: array[int]) -> int:
        """Returns how many of them the lane did not hold."""

    def discard(self, lane: int, hashes: array[int]) -> int:
        """Returns how many of them the lane held."""

    def add_many(self, lanes: Sequence[int], hashes: Sequence[array[int]]) -> list[int]:
        """`add` of hashes[i] to lanes[i], no lane twice."""

    def discard_many(self, lanes: Sequence[int], hashes: Sequence[array[int]]) -> list[int]:
        """`discard` of hashes[i] from lanes[i], no lane twice."""

    def retire(self, lane: int) -> None:
        """Forget everything the lane holds, a slice per `sweep`; the lane must not be used before sweep returned it."""

    def sweep(self, rows_max: int) -> list[int]:
        """Goes on with retired lanes; returns those that are free again."""

    @property
    def at_rest(self) -> bool:
        """Whether `sweep` has nothing to do."""

    def prefixes(self, hashes: Chain, lanes: int) -> Iterable[tuple[int, int]]:
        """(bit set of lanes, length): how far each of `lanes` holds the chain without a hole. Lengths above 0 only."""

    def run(self, lane: int, hashes: Chain, start: int) -> int:
        """The first position at or after `start` that the lane does not hold."""

    def memory_bytes(self) -> int: ...


@dataclass(frozen=True, slots=True)
class BlockChange:
    """What one rank of one endpoint announced at once. added and removed are disjoint; at: when the engine did the first of it,
    on the clock of the index's `now`."""

    slot: int
    rank: int
    added: array[int]
    removed: array[int]
    at: float = NEVER


def _net(changes: list[BlockChange]) -> BlockChange:
    """Several changes of one rank, in their order, as one."""
    first = changes[0]
    if not any(change.removed for change in changes):
        joined = b"".join([change.added for change in changes])
        return BlockChange(first.slot, first.rank, array("Q", joined), array("Q"))
    added: set[int] = set()
    removed: set[int] = set()
    for change in changes:
        added.difference_update(change.removed)
        removed.update(change.removed)
        removed.difference_update(change.added)
        added.update(change.added)
    return BlockChange(first.slot, first.rank, array("Q", added), array("Q", removed))


class _Slot:
    """What the index keeps of one endpoint."""

    __slots__ = ("blocks", "exact", "guesses", "lanes", "rank_blocks", "state", "withheld")

    def __init__(self, guesses: Guesses, exact: bool) -> None:
        self.exact = exact
        self.guesses = guesses
        self.lanes: dict[int, int] = {}  # rank -> lane
        self.blocks = 0
        self.rank_blocks: dict[int, int] = {}
        self.state = IndexState.CATCHING_UP if exact else IndexState.SPECULATIVE
        self.withheld = False


class PrefixIndex:
    """Exact and guessed blocks of every endpoint. Pure: no clock, no I/O; not thread-safe."""

    def __init__(self, table: Table | None = None) -> None:
        self._table: Table = BlockTable() if table is None else table
        self._slots: dict[int, _Slot] = {}
        self._slot_of_lane: list[int] = []  # -1: retired or free
        self._free_lanes: list[int] = []
        self._credited = 0  # lanes whose announced blocks count
        self._guessing: dict[int, Guesses] = {}  # slots whose guesses may count: most have none
        self._answers = Answers()
        self.claims: dict[int, int] = _NO_CLAIMS
        """Of the last question: slot -> blocks that it holds if the answer was passed back unchanged (see answers)."""
        self.awaited = NEVER
        """Of the last question: until when blocks of an answer are worth waiting for."""
        self.generation = 0
        """Another one after every change of what is announced."""
        self._asked: Chain | None = None  # the last question, while its answer below still holds
        self._announced: dict[int, int] = {}  # slot -> blocks of it that the slot announced

    # -------------------------------------------------------------------------------------------------- membership

    def attach(self, slot: int, *, capacity_blocks: int, exact: bool) -> None:
        """A new endpoint. exact False: it sends no events. A slot that is in use starts afresh."""
        if slot in self._slots:
            self.detach(slot)
        guesses = Guesses(SPECULATION_BLOCKS_MAX, SPECULATION_TTL_S) if exact else Guesses(capacity_blocks, None)
        self._slots[slot] = _Slot(guesses, exact)
        self._refresh(slot)

    def detach(self, slot: int) -> None:
        """Forget an endpoint; at once for `match`, by slices for memory (see `sweep`). Unknown slots are ignored."""
        entry = self._slots.pop(slot, None)
        if entry is not None:
            self._retire(entry)
            self._guessing.pop(slot, None)
            self._answers.forget(slot)

    def __contains__(self, slot: int) -> bool:
        return slot in self._slots

    def set_state(self, slot: int, state: IndexState) -> None:
        """What the follower of the worker's events says. KeyError: not attached."""
        self._slots[slot].state = state
        self._refresh(slot)

    def withhold(self, slot: int, withheld: bool) -> None:
        """The self-check's verdict, kept apart from the follower's: while withheld, the slot is DEGRADED. KeyError."""
        self._slots[slot].withheld = withheld
        self._refresh(slot)

    def state(self, slot: int) -> IndexState:
        """UNSPECIFIED: not attached."""
        entry = self._slots.get(slot)
        if entry is None:
            return IndexState.UNSPECIFIED
        return IndexState.DEGRADED if entry.withheld else entry.state

    # ------------------------------------------------------------------------------------------------------ question

    def match(self, hashes: Chain, live_mask: int | None = None) -> dict[int, int]:
        """How much of a chain every endpoint holds from its first block on, without a hole.

        hashes: the prompt's block hashes, first block first; live_mask: bit per slot, None for all.
        Returns slot -> blocks, only those above 0; not to be changed.
        """
        self.claims, self.awaited = _NO_CLAIMS, NEVER
        if not hashes:
            return {}
        found = announced = self._announced_of(hashes) if self._credited else _NONE
        self._asked, self._announced = hashes, announced
        first = hashes[0]
        for slot, guesses in self._guessing.items():
            made_at = guesses.made_at
            if announced and slot in announced:
                start = announced[slot]
                if start == len(hashes) or hashes[start] not in made_at:
                    continue
                length = self._extend(self._slots[slot], hashes, start)
            elif first in made_at:
                if self._credited or (len(hashes) > FEW_BLOCKS and hashes[1] in made_at):
                    length = self._extend(self._slots[slot], hashes, 0)
                else:  # most often no more than a beginning that all prompts share
                    length = 0
                    for block in hashes:
                        if block not in made_at:
                            break
                        length += 1
            else:
                continue
            if found is announced:
                found = dict(announced) if announced else {}
            found[slot] = length
        if found and self._answers.order:
            found = self._answers.extend(hashes, found)
            self.claims = self._answers.claims
            if self._answers.awaited:
                live = [at for slot, at in self._answers.awaited.items() if live_mask is None or live_mask >> slot & 1]
                self.awaited = max(live, default=NEVER)
        if found and live_mask is not None:
            return {slot: length for slot, length in found.items() if live_mask >> slot & 1}
        return found

    def _announced_of(self, hashes: Chain) -> dict[int, int]:
        found: dict[int, int] = {}
        slot_of_lane = self._slot_of_lane
        for lanes, length in self._table.prefixes(hashes, self._credited):
            while lanes:
                low = lanes & -lanes
                lanes ^= low
                slot = slot_of_lane[low.bit_length() - 1]
                if length > found.get(slot, 0):
                    found[slot] = length
        return found

    def _extend(self, entry: _Slot, hashes: Chain, start: int) -> int:
        """Guessed blocks from `start` on, with announced ones between them."""
        position = start
        while True:
            guessed = position = entry.guesses.run(hashes, position)
            if guessed < len(hashes) and entry.lanes and entry.state in _CREDITED:
                for lane in entry.lanes.values():
                    position = max(position, self._table.run(lane, hashes, guessed))
            if position == guessed:
                return position

    # -------------------------------------------------------------------------------------------------------- events

    def store(self, slot: int, hashes: array[int], rank: int = 0) -> None:
        """The worker announced these blocks. KeyError: not attached."""
        entry = self._slots[slot]
        self._asked = None
        self.generation += 1
        self._count(entry, rank, self._table.add(self._lane(slot, entry, rank), hashes))
        if entry.guesses:
            entry.guesses.discard(hashes)

    def remove(self, slot: int, hashes: array[int], rank: int = 0) -> None:
        """The worker removed these blocks. KeyError: not attached."""
        entry = self._slots[slot]
        self._asked = None
        self.generation += 1
        lane = entry.lanes.get(rank)
        if lane is not None:
            self._count(entry, rank, -self._table.discard(lane, hashes))
        if entry.guesses:
            entry.guesses.discard(hashes)

    def apply(self, changes: Sequence[BlockChange]) -> None:
        """Changes of many workers at once: what a read of the bus brought. Changes of one (slot, rank) apply in order.

        Vectors of a thousand blocks cost a tenth per block of what vectors of ten do. Unattached slots are ignored.
        """
        by_rank: dict[tuple[int, int], list[BlockChange]] = {}
        for change in changes:
            if change.slot in self._slots:
                by_rank.setdefault((change.slot, change.rank), []).append(change)
        self._apply_disjoint([group[0] if len(group) == 1 else _net(group) for group in by_rank.values()])
        if self._answers:
            for (slot, _), group in by_rank.items():
                self.heard(slot, group[-1].at)

    def lagged(self, slot: int, lag_s: float) -> None:
        """A change of this endpoint came so long after the engine's step. Unknown slots are ignored."""
        if slot in self._slots:
            self._answers.lagged(slot, lag_s)

    def heard(self, slot: int, until: float) -> None:
        """What this endpoint's engine did until then is in the index, as its later word shows. Of several ranks, each with an
        order of its own, nothing follows."""
        entry = self._slots.get(slot)
        if entry is not None and len(entry.lanes) <= 1:
            self._answers.heard(slot, until)

    def _apply_disjoint(self, changes: list[BlockChange]) -> None:
        self._asked = None
        self.generation += 1
        removing = [change for change in changes if change.removed and change.rank in self._slots[change.slot].lanes]
        if removing:
            lanes = [self._slots[change.slot].lanes[change.rank] for change in removing]
            counts = self._table.discard_many(lanes, [change.removed for change in removing])
            for change, count in zip(removing, counts, strict=True):
                self._count(self._slots[change.slot], change.rank, -count)
        adding = [change for change in changes if change.added]
        if adding:
            lanes = [self._lane(change.slot, self._slots[change.slot], change.rank) for change in adding]
            counts = self._table.add_many(lanes, [change.added for change in adding])
            for change, count in zip(adding, counts, strict=True):
                self._count(self._slots[change.slot], change.rank, count)
        for change in changes:
            guesses = self._slots[change.slot].guesses
            if guesses:
                guesses.discard(change.added)
                guesses.discard(change.removed)

    def clear(self, slot: int, rank: int | None = None) -> None:
        """The worker (or one rank of it) holds nothing. KeyError: not attached."""
        entry = self._slots[slot]
        if rank is None:
            self._retire(entry)
        elif rank in entry.lanes:
            self._retire_lane(entry.lanes.pop(rank))
            entry.blocks -= entry.rank_blocks.pop(rank, 0)
        entry.guesses.clear()
        self._answers.forget(slot)

    def replace(self, slot: int, hashes: array[int]) -> None:
        """The worker holds exactly these (rank 0). KeyError: not attached."""
        self.clear(slot)
        self.store(slot, hashes)

    def speculate(self, slot: int, hashes: Chain, now: float) -> None:
        """A prompt was dispatched to this endpoint: it will hold these blocks soon. Unknown slots are ignored."""
        entry = self._slots.get(slot)
        if entry is None:
            return
        if self._asked is hashes:  # as it is when a decision asks, chooses and then dispatches
            start = self._announced.get(slot, 0) if self._announced else 0
        else:
            start = self._announced_before_hole(entry, hashes)
        if not start:
            entry.guesses.add(hashes, now)
        elif start < len(hashes):
            entry.guesses.add(hashes[start:], now)
        else:
            return
        if slot not in self._guessing and self.state(slot) is not IndexState.DEGRADED:
            self._guessing[slot] = entry.guesses

    def guessed_since(self, at: float) -> dict[int, list[int]]:
        """By slot, guesses made after this moment; looks at no others."""
        return {slot: blocks for slot, guesses in self._guessing.items() if (blocks := guesses.since(at))}

    def answered(self, slot: int, last_block: int, prompt_blocks: int, filled_blocks: int, now: float) -> None:
        """A response ended. last_block: hash of its prompt's last full block; prompt_blocks, filled_blocks: how many blocks the
        prompt alone and the prompt with its answer fill. Unknown slots are ignored."""
        if slot in self._slots and 0 < prompt_blocks < filled_blocks:
            self._answers.add(slot, last_block, prompt_blocks, filled_blocks, now)

    def claim_judged(self, *, came_true: bool) -> None:
        """What the engine's cache said of one of `claims`."""
        self._answers.trust.judge(came_true=came_true)

    def _announced_before_hole(self, entry: _Slot, hashes: Chain) -> int:
        lanes = entry.lanes.values() if entry.state in _CREDITED else ()
        return max((self._table.run(lane, hashes, 0) for lane in lanes), default=0)

    # ------------------------------------------------------------------------------------------------------- upkeep

    def expire(self, now: float) -> None:
        """Forgets old guesses and goes on with the sweep: bounded work, meant for every few milliseconds."""
        self._answers.expire(now)
        budget = EXPIRE_BLOCKS
        for slot, guesses in list(self._guessing.items()):
            budget -= guesses.expire(now, budget)
            if not guesses:
                del self._guessing[slot]
            if budget <= 0:
                break
        self.sweep()

    @property
    def at_rest(self) -> bool:
        """Whether `expire` has nothing to do, now or later, while nothing is asked and nothing announced."""
        if self._answers.order or not self._table.at_rest:
            return False
        return not any(guesses.expires for guesses in self._guessing.values())

    def sweep(self, rows_max: int = SWEEP_ROWS) -> None:
        """Frees what detached and cleared endpoints held, at most `rows_max` rows of the table a call."""
        self._free_lanes.extend(self._table.sweep(rows_max))

    def blocks(self, slot: int) -> int:
        """Blocks the worker announced (guesses not counted; those of several ranks count each). 0: not attached."""
        entry = self._slots.get(slot)
        return 0 if entry is None else entry.blocks

    def guesses(self, slot: int) -> int:
        entry = self._slots.get(slot)
        return 0 if entry is None else len(entry.guesses)

    def __len__(self) -> int:
        """Distinct announced blocks."""
        return len(self._table)

    def memory_bytes(self) -> int:
        """An estimate: the table, and 150 bytes a guess."""
        return self._table.memory_bytes() + 150 * sum(len(guesses) for guesses in self._guessing.values())

    # ------------------------------------------------------------------------------------------------------- lanes

    def _lane(self, slot: int, entry: _Slot, rank: int) -> int:
        lane = entry.lanes.get(rank)
        if lane is None:
            lane = self._free_lanes.pop() if self._free_lanes else self._new_lane()
            entry.lanes[rank] = lane
            self._slot_of_lane[lane] = slot
            self._refresh(slot)
        return lane

    def _new_lane(self) -> int:
        self._slot_of_lane.append(-1)
        return len(self._slot_of_lane) - 1

    @staticmethod
    def _count(entry: _Slot, rank: int, blocks: int) -> None:
        entry.blocks += blocks
        entry.rank_blocks[rank] = entry.rank_blocks.get(rank, 0) + blocks

    def _retire(self, entry: _Slot) -> None:
        for lane in entry.lanes.values():
            self._retire_lane(lane)
        entry.lanes = {}
        entry.rank_blocks = {}
        entry.blocks = 0

    def _retire_lane(self, lane: int) -> None:
        self._asked = None
        self.generation += 1
        self._credited &= ~(1 << lane)
        self._slot_of_lane[lane] = -1
        self._table.retire(lane)

    def _refresh(self, slot: int) -> None:
        """After a change of state or lanes: what counts."""
        self._asked = None
        self.generation += 1
        entry = self._slots[slot]
        state = self.state(slot)
        for lane in entry.lanes.values():
            if state in _CREDITED:
                self._credited |= 1 << lane
            else:
                self._credited &= ~(1 << lane)
        if state is IndexState.DEGRADED or not entry.guesses:
            self._guessing.pop(slot, None)
        else:
            self._guessing[slot] = entry.guesses


def tune_gc() -> None:
    """Call once, when the process has loaded its code and before it serves.

    A full collection walks every container that is alive; freezing moves what exists now out of its sight, and the raised
    thresholds make the rest rare.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)
