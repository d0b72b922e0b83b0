"""Numbers a worker's deltas and knows when a snapshot is due. Pure: the publisher moves the bytes.

Within an epoch deltas are 1, 2, 3, ...; a reader that misses one goes back to the snapshot. So a delta may be given up at
any time (its number stays used), as long as a snapshot follows.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator

from contract.keyspace import BLOCKS_ENTRIES_MAX, BlockDelta, DeltaFlag, encode_delta
from worker_agent.block_set import Change

DELTA_BLOCKS_MAX = 16_384
"""Blocks in one delta: 128 KB, so that a reader's event loop takes it in one bite."""
UNSENT_BLOCKS_MAX = 262_144
"""More changed blocks than this are not sent as deltas; a snapshot says it shorter."""
SNAPSHOT_EVERY_DELTAS = BLOCKS_ENTRIES_MAX // 4
"""A late reader replays at most this many deltas, and the stream's bound is never reached before the next snapshot."""
SNAPSHOT_EVERY_S = 3_600.0
"""Keeps the snapshot's own TTL from running out."""


class DeltaLog:
    """One worker's deltas: those not yet acknowledged by Redis, oldest first."""

    def __init__(
        self, *, unsent_blocks_max: int = UNSENT_BLOCKS_MAX, snapshot_every_deltas: int = SNAPSHOT_EVERY_DELTAS
    ) -> None:
        self._unsent_blocks_max = unsent_blocks_max
        self._snapshot_every_deltas = snapshot_every_deltas
        self.epoch = 0
        self.sequence = 0
        """Of the last delta numbered."""
        self.unsent: list[tuple[int, bytes]] = []
        self.snapshot_due = ""
        """Why a snapshot is to be written, "" where none is."""
        self.dropped = 0
        """Deltas given up for a snapshot."""
        self._unsent_blocks = 0
        self._snapshot_sequence = 0
        self._snapshot_at: float | None = None

    def begin(self, epoch: int) -> None:
        """Another run: numbers start again, what is unsent was about the old one."""
        self.epoch, self.sequence = epoch, 0
        self._forget_unsent()
        self._snapshot_sequence = 0
        self.snapshot_due = "new epoch"

    def append(self, changes: list[Change]) -> None:
        """Number and encode what changed."""
        blocks = sum(change.blocks for change in changes)
        if self._unsent_blocks + blocks > self._unsent_blocks_max:
            self.give_up("too many blocks changed at once")
            return
        for change in changes:
            for delta in self._deltas(change):
                self.unsent.append((delta.sequence, encode_delta(delta)))
        self._unsent_blocks += blocks

    def give_up(self, why: str) -> None:
        """Send nothing of what is unsent; readers see the hole and take the snapshot that is due now."""
        self.dropped += len(self.unsent)
        self._forget_unsent()
        self.sequence += 1
        self.snapshot_due = why

    def marker(self, *, clear: bool) -> bytes:
        """A delta without blocks: makes the stream exist and tells its readers of the epoch."""
        self.sequence += 1
        flags = DeltaFlag.CLEAR if clear else DeltaFlag.NONE
        return encode_delta(BlockDelta(self.epoch, self.sequence, 0.0, flags=flags))

    def acknowledge(self, through: int) -> None:
        """Redis has every delta up to this sequence."""
        self.unsent = [(sequence, data) for sequence, data in self.unsent if sequence > through]
        if not self.unsent:
            self._unsent_blocks = 0

    def want_snapshot(self, why: str) -> None:
        self.snapshot_due = self.snapshot_due or why

    def check_snapshot(self, now: float) -> None:
        """Asks for one when the last is too many deltas or too long ago."""
        if self.sequence - self._snapshot_sequence >= self._snapshot_every_deltas:
            self.want_snapshot("many deltas since the last")
        elif self._snapshot_at is not None and now - self._snapshot_at >= SNAPSHOT_EVERY_S:
            self.want_snapshot("the last is old")

    def snapshot_written(self, sequence: int, now: float) -> None:
        self._snapshot_sequence, self._snapshot_at = sequence, now
        self.snapshot_due = ""

    def _forget_unsent(self) -> None:
        self.unsent.clear()
        self._unsent_blocks = 0

    def _deltas(self, change: Change) -> Iterator[BlockDelta]:
        """One delta, or several where it is too large; only the first clears."""
        empty: array[int] = array("Q")
        flags = DeltaFlag.CLEAR if change.cleared else DeltaFlag.NONE
        for start in range(0, max(1, len(change.added), len(change.removed)), DELTA_BLOCKS_MAX):
            end = start + DELTA_BLOCKS_MAX
            self.sequence += 1
            yield BlockDelta(
                epoch=self.epoch,
                sequence=self.sequence,
                at=change.at,
                added=change.added[start:end] if start < len(change.added) else empty,
                removed=change.removed[start:end] if start < len(change.removed) else empty,
                rank=change.rank,
                tier=change.tier,
                flags=flags,
            )
            flags = DeltaFlag.NONE
