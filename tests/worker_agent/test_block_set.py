"""The block set against captured frames, and against a clean-room model of an engine over random event streams."""

from __future__ import annotations

from array import array
from collections import Counter
from typing import Any

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from contract import blocks
from contract.keyspace import Tier
from tests.worker_agent.conftest import payloads
from worker_agent.block_set import BlockSet
from worker_agent.kv_events import REMOVED, STORED, Batch, Decoder

pack = msgspec.msgpack.encode
SIZE = 4


def chain(tokens: list[int], *, size: int = SIZE, model: str = "m", **root: str) -> list[int]:
    return list(blocks.chain(blocks.pack_tokens(tokens), size, blocks.root_hash(model, **root)))


def batch(*events: dict[str, Any], ts: float = 1.0) -> Batch:
    return Decoder().decode(pack([ts, list(events), 0]))


def stored(names: list[Any], tokens: list[int], *, parent: Any = None, **fields: Any) -> dict[str, Any]:
    event = {"type": "BlockStored", "block_hashes": names, "parent_block_hash": parent, "token_ids": tokens, "block_size": SIZE}
    return event | {"medium": "GPU"} | fields


def removed(*names: Any, **fields: Any) -> dict[str, Any]:
    return {"type": "BlockRemoved", "block_hashes": list(names), "medium": "GPU"} | fields


def begun(**arguments: Any) -> BlockSet:
    made = BlockSet("m", SIZE, **arguments)
    made.begin(0, 0.0)
    made.take()
    return made


T = list(range(100, 124))  # six blocks


# ------------------------------------------------------------------------------------------------------------- recordings


@pytest.mark.parametrize(("name", "size"), [("v032_block32", 32), ("v032_block32_bytes", 32), ("v028_block16", 16)])
def test_a_recording_leaves_what_its_copies_say(name: str, size: int) -> None:
    """Against prefixes written out in full and copies counted by engine name."""
    block_set = BlockSet("tiny", size)
    block_set.begin(0, 0.0)
    decoder = Decoder()
    prefixes: dict[Any, tuple[list[int], str, str]] = {}
    copies: Counter[Any] = Counter()
    most = 0
    for _, payload in payloads(name):
        got = decoder.decode(payload)
        for event in got.events:
            if isinstance(event, STORED):
                head, lora, salt = [], event.lora_name or "", ""
                if event.parent_block_hash is not None:
                    head, lora, salt = prefixes[event.parent_block_hash]
                elif event.extra_keys and event.extra_keys[0]:
                    salt = ([key for key in event.extra_keys[0] if key != lora] or [""])[0]
                for number, engine_hash in enumerate(event.block_hashes, start=1):
                    prefixes[engine_hash] = ([*head, *event.token_ids[: number * size]], lora, salt)
                    copies[engine_hash] += 1
            elif isinstance(event, REMOVED):
                copies.subtract(event.block_hashes)
            else:
                copies.clear()
        block_set.apply(0, got)
        expected = {
            chain(tokens, size=size, model="tiny", lora=lora, cache_salt=salt)[-1]
            for tokens, lora, salt in (prefixes[name] for name, count in copies.items() if count > 0)
        }
        assert block_set.held() == expected
        most = max(most, len(expected))
    assert most > 10
    assert block_set.exact
    assert not block_set.ignored


def test_the_recorded_adapter_and_salts_have_roots_of_their_own() -> None:
    roots = set()
    for _, payload in payloads("v032_block32"):
        for event in Decoder().decode(payload).events:
            if isinstance(event, STORED) and event.parent_block_hash is None and event.extra_keys and event.extra_keys[0]:
                salt = next((key for key in event.extra_keys[0] if key != event.lora_name), "")
                one = BlockSet("tiny", event.block_size)
                one.apply(0, Decoder().decode(payload))
                held = one.held()
                first = chain(
                    list(event.token_ids[: event.block_size]),
                    size=event.block_size,
                    model="tiny",
                    lora=event.lora_name or "",
                    cache_salt=salt,
                )
                assert held.issuperset(first)
                roots.add((event.lora_name, salt))
    assert roots == {(None, "tenant-a"), ("sql", ""), ("sql", "tenant-b")}


# --------------------------------------------------------------------------------------------------------------- examples


