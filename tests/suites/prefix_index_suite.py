"""What every table, and the index over it, must do; and the model they are judged by.

The model is written from the definition and shares no code with them: a set of blocks per lane, and a match is the number of
blocks before the first that is not in the set.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from array import array
from collections.abc import Callable

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from controlplane.index_state import IndexState
from controlplane.prefix_index import PrefixIndex, Table

SWEEPS_MAX = 10_000

LANES = (0, 1, 2, 63, 64, 130)
"""Within one word, at its end, and in two further words."""

# Few distinct values make collisions of every kind likely: 0 is the empty key, 1..40 are neighbours, multiples of 4,096 share
# a bucket in a small table, and the last is the largest there is.
BLOCKS = st.one_of(
    st.integers(0, 40), st.integers(0, 40).map(lambda number: number * 4_096), st.just(2**64 - 1), st.integers(0, 2**64 - 1)
)
BATCHES = st.lists(BLOCKS, max_size=80).map(lambda blocks: array("Q", blocks))


def chain(*blocks: int) -> array[int]:
    return array("Q", blocks)


def held_before_first_hole(blocks: set[int], question: array[int]) -> int:
    length = 0
    for block in question:
        if block not in blocks:
            break
        length += 1
    return length


def lengths(table: Table, question: array[int], lanes: int) -> dict[int, int]:
    """The table's answer, a length per lane."""
    found: dict[int, int] = {}
    for group, length in table.prefixes(question, lanes):
        assert length > 0
        for lane in range(group.bit_length()):
            if group >> lane & 1:
                assert lane not in found, f"lane {lane} answered twice"
                found[lane] = length
    return found


def swept(table: Table) -> list[int]:
    freed: list[int] = []
    for _ in range(SWEEPS_MAX):
        now = table.sweep(4_096)
        if now:
            freed.extend(now)
            return freed
    return freed


class TableSuite(ABC):
    """Subclasses say how to make one."""

    @abstractmethod
    def make(self) -> Table: ...

    def test_a_match_ends_before_the_first_hole_although_the_tail_is_there(self) -> None:
        table = self.make()
        table.add(0, chain(1, 2, 3, 4, 5))
        assert table.discard(0, chain(3)) == 1
        assert lengths(table, chain(1, 2, 3, 4, 5), 1) == {0: 2}

    def test_lanes_are_told_apart_and_only_those_asked_for_answer(self) -> None:
        table = self.make()
        table.add(0, chain(1, 2))
        table.add(64, chain(1, 2, 3))
        table.add(7, chain(2, 3))
        assert lengths(table, chain(1, 2, 3, 4), (1 << 65) - 1) == {0: 2, 64: 3}
        assert lengths(table, chain(1, 2, 3, 4), 1) == {0: 2}
        assert lengths(table, chain(9), (1 << 65) - 1) == {}
        assert lengths(table, chain(), 1) == {}

    def test_blocks_are_counted_once_however_often_and_by_whomever_they_are_held(self) -> None:
        table = self.make()
        assert table.add(0, chain(1, 2, 2, 1)) == 2
        assert table.add(0, chain(2, 3)) == 1
        assert table.add(1, chain(1)) == 1
        assert len(table) == 3
        assert table.discard(0, chain(1, 1, 9)) == 1
        assert len(table) == 3
        assert table.discard(1, chain(1)) == 1
        assert len(table) == 2

    def test_a_retired_lane_comes_back_empty(self) -> None:
        table = self.make()
        table.add(3, array("Q", range(1, 5_000)))
        table.add(4, chain(1, 2))
        table.retire(3)
        assert swept(table) == [3]
        assert len(table) == 2
        assert lengths(table, chain(1, 2, 3), 0b11000) == {4: 2}

    def test_many_lanes_change_in_one_call_as_they_would_one_by_one(self) -> None:
        table, other = self.make(), self.make()
        lanes = [0, 5, 64, 200]
        batches = [chain(1, 2, 3), chain(2, 3, 4), chain(3), chain(1, 9)]
        assert table.add_many(lanes, batches) == [other.add(lane, batch) for lane, batch in zip(lanes, batches, strict=True)]
        assert len(table) == len(other) == 5
        gone = [chain(3), chain(3, 4), chain(3), chain(2)]
        assert table.discard_many(lanes, gone) == [other.discard(lane, batch) for lane, batch in zip(lanes, gone, strict=True)]
        assert len(table) == len(other) == 3

    def test_growth_and_churn_lose_nothing(self) -> None:
        table = self.make()
        for start in range(0, 60_000, 500):
            table.add(1, array("Q", range(start, start + 500)))
            if start >= 10_000:
                table.discard(1, array("Q", range(start - 10_000, start - 9_500)))
        assert len(table) == 10_000
        assert lengths(table, array("Q", range(50_000, 60_100)), 2) == {1: 10_000}
        assert lengths(table, array("Q", range(49_990, 50_010)), 2) == {}


