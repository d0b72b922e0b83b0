"""Numbers of deltas, and when a snapshot is due."""

from __future__ import annotations

from array import array

from contract.keyspace import DeltaFlag, Tier, decode_delta
from worker_agent.block_set import Change
from worker_agent.delta_log import DELTA_BLOCKS_MAX, SNAPSHOT_EVERY_DELTAS, SNAPSHOT_EVERY_S, UNSENT_BLOCKS_MAX, DeltaLog


def change(added: int = 0, removed: int = 0, *, cleared: bool = False) -> Change:
    return Change(0, Tier.GPU, 5.0, cleared, array("Q", range(added)), array("Q", range(10**6, 10**6 + removed)))


def begun() -> DeltaLog:
    log = DeltaLog()
    log.begin(7)
    log.snapshot_written(0, 0.0)
    return log


def test_deltas_are_numbered_without_a_hole_and_begin_at_one_in_each_epoch() -> None:
    log = begun()
    log.append([change(3), change(removed=2)])
    log.append([change(1)])
    assert [sequence for sequence, _ in log.unsent] == [1, 2, 3]
    log.begin(8)
    assert log.unsent == []
    log.append([change(1)])
    delta = decode_delta(log.unsent[0][1])
    assert (delta.epoch, delta.sequence, delta.at) == (8, 1, 5.0)


def test_a_large_change_is_cut_into_pieces_of_which_the_first_clears() -> None:
    log = begun()
    log.append([change(2 * DELTA_BLOCKS_MAX + 1, DELTA_BLOCKS_MAX + 1, cleared=True)])
    deltas = [decode_delta(data) for _, data in log.unsent]
    assert [(len(one.added), len(one.removed)) for one in deltas] == [
        (DELTA_BLOCKS_MAX, DELTA_BLOCKS_MAX),
        (DELTA_BLOCKS_MAX, 1),
        (1, 0),
    ]
    assert [one.flags for one in deltas] == [DeltaFlag.CLEAR, DeltaFlag.NONE, DeltaFlag.NONE]


def test_what_is_acknowledged_is_not_sent_again() -> None:
    log = begun()
    log.append([change(1), change(1), change(1)])
    log.acknowledge(2)
    assert [sequence for sequence, _ in log.unsent] == [3]


def test_too_much_at_once_becomes_a_hole_and_a_snapshot() -> None:
    log = begun()
    log.append([change(1)])
    log.append([change(UNSENT_BLOCKS_MAX)])
    assert log.unsent == []
    assert log.snapshot_due
    log.snapshot_written(log.sequence, 0.0)
    log.append([change(1)])
    assert log.unsent[0][0] == 3


def test_a_late_reader_never_has_more_than_a_bounded_number_of_deltas_to_replay() -> None:
    log = begun()
    for _ in range(SNAPSHOT_EVERY_DELTAS):
        log.check_snapshot(0.0)
        assert not log.snapshot_due
        log.append([change(1)])
        log.acknowledge(log.sequence)
    log.check_snapshot(0.0)
    assert log.snapshot_due


def test_an_idle_worker_renews_its_snapshot_before_it_expires() -> None:
    log = begun()
    log.check_snapshot(SNAPSHOT_EVERY_S - 1)
    assert not log.snapshot_due
    log.check_snapshot(SNAPSHOT_EVERY_S)
    assert log.snapshot_due