def test_a_block_with_two_copies_stays_until_both_are_removed() -> None:
    block_set = begun()
    event = stored([1], T[:4])
    block_set.apply(0, batch(event, event))
    block_set.apply(0, batch(removed(1)))
    assert block_set.held() == set(chain(T[:4]))
    block_set.apply(0, batch(removed(1)))
    assert block_set.held() == set()


def test_tagged_and_untagged_extra_keys_mean_the_same() -> None:
    untagged, tagged = begun(), begun()
    untagged.apply(0, batch(stored([1, 2], T[:8], lora_name="sql", extra_keys=[["sql", ["img", 3], "s"], ["sql"]])))
    keys = [[["lora", "sql", "/path"], ["mm", "img", 3], ["cache_salt", "s"]], [["lora", "sql", "/path"]]]
    tagged.apply(0, batch(stored([1, 2], T[:8], lora_name="sql", extra_keys=keys)))
    assert untagged.held() == tagged.held()
    plain = begun()
    plain.apply(0, batch(stored([1, 2], T[:8], lora_name="sql", extra_keys=[["sql", "s"], ["sql"]])))
    assert plain.held() == set(chain(T[:8], lora="sql", cache_salt="s"))
    assert plain.held().isdisjoint(untagged.held()), "an image changes its block and those after it"


def test_images_at_different_offsets_differ() -> None:
    held = []
    for offset in (0, 1):
        one = begun()
        one.apply(0, batch(stored([1], T[:4], extra_keys=[[["img", offset]]])))
        held.append(one.held())
    assert held[0].isdisjoint(held[1])


def test_an_adapter_known_by_number_only_is_never_taken_for_the_base_model() -> None:
    block_set = begun()
    block_set.apply(0, batch(stored([1], T[:4], lora_id=1)))
    assert block_set.held().isdisjoint(chain(T[:4]))


def test_a_store_after_an_unknown_parent_is_not_believed_and_said() -> None:
    block_set = begun()
    block_set.apply(0, batch(stored([9], T[4:8], parent=8)))
    assert block_set.held() == set()
    assert not block_set.exact
    assert block_set.ignored["unknown parent"] == 1


def test_a_parent_that_was_removed_is_still_a_name() -> None:
    block_set = begun()
    block_set.apply(0, batch(stored([1], T[:4]), removed(1), stored([2], T[4:8], parent=1)))
    assert block_set.held() == {chain(T[:8])[1]}
    assert block_set.exact


@pytest.mark.parametrize(
    ("event", "reason"),
    [
        (stored([1], T[:3]), "tokens missing"),
        (stored([1], [2**40] * 4), "bad token ids"),
        (stored([1], [-1] * 4), "bad token ids"),
        (stored([1], T[:16], block_size=16), "other block size"),
        (stored([1], [], medium="CPU"), "unknown block copied"),
    ],
)
def test_a_store_that_makes_no_sense_costs_exactness_only(event: dict[str, Any], reason: str) -> None:
    block_set = begun()
    block_set.apply(0, batch(event, stored([5], T[:4])))
    assert block_set.held() == set(chain(T[:4]))
    assert not block_set.exact
    assert block_set.ignored[reason] == 1


def test_only_the_full_attention_group_counts() -> None:
    block_set = begun()
    full = {"group_idx": 1, "kv_cache_spec_kind": "full_attention"}
    window = {"group_idx": 0, "kv_cache_spec_kind": "sliding_window"}
    block_set.apply(0, batch(stored([1], T[:4], **window), stored([1], T[:4], **full), removed(1, group_idx=0)))
    assert block_set.held() == set(chain(T[:4]))
    assert block_set.exact
    block_set.apply(0, batch(removed(1, group_idx=1)))
    assert block_set.held() == set()


def test_more_copies_than_the_engine_has_blocks_void_the_view() -> None:
    block_set = begun(capacity=3)
    event = stored([1, 2], T[:8])
    block_set.apply(0, batch(event, event))
    assert block_set.held() == set()
    assert not block_set.exact


def test_a_copy_in_cpu_memory_outlives_the_gpu_block() -> None:
    block_set = begun()
    block_set.apply(0, batch(stored([1], T[:4]), removed(1), stored([1], [], medium="CPU", block_size=0)))
    assert block_set.held() == set()
    assert block_set.held(tier=Tier.CPU) == set(chain(T[:4]))
    block_set.apply(0, batch(removed(1, medium="CPU")))
    assert block_set.held(tier=Tier.CPU) == set()