def table_machine(make: Callable[[], Table]) -> type[RuleBasedStateMachine]:
    """Random changes, retirements and sweeps in any order; after each, answers equal the model's."""

    class Machine(RuleBasedStateMachine):
        def __init__(self) -> None:
            super().__init__()
            self.table = make()
            self.model: dict[int, set[int]] = {lane: set() for lane in LANES}
            self.retired: set[int] = set()

        def usable(self) -> list[int]:
            return [lane for lane in LANES if lane not in self.retired]

        @precondition(lambda self: self.usable())
        @rule(data=st.data(), blocks=BATCHES)
        def add(self, data: st.DataObject, blocks: array[int]) -> None:
            lane = data.draw(st.sampled_from(self.usable()))
            assert self.table.add(lane, blocks) == len(set(blocks) - self.model[lane])
            self.model[lane].update(blocks)

        @precondition(lambda self: self.usable())
        @rule(data=st.data(), blocks=BATCHES)
        def discard(self, data: st.DataObject, blocks: array[int]) -> None:
            lane = data.draw(st.sampled_from(self.usable()))
            assert self.table.discard(lane, blocks) == len(set(blocks) & self.model[lane])
            self.model[lane].difference_update(blocks)

        @precondition(lambda self: self.usable())
        @rule(data=st.data(), start=st.integers(0, 2**40), count=st.integers(500, 3_000), step=st.sampled_from([1, 7, 1_024]))
        def add_many_new_ones(self, data: st.DataObject, start: int, count: int, step: int) -> None:
            self.table.add(
                lane := data.draw(st.sampled_from(self.usable())),
                blocks := array("Q", range(start, start + count * step, step)),
            )
            self.model[lane].update(blocks)

        @rule(data=st.data(), batches=st.lists(BATCHES, min_size=len(LANES), max_size=len(LANES)), adds=st.booleans())
        def change_many_lanes(self, data: st.DataObject, batches: list[array[int]], adds: bool) -> None:
            lanes = self.usable()
            batches = batches[: len(lanes)]
            if adds:
                expected = [len(set(blocks) - self.model[lane]) for lane, blocks in zip(lanes, batches, strict=True)]
                assert self.table.add_many(lanes, batches) == expected
                for lane, blocks in zip(lanes, batches, strict=True):
                    self.model[lane].update(blocks)
            else:
                expected = [len(set(blocks) & self.model[lane]) for lane, blocks in zip(lanes, batches, strict=True)]
                assert self.table.discard_many(lanes, batches) == expected
                for lane, blocks in zip(lanes, batches, strict=True):
                    self.model[lane].difference_update(blocks)

        @precondition(lambda self: self.usable())
        @rule(data=st.data())
        def retire(self, data: st.DataObject) -> None:
            lane = data.draw(st.sampled_from(self.usable()))
            self.table.retire(lane)
            self.retired.add(lane)

        @rule(rows=st.sampled_from([1, 700, 5_000]))
        def sweep(self, rows: int) -> None:
            for lane in self.table.sweep(rows):
                assert lane in self.retired
                self.retired.discard(lane)
                self.model[lane].clear()

        @rule(data=st.data(), blocks=BATCHES)
        def ask(self, data: st.DataObject, blocks: array[int]) -> None:
            known = sorted(self.model[data.draw(st.sampled_from(LANES))])
            question = array("Q", known[:40]) + blocks
            lanes = sum(1 << lane for lane in self.usable())
            expected = {lane: held_before_first_hole(self.model[lane], question) for lane in self.usable()}
            assert lengths(self.table, question, lanes) == {lane: length for lane, length in expected.items() if length}
            for lane, length in expected.items():
                assert self.table.run(lane, question, 0) == length

        @invariant()
        def counts_what_is_held(self) -> None:
            if not self.retired:
                assert len(self.table) == len(set().union(*self.model.values()))

    Machine.TestCase.settings = settings(max_examples=25, stateful_step_count=30, deadline=None)
    return Machine


