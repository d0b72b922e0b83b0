"""The suite over the table that serves and over the plain dictionary that it must equal."""

from __future__ import annotations

from array import array

from controlplane.block_table import BlockTable
from controlplane.index_state import IndexState
from controlplane.prefix_index import BlockChange, PrefixIndex, Table
from proto import fleet_pb2
from tests.suites.dict_table import DictTable
from tests.suites.prefix_index_suite import IndexSuite, TableSuite, chain, table_machine


class TestBlockTable(TableSuite):
    def make(self) -> Table:
        return BlockTable()


class TestDictTable(TableSuite):
    def make(self) -> Table:
        return DictTable()


class TestIndexOverBlockTable(IndexSuite):
    def make(self) -> PrefixIndex:
        return PrefixIndex()


class TestIndexOverDictTable(IndexSuite):
    def make(self) -> PrefixIndex:
        return PrefixIndex(DictTable())


TestBlockTableAgainstTheModel = table_machine(BlockTable).TestCase
TestDictTableAgainstTheModel = table_machine(DictTable).TestCase


def test_states_have_the_numbers_of_the_wire() -> None:
    for state in IndexState:
        name = "INDEX_STATE_UNSPECIFIED" if state is IndexState.UNSPECIFIED else state.name
        assert fleet_pb2.IndexState.Value(name) == state.value


def test_a_batch_applies_the_changes_of_one_worker_in_their_order() -> None:
    index = PrefixIndex()
    for slot in (0, 1):
        index.attach(slot, capacity_blocks=10, exact=True)
        index.set_state(slot, IndexState.EXACT)
    none = chain()
    index.apply(
        [
            BlockChange(0, 0, chain(1, 2), none),
            BlockChange(1, 0, chain(2), none),
            BlockChange(0, 0, none, chain(2)),
            BlockChange(9, 0, chain(1), none),
            BlockChange(0, 0, chain(2, 3), chain(1)),
            BlockChange(0, 0, chain(1), chain(3)),
        ]
    )
    assert index.match(chain(1, 2, 3)) == {0: 2}
    assert index.match(chain(2, 3)) == {0: 1, 1: 1}
    assert (index.blocks(0), index.blocks(1), len(index)) == (2, 1, 2)


def test_a_full_bucket_spills_and_what_spilled_is_found_removed_and_moved() -> None:
    table = BlockTable()
    same_bucket = array("Q", (number << 40 for number in range(1, 50)))
    assert table.add(0, same_bucket) == 49
    assert table.prefixes(same_bucket, 1) == [(1, 49)]
    assert table.discard(0, same_bucket[10:20]) == 10
    assert table.prefixes(same_bucket, 1) == [(1, 10)]
    table.add(0, array("Q", range(1, 3_000)))
    for _ in range(50):
        table.sweep(4_096)
    assert table.prefixes(same_bucket[20:], 1) == [(1, 29)]
    assert len(table) == 39 + 2_999


def test_memory_per_block_is_within_the_bound_at_any_size_of_table() -> None:
    table = BlockTable()
    for start in range(0, 300_000, 512):
        table.add(0, array("Q", ((number * 0x9E3779B97F4A7C15) % 2**64 for number in range(start, start + 512))))
        if len(table) > 20_000:
            assert table.memory_bytes() / len(table) <= 110