def test_changes_are_netted_and_carry_the_oldest_time() -> None:
    block_set = begun()
    block_set.apply(0, batch(stored([1, 2], T[:8]), ts=5.0))
    block_set.apply(0, batch(removed(2), stored([3], T[8:12]), ts=6.0))
    (change,) = block_set.take()
    assert (set(change.added), list(change.removed), change.at) == ({chain(T[:4])[0], chain(T[8:12])[0]}, [], 5.0)
    block_set.apply(0, batch(removed(1), stored([1], T[:4])))
    assert block_set.take() == []
    block_set.apply(0, batch(removed(3), ts=9.0))
    (change,) = block_set.take()
    assert (list(change.added), list(change.removed), change.at) == ([], chain(T[8:12]), 9.0)


def test_names_of_blocks_that_are_gone_are_bounded() -> None:
    block_set = begun(names_slack=100)
    for number in range(1000):
        block_set.apply(0, batch(stored([number], [number] * 4), removed(number)))
        block_set.take()
    assert len(block_set._ranks[0].names) <= 101


@pytest.mark.parametrize("gone", [[1], [9], [1, 9], [9, 1], [1, 9, 2], [9, 8], [1, 1, 2]])
def test_a_removal_of_what_nobody_stored_changes_nothing_else(gone: list[int]) -> None:
    block_set = begun()
    block_set.apply(0, batch(stored([1, 2, 3], T[:12])))
    block_set.apply(0, batch(*(removed(name) for name in gone)))
    assert block_set.held() == {block for name, block in zip([1, 2, 3], chain(T[:12]), strict=True) if name not in gone}
    assert block_set.exact


def test_chunks_hold_everything_once() -> None:
    block_set = begun()
    block_set.apply(0, batch(stored([1, 2, 3, 4, 5, 6], T)))
    block_set.apply(1, batch(stored([1], T[:4])))
    chunks = list(block_set.chunks(4))
    assert [(rank, tier, len(hashes)) for rank, tier, hashes in chunks] == [
        (0, Tier.GPU, 4),
        (0, Tier.GPU, 2),
        (1, Tier.GPU, 1),
    ]
    assert set(chunks[0][2]) | set(chunks[1][2]) == set(chain(T))


# ------------------------------------------------------------------------------------------------------------- properties


