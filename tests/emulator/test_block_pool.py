from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from emulator.block_pool import BlockPool, Cleared, Removed, Stored
from tests.emulator.reference_pool import ReferencePool


def test_blocks_of_one_sequence_are_evicted_tail_first() -> None:
    pool = BlockPool(4)
    blocks = pool.allocate(3)
    pool.store(blocks, [1, 2, 3], b"", parent=None)
    pool.release(blocks)
    pool.drain_events()
    pool.allocate(2)
    assert pool.drain_events() == [Removed(3), Removed(2)]


def test_the_sequence_used_longest_ago_is_evicted_first() -> None:
    pool = BlockPool(5)
    old, young = pool.allocate(2), pool.allocate(2)
    pool.store(old, [1, 2], b"", parent=None)
    pool.store(young, [11, 12], b"", parent=None)
    pool.release(old)
    pool.release(young)
    hit = pool.find([1, 2], 2)
    pool.touch(hit)
    pool.release(hit)
    pool.drain_events()
    pool.allocate(4)
    assert pool.drain_events() == [Removed(12), Removed(11), Removed(2), Removed(1)]


def test_a_second_copy_is_announced_and_taken_back_on_its_own() -> None:
    pool = BlockPool(3)
    first, second = pool.allocate(1), pool.allocate(1)
    pool.store(first, [7], b"t", parent=None)
    pool.store(second, [7], b"t", parent=None)
    assert pool.cached_counts() == {7: 2}
    assert pool.find([7], 1) == first
    pool.release(first)
    pool.release(second)
    pool.allocate(2)
    events = pool.drain_events()
    assert [type(event) for event in events] == [Stored, Stored, Removed, Removed]


def test_a_block_that_nobody_holds_is_still_a_hit_and_does_not_count_as_used() -> None:
    pool = BlockPool(11)
    blocks = pool.allocate(5)
    pool.store(blocks, [1, 2, 3, 4, 5], b"", parent=None)
    assert pool.usage == 0.5
    pool.release(blocks)
    assert pool.usage == 0.0
    assert pool.find([1, 2, 9], 3) == blocks[:2]


def test_reset_is_refused_while_blocks_are_held() -> None:
    pool = BlockPool(3)
    blocks = pool.allocate(1)
    pool.store(blocks, [1], b"", parent=None)
    assert not pool.reset()
    pool.release(blocks)
    assert pool.reset()
    assert pool.find([1], 1) == []
    assert pool.drain_events()[-1] == Cleared()


def test_without_caching_nothing_is_found_and_nothing_is_announced() -> None:
    pool = BlockPool(3, caching=False)
    blocks = pool.allocate(1)
    pool.store(blocks, [1], b"", parent=None)
    assert pool.find([1], 1) == []
    assert pool.drain_events() == []


def test_a_pool_needs_room_beside_the_null_block() -> None:
    with pytest.raises(ValueError, match="null block"):
        BlockPool(1)


@dataclass
class Holder:
    blocks: list[int]
    chain: list[int]
    num_hashed: int = field(default=0)


class PoolMachine(RuleBasedStateMachine):
    """Any order of admitting, growing, storing and ending, beside the reference and beside a follower of the events."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(9)
        self.reference = ReferencePool(9)
        self.holders: list[Holder] = []
        self.followed: dict[int, int] = {}

    @rule(family=st.integers(0, 2), branch=st.integers(0, 2), length=st.integers(1, 6))
    def admit(self, family: int, branch: int, length: int) -> None:
        """A prompt of full blocks: some common to its family, the rest its own branch's."""
        chain = [family * 100 + i if i < 2 else family * 100 + branch * 10 + i for i in range(length)]
        hit = self.pool.find(chain, length - 1)
        assert hit == self.reference.find(chain[: length - 1])
        if length - len(hit) > self.pool.num_free - self.pool.num_evictable(hit):
            return
        self.pool.touch(hit)
        self.reference.touch(hit)
        fresh = self.pool.allocate(length - len(hit))
        assert fresh == self.reference.allocate(length - len(hit))
        self.holders.append(Holder(hit + fresh, chain, len(hit)))

    @precondition(lambda self: self.holders)
    @rule(data=st.data())
    def store(self, data: st.DataObject) -> None:
        holder = data.draw(st.sampled_from(self.holders))
        end = data.draw(st.integers(holder.num_hashed, len(holder.blocks)))
        blocks, hashes = holder.blocks[holder.num_hashed : end], holder.chain[holder.num_hashed : end]
        parent = holder.chain[holder.num_hashed - 1] if holder.num_hashed else None
        self.pool.store(blocks, hashes, b"", parent=parent)
        self.reference.store(blocks, hashes)
        holder.num_hashed = end

    @precondition(lambda self: self.holders)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        holder = self.holders.pop(data.draw(st.integers(0, len(self.holders) - 1)))
        self.pool.release(holder.blocks)
        self.reference.release(holder.blocks)

    @rule()
    def reset(self) -> None:
        if self.pool.reset():
            assert not self.holders
            for block in self.reference.blocks:
                block.hash = None

    @invariant()
    def the_queue_is_the_references(self) -> None:
        assert self.pool.free_order() == [block.number for block in self.reference.free()]

    @invariant()
    def every_block_is_held_as_often_as_its_holders_say(self) -> None:
        for block in range(1, self.pool.num_blocks):
            assert self.pool.references(block) == sum(holder.blocks.count(block) for holder in self.holders)
        assert self.pool.num_used + self.pool.num_free == self.pool.num_blocks - 1

    @invariant()
    def following_the_events_gives_the_cached_blocks_with_their_counts(self) -> None:
        for event in self.pool.drain_events():
            if isinstance(event, Stored):
                for key in event.hashes:
                    self.followed[key] = self.followed.get(key, 0) + 1
            elif isinstance(event, Removed):
                self.followed[event.hash] -= 1
                if not self.followed[event.hash]:
                    del self.followed[event.hash]
            else:
                self.followed.clear()
        assert self.followed == self.pool.cached_counts() == self.reference.counts()


PoolMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestPoolMachine = PoolMachine.TestCase
