"""What one engine holds in its KV cache, in block hashes: the agent's core.

The engine names blocks by hashes of its own, whose function and seed differ by version. `BlockStored` carries the token ids
and the parent, so the blocks are hashed again here with `contract.blocks`, as the data plane hashes prompts, and `names` keeps
engine hash -> block hash for parents and removals. A name is a fact about content, so it outlives its block (the engine may
copy a block to another tier after it left the first one) and is only dropped with the engine, or to bound the table.

Copies are counted, not held in a set: vLLM may compute one block twice, announces each copy and removes each. Counts are pooled
by block hash, per rank and tier (see shelf). A count never exceeds what the engine holds: removals without a copy are ignored,
and what was believed before a hole is void. So this set overcounts never, and undercounts only after a hole (`exact` is False).

Changes are netted between two `take()`s: `added` and `removed` are disjoint whatever happened in between.
"""

from __future__ import annotations

import struct
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, groupby, starmap
from operator import attrgetter, itemgetter
from typing import Any, cast

from xxhash import xxh64_intdigest

from contract import blocks
from contract.keyspace import Tier
from worker_agent.block_identity import block_extras, chain_with_extras, first_block_salt, lora_of
from worker_agent.kv_events import (
    CLEARED,
    FULL_ATTENTION,
    PLAIN,
    REMOVED,
    Batch,
    BlockRemoved,
    BlockStored,
    EngineHash,
    PlainStored,
)
from worker_agent.shelf import Shelf

COLUMNS_EVENTS_MIN = 4
"""Fewer one-block stores than these are quicker handled one by one."""
NAMES_SLACK = 65_536
"""Names kept beyond twice the blocks held."""

_MEDIUM: Callable[[BlockStored | BlockRemoved], str | None] = attrgetter("medium")
_NO_EXTRAS: list[Any] = []
_TIERS = {"GPU": Tier.GPU, "CPU": Tier.CPU, "CPU_PINNED": Tier.CPU, "HOST": Tier.CPU}


@dataclass(slots=True)
class Change:
    """What happened on one rank and tier since the last `take()`. cleared: forget all before adding."""

    rank: int
    tier: Tier
    at: float  # Unix time of the oldest event
    cleared: bool
    added: array[int]
    removed: array[int]

    @property
    def blocks(self) -> int:
        return len(self.added) + len(self.removed)


@dataclass(slots=True)
class _Rank:
    names: dict[EngineHash | None, int]  # None: the parent of a prompt's first block
    shelves: dict[Tier, Shelf] = field(default_factory=dict)
    group: int | None = None  # the full-attention group that is followed; None until the first store
    exact: bool = False

    def shelf(self, tier: Tier) -> Shelf:
        found = self.shelves.get(tier)
        if found is None:
            found = self.shelves[tier] = Shelf()
        return found

    @property
    def blocks(self) -> int:
        return sum(len(shelf.held) for shelf in self.shelves.values())