class ManyEvents(RuleBasedStateMachine):
    """An engine with physical copies on two ranks and two tiers; a block set that is told, mostly; a mirror fed by deltas.

    Prompts come from a small tree, so prefixes are shared. The model computes hashes from whole prefixes and never looks at
    parents or counts.
    """

    paths = st.lists(st.integers(0, 2), min_size=1, max_size=5)
    roots = st.sampled_from([("", ""), ("sql", ""), ("", "salt"), ("sql", "salt")])
    ranks = st.integers(0, 1)

    @initialize()
    def begin(self) -> None:
        self.copies: dict[tuple[int, Tier], list[tuple[Any, ...]]] = {(r, t): [] for r in (0, 1) for t in (Tier.GPU, Tier.CPU)}
        self.mirror: dict[tuple[int, Tier], set[int]] = {key: set() for key in self.copies}
        self.seed = 0
        self.deaf = False
        self.holes = {0: False, 1: False}
        self.block_set = BlockSet("m", SIZE)
        for rank in (0, 1):
            self.block_set.begin(rank, 0.0)

    def name(self, prefix: tuple[Any, ...]) -> int:
        return hash((self.seed, prefix)) & (2**64 - 1)

    def tell(self, rank: int, *events: dict[str, Any]) -> None:
        if self.deaf:
            return
        self.block_set.apply(rank, batch(*events))

    def truth(self, rank: int, tier: Tier) -> set[int]:
        hashes = set()
        for lora, salt, *path in self.copies[rank, tier]:
            tokens = [token for step in path for token in [step] * SIZE]
            hashes.add(chain(tokens, lora=lora, cache_salt=salt)[-1])
        return hashes

    @rule(path=paths, root=roots, rank=ranks, skip=st.integers(0, 4))
    def store(self, path: list[int], root: tuple[str, str], rank: int, skip: int) -> None:
        """A prompt is computed; the engine announces its blocks from some point on, copies of known ones too."""
        lora, salt = root
        prefixes = [(lora, salt, *path[: n + 1]) for n in range(len(path))]
        present = set(self.copies[rank, Tier.GPU])
        first = 0
        while first < min(skip, len(path) - 1) and prefixes[first] in present:
            first += 1
        new = prefixes[first:]
        self.copies[rank, Tier.GPU] += new
        keys: list[Any] = [[lora] if lora else [] for _ in new]
        if first == 0 and salt:
            keys[0].append(salt)
        self.tell(
            rank,
            stored(
                [self.name(prefix) for prefix in new],
                [token for step in path[first:] for token in [step] * SIZE],
                parent=self.name(prefixes[first - 1]) if first else None,
                lora_name=lora or None,
                extra_keys=[entry or None for entry in keys],
            ),
        )

    @precondition(lambda self: any(self.copies.values()))
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from([key for key, copies in self.copies.items() if copies]))
        copies = self.copies[key]
        prefix = copies.pop(data.draw(st.integers(0, len(copies) - 1)))
        self.tell(key[0], removed(self.name(prefix), medium=key[1].name))

    @precondition(lambda self: any(self.copies[rank, Tier.GPU] for rank in (0, 1)))
    @rule(data=st.data())
    def offload(self, data: st.DataObject) -> None:
        rank = data.draw(st.sampled_from([rank for rank in (0, 1) if self.copies[rank, Tier.GPU]]))
        prefix = data.draw(st.sampled_from(self.copies[rank, Tier.GPU]))
        self.copies[rank, Tier.CPU].append(prefix)
        self.tell(rank, stored([self.name(prefix)], [], medium="CPU"))

    @rule(rank=ranks)
    def clear(self, rank: int) -> None:
        for tier in (Tier.GPU, Tier.CPU):
            self.copies[rank, tier].clear()
        self.tell(rank, {"type": "AllBlocksCleared"})
        if not self.deaf:
            self.holes[rank] = False

    @precondition(lambda self: not self.deaf)
    @rule()
    def connection_lost(self) -> None:
        self.deaf = True

    @precondition(lambda self: self.deaf)
    @rule()
    def found_again(self) -> None:
        """Nothing brought back what was missed."""
        self.deaf = False
        for rank in (0, 1):
            self.block_set.hole(rank, 0.0)
            self.holes[rank] = True

    @rule(rank=ranks)
    def restart(self, rank: int) -> None:
        """This rank's engine starts anew; its names mean other things now."""
        if self.deaf:
            return
        self.seed += 1
        # Names of the other rank change with the seed too: keep to one engine, both ranks restart.
        for one in (0, 1):
            for tier in (Tier.GPU, Tier.CPU):
                self.copies[one, tier].clear()
            self.block_set.begin(one, 0.0)
            self.holes[one] = False

    @rule()
    def deltas_leave(self) -> None:
        for change in self.block_set.take():
            held = self.mirror[change.rank, change.tier]
            if change.cleared:
                held.clear()
            assert held.isdisjoint(change.added)
            assert held.issuperset(change.removed)
            held |= set(change.added)
            held -= set(change.removed)
        for (rank, tier), held in self.mirror.items():
            assert held == self.block_set.held(rank, tier)

    @invariant()
    def never_overcounts_and_undercounts_only_after_a_hole(self) -> None:
        if self.deaf:
            return
        for rank in (0, 1):
            for tier in (Tier.GPU, Tier.CPU):
                held, truth = self.block_set.held(rank, tier), self.truth(rank, tier)
                assert held <= truth, f"overcount of {len(held - truth)} blocks"
                if not self.holes[rank]:
                    assert held == truth, f"undercount of {len(truth - held)} blocks without a hole"
        assert self.block_set.exact == (not any(self.holes.values()))

    @invariant()
    def snapshot_and_questions_agree(self) -> None:
        pieces: dict[tuple[int, Tier], list[int]] = {}
        for rank, tier, hashes in self.block_set.chunks(3):
            assert isinstance(hashes, array)
            pieces.setdefault((rank, tier), []).extend(hashes)
        for (rank, tier), hashes in pieces.items():
            assert len(hashes) == len(set(hashes))
            assert set(hashes) == self.block_set.held(rank, tier)


TestManyEvents = ManyEvents.TestCase
TestManyEvents.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