class IndexSuite(ABC):
    """The index over one kind of table."""

    @abstractmethod
    def make(self) -> PrefixIndex: ...

    @pytest.fixture
    def index(self) -> PrefixIndex:
        index = self.make()
        for slot in (0, 1):
            index.attach(slot, capacity_blocks=100, exact=True)
            index.set_state(slot, IndexState.EXACT)
        index.attach(2, capacity_blocks=4, exact=False)
        return index

    def test_announced_blocks_match_up_to_the_first_hole(self, index: PrefixIndex) -> None:
        index.store(0, chain(1, 2, 3, 4))
        index.store(1, chain(1, 2))
        index.remove(0, chain(2))
        assert index.match(chain(1, 2, 3, 4)) == {0: 1, 1: 2}
        assert index.match(chain(1, 2, 3, 4), live_mask=0b10) == {1: 2}
        assert (index.blocks(0), index.blocks(1), len(index)) == (3, 2, 4)

    def test_a_new_worker_earns_nothing_before_it_is_exact(self, index: PrefixIndex) -> None:
        index.attach(5, capacity_blocks=10, exact=True)
        index.store(5, chain(1, 2))
        assert index.state(5) is IndexState.CATCHING_UP
        assert index.match(chain(1, 2)) == {}
        index.set_state(5, IndexState.EXACT)
        assert index.match(chain(1, 2)) == {5: 2}

    def test_degraded_by_its_follower_or_by_the_self_check_a_worker_earns_nothing(self, index: PrefixIndex) -> None:
        index.store(0, chain(1))
        index.speculate(0, chain(1, 2), 0.0)
        index.withhold(0, True)
        assert (index.state(0), index.match(chain(1, 2))) == (IndexState.DEGRADED, {})
        index.withhold(0, False)
        assert index.match(chain(1, 2)) == {0: 2}
        index.set_state(0, IndexState.DEGRADED)
        assert index.match(chain(1, 2)) == {}

    def test_a_dispatched_prompt_counts_at_once_and_is_confirmed_by_its_event(self, index: PrefixIndex) -> None:
        index.store(0, chain(1))
        index.speculate(0, chain(1, 2, 3), 0.0)
        assert index.match(chain(1, 2, 3, 4)) == {0: 3}
        index.store(0, chain(2, 3))
        assert index.guesses(0) == 0
        index.expire(1_000.0)
        assert index.match(chain(1, 2, 3, 4)) == {0: 3}

    def test_a_guess_that_no_event_confirms_is_forgotten(self, index: PrefixIndex) -> None:
        index.speculate(0, chain(1, 2, 3), 10.0)
        index.expire(12.0)
        assert index.match(chain(1, 2, 3)) == {0: 3}
        index.expire(16.0)
        assert index.match(chain(1, 2, 3)) == {}

    def test_a_guess_that_an_event_contradicts_is_forgotten(self, index: PrefixIndex) -> None:
        index.speculate(0, chain(1, 2, 3), 0.0)
        index.remove(0, chain(2))
        assert index.match(chain(1, 2, 3)) == {0: 1}

    def test_guesses_and_announced_blocks_alternate_in_one_match(self, index: PrefixIndex) -> None:
        index.speculate(0, chain(1, 2, 3, 4, 5), 0.0)
        index.store(0, chain(2, 4))
        assert index.match(chain(1, 2, 3, 4, 5, 6)) == {0: 5}

    def test_without_events_guesses_are_kept_up_to_the_capacity_tail_of_the_oldest_first(self, index: PrefixIndex) -> None:
        index.speculate(2, chain(1, 2, 3), 0.0)
        index.speculate(2, chain(7, 8), 1.0)
        index.expire(1_000.0)
        assert index.match(chain(1, 2, 3)) == {2: 2}
        assert index.match(chain(7, 8, 9)) == {2: 2}
        index.speculate(2, chain(1), 2.0)
        index.speculate(2, chain(5, 6), 3.0)
        assert index.match(chain(1, 2)) == {2: 1}

    def test_a_reused_slot_knows_nothing_of_its_last_holder(self, index: PrefixIndex) -> None:
        index.store(0, chain(1, 2))
        index.speculate(0, chain(1, 2, 3), 0.0)
        index.detach(0)
        assert index.match(chain(1, 2, 3)) == {}
        index.attach(0, capacity_blocks=10, exact=True)
        index.set_state(0, IndexState.EXACT)
        assert index.match(chain(1, 2, 3)) == {}
        index.store(0, chain(1))
        for _ in range(100):
            index.sweep()
        assert index.match(chain(1, 2, 3)) == {0: 1}
        assert len(index) == 1

    def test_several_ranks_earn_the_best_of_them_and_never_their_union(self, index: PrefixIndex) -> None:
        index.store(0, chain(1, 2), rank=0)
        index.store(0, chain(1, 3, 4), rank=1)
        index.store(0, chain(3, 4, 5), rank=0)
        assert index.match(chain(1, 2, 3)) == {0: 3}
        assert index.match(chain(1, 3, 4, 5)) == {0: 4}
        index.clear(0, rank=0)
        assert index.match(chain(1, 3, 4, 5)) == {0: 3}
        assert index.blocks(0) == 3

    def test_a_snapshot_replaces_everything(self, index: PrefixIndex) -> None:
        index.store(0, chain(1, 2, 3))
        index.replace(0, chain(2, 9))
        assert index.match(chain(1)) == {}
        assert index.match(chain(9, 2)) == {0: 2}
        assert index.blocks(0) == 2