class BlockSet:
    """model: the base model as the engine serves it first; block_size: tokens; capacity: GPU blocks a rank, 0 not known."""

    def __init__(self, model: str, block_size: int, capacity: int = 0, *, names_slack: int = NAMES_SLACK) -> None:
        self._model = model
        self._names_slack = names_slack
        self._block_size = block_size
        self._capacity = capacity
        self._ranks: dict[int, _Rank] = {}
        self._plain_root = blocks.root_hash(model)
        self._pack_block = struct.Struct(f"{block_size}I").pack
        self.ignored: Counter[str] = Counter()
        """Events that were not applied, by reason."""
        self.foreign_block_size = 0
        """The block size of the last store that did not have ours, 0 where none."""

    # ---------------------------------------------------------------------------------------------------------- questions

    @property
    def exact(self) -> bool:
        """Whether every block of every rank that was seen is known."""
        return all(rank.exact for rank in self._ranks.values())

    @property
    def blocks(self) -> int:
        return sum(rank.blocks for rank in self._ranks.values())

    @property
    def changed_blocks(self) -> int:
        """At least as many as `take()` would return; 0 where it would return none (but for a cache that was cleared)."""
        return sum(shelf.moves for rank in self._ranks.values() for shelf in rank.shelves.values())

    @property
    def changed(self) -> bool:
        """Whether `take()` has anything to look at."""
        return any(shelf.changed for rank in self._ranks.values() for shelf in rank.shelves.values())

    def held(self, rank: int = 0, tier: Tier = Tier.GPU) -> set[int]:
        """Block hashes on one rank and tier."""
        found = self._ranks.get(rank)
        shelf = found.shelves.get(tier) if found is not None else None
        return set(shelf.held) if shelf is not None else set()

    # ------------------------------------------------------------------------------------------------------------- events

    def expect(self, rank: int) -> None:
        """A rank that will be followed: not exact before `begin`."""
        self._rank(rank)

    def begin(self, rank: int, at: float) -> None:
        """The rank's cache is empty here and everything after will be seen."""
        state = self._rank(rank)
        state.names = {None: self._plain_root}
        state.group = None
        state.exact = True
        self._clear(state, at)

    def hole(self, rank: int, at: float) -> None:
        """Events of this rank were missed for good: what it held is no longer known."""
        state = self._rank(rank)
        state.exact = False
        self._clear(state, at)

    def emptied(self, at: float) -> None:
        """The engine dropped its cache without an event of it (sleep)."""
        for state in self._ranks.values():
            self._clear(state, at)

    def apply(self, rank: int, *payloads: Batch) -> None:
        """Every event of payloads that follow one another, in order. The changes bear the time of the first."""
        state, at = self._rank(rank), payloads[0].ts
        events: list[Any] = list(chain.from_iterable([payload.events for payload in payloads]))
        kinds = set(map(type, events))
        for kind, run in ((kinds.pop(), events),) if len(kinds) == 1 else groupby(events, type):
            if kind in PLAIN:
                self._stored_plain(state, cast("list[PlainStored]", list(run)), at)
            elif kind in REMOVED:
                self._removed(state, cast("list[BlockRemoved]", list(run)), at)
            elif kind in CLEARED:
                # Said of the GPU's pool; lower tiers may go with it silently. Forgetting them costs credit, keeping them trust.
                state.exact = True
                self._clear(state, at)
            else:
                self._stored(state, cast("Iterable[BlockStored]", run), at)

    # ------------------------------------------------------------------------------------------------------------ results

    def take(self) -> list[Change]:
        """What changed since the last call, at most one change a rank and tier."""
        changes = []
        for number, state in sorted(self._ranks.items()):
            for tier, shelf in sorted(state.shelves.items()):
                if shelf.changed:
                    cleared = shelf.cleared
                    added, removed = shelf.take()
                    if added or removed or cleared:
                        changes.append(Change(number, tier, shelf.at, cleared, added, removed))
            self._bound_names(state)
        return changes

    def chunks(self, blocks_max: int) -> Iterator[tuple[int, Tier, array[int]]]:
        """Everything held, in pieces of one rank and tier. Each is a copy; the set must not change between two pieces."""
        for number, state in sorted(self._ranks.items()):
            for tier, shelf in sorted(state.shelves.items()):
                hashes = array("Q", shelf.held)
                for start in range(0, len(hashes), blocks_max):
                    yield number, tier, hashes[start : start + blocks_max]

    # ------------------------------------------------------------------------------------------------------------ details

    def _rank(self, rank: int) -> _Rank:
        found = self._ranks.get(rank)
        if found is None:
            found = self._ranks[rank] = _Rank({None: self._plain_root})
        return found

    def _clear(self, state: _Rank, at: float) -> None:
        state.shelf(Tier.GPU)
        for shelf in state.shelves.values():
            shelf.stamp(at)
            shelf.clear()

    def _stored(self, state: _Rank, events: Iterable[BlockStored], at: float) -> None:
        """Stores of one payload with nothing else between them: their blocks go to a shelf together."""
        for medium, run in groupby(events, _MEDIUM):
            shelf = state.shelf(_tier(medium))
            shelf.stamp(at)
            fresh: list[int] = []
            for event in run:
                if (event.kv_cache_spec_kind or event.group_idx is not None) and not self._is_followed(state, event):
                    self.ignored["other KV group"] += 1
                else:
                    self._one(state, event, fresh)
            shelf.put(fresh)
            self._check_capacity(state, at)

    def _stored_plain(self, state: _Rank, events: list[PlainStored], at: float) -> None:
        """As `_stored`, for stores of which it is known that they say nothing but tokens. Those of one block each, as decoding
        sends them, are taken column by column: a pass of C over all of them for what would be Python for each."""
        if state.group is None and any(event.group_idx == 0 for event in events):
            state.group = 0
        if state.group:  # the group with whole prefixes is another
            self._stored(state, events, at)
            return
        shelf = state.shelf(Tier.GPU)
        shelf.stamp(at)
        fresh: list[int] = []
        taken = self._one_block_each(state, events, fresh)
        if taken < len(events):
            self._mixed(state, events[taken:], fresh)
        shelf.put(fresh)
        self._check_capacity(state, at)

    def _mixed(self, state: _Rank, events: list[PlainStored], fresh: list[int]) -> None:
        """Prompts among one-block stores, and stores that no column takes."""
        start, longer = 0, [number for number, event in enumerate(events) if len(event.block_hashes) != 1]
        for end in [*longer, len(events)]:
            start += self._one_block_each(state, events[start:end], fresh)
            for event in events[start : end + 1]:
                self._one(state, event, fresh)
            start = end + 1

    def _one(self, state: _Rank, event: BlockStored, fresh: list[int]) -> None:
        if event.token_ids:
            hashes = self._rehash(state, event)
            if hashes is None:
                state.exact = False
            else:
                fresh += hashes
        else:
            fresh += self._named(state, event)

    def _one_block_each(self, state: _Rank, events: list[PlainStored], fresh: list[int]) -> int:
        """Takes so many of these events, from the first on; what stopped it is not among them."""
        if len(events) < COLUMNS_EVENTS_MIN or {event.block_size for event in events} != {self._block_size}:
            return 0
        try:
            own = [name for (name,) in [event.block_hashes for event in events]]
        except ValueError:
            return 0  # more blocks, or none
        parents = [event.parent_block_hash for event in events]
        tokens = [event.token_ids for event in events]
        done = 0
        while len(events) - done >= COLUMNS_EVENTS_MIN:
            known = _known(state.names, parents[done:] if done else parents)
            if len(known) < COLUMNS_EVENTS_MIN:
                break
            end = done + len(known)
            try:
                hashes = list(map(xxh64_intdigest, starmap(self._pack_block, tokens[done:end] if done else tokens), known))
            except struct.error:
                break  # too many tokens, too few, or what is none
            state.names.update(zip(own[done:] if done else own, hashes))  # noqa: B905 - as many as are known
            fresh += hashes
            done = end
        return done

    def _named(self, state: _Rank, event: BlockStored) -> list[int]:
        """A copy to another tier names its blocks and does not say what is in them."""
        known = [block for block in map(state.names.get, event.block_hashes) if block is not None]
        if len(known) < len(event.block_hashes):
            self.ignored["unknown block copied"] += len(event.block_hashes) - len(known)
            state.exact = False
        return known

    def _removed(self, state: _Rank, events: list[BlockRemoved], at: float) -> None:
        """As `_stored`: engines evict one block an event, dozens in a payload."""
        if len({event.medium for event in events}) > 1:
            for _, run in groupby(events, _MEDIUM):
                self._removed(state, list(run), at)
            return
        medium, followed = events[0].medium, state.group
        if followed is not None and not {event.group_idx for event in events} <= {None, followed}:
            ours = [event for event in events if event.group_idx in (None, followed)]
            self.ignored["other KV group"] += len(events) - len(ours)
            events = ours
        names: list[EngineHash | None] = list(chain.from_iterable([event.block_hashes for event in events]))
        known = _known(state.names, names)
        if len(known) < len(names):
            known = [block for block in map(state.names.get, names) if block is not None]
        shelf = state.shelf(_tier(medium))
        shelf.stamp(at)
        shelf.drop(known)

    def _is_followed(self, state: _Rank, event: BlockStored) -> bool:
        kind, group = event.kv_cache_spec_kind, event.group_idx
        if kind is not None and kind not in FULL_ATTENTION:
            return False
        if group is None:
            return True
        if state.group is None and (kind is not None or group == 0):
            state.group = group
        return group == state.group

    def _rehash(self, state: _Rank, event: BlockStored) -> list[int] | None:
        """The block hashes of a store, each with its name from here on; None (counted) where they cannot be known."""
        names, size, token_ids = event.block_hashes, event.block_size, event.token_ids
        if size != self._block_size:
            self.ignored["other block size"] += 1
            self.foreign_block_size = size
            return None
        if len(token_ids) != len(names) * size:
            self.ignored["tokens missing"] += 1
            return None
        keys = event.extra_keys
        extra_keys = keys if keys and any(keys) else _NO_EXTRAS
        lora = "" if event.lora_name is None and event.lora_id is None else lora_of(event)
        parent_name = event.parent_block_hash
        if parent_name is None:
            parent = self._root(lora, first_block_salt(extra_keys, lora)) if lora or extra_keys else self._plain_root
        else:
            known = state.names.get(parent_name)
            if known is None:
                self.ignored["unknown parent"] += 1
                return None
            parent = known
        try:
            tokens = array("I", token_ids)
        except (OverflowError, TypeError):
            self.ignored["bad token ids"] += 1
            return None
        extras: list[bytes] = block_extras(extra_keys, lora, first=parent_name is None) if extra_keys else _NO_EXTRAS
        if any(extras):
            hashes = chain_with_extras(tokens.tobytes(), size, parent, extras)
        elif len(names) == 1:  # decoding fills blocks one by one, an event each
            block = state.names[names[0]] = blocks.extend(parent, tokens)
            return [block]
        else:
            hashes = blocks.links(tokens, size, parent)
        state.names.update(zip(names, hashes, strict=True))
        return hashes

    def _root(self, lora: str, salt: str) -> int:
        return blocks.root_hash(self._model, lora=lora, cache_salt=salt) if lora or salt else self._plain_root

    def _check_capacity(self, state: _Rank, at: float) -> None:
        """More copies than the engine has room for: some announcements were no copies (vLLM repeats reused blocks where a
        request asks for `kv_cache_report_mode: full`), so some blocks may be gone. Nothing believed here can be trusted."""
        if self._capacity and state.shelf(Tier.GPU).total > self._capacity:
            self.ignored["more copies than the engine has blocks"] += 1
            state.exact = False
            self._clear(state, at)

    def _bound_names(self, state: _Rank) -> None:
        if len(state.names) > 2 * state.blocks + self._names_slack:
            shelves = [shelf.held for shelf in state.shelves.values()]
            kept = {name: block for name, block in state.names.items() if any(block in held for held in shelves)}
            state.names = {None: self._plain_root} | kept


def _known(names: dict[EngineHash | None, int], wanted: list[EngineHash | None]) -> Sequence[int]:
    """The blocks of these names, up to the first that is none (yet: an event before it in the same payload may name it)."""
    try:
        if len(wanted) > 1:
            return cast("tuple[int, ...]", itemgetter(*wanted)(names))  # two thirds of the price of a comprehension
        return [names[name] for name in wanted]
    except KeyError:
        found: list[int] = []
        try:
            found.extend(map(names.__getitem__, wanted))
        except KeyError:
            pass  # what came before it is there
        return found


def _tier(medium: str | None) -> Tier:
    return Tier.GPU if medium is None or medium == "GPU" else _TIERS.get(medium.upper(), Tier.DISK)
