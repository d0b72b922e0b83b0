"""How to reach and keep the exact block set of one worker, as a machine without I/O.

    LOST ──offer(a manifest of this epoch)──▶ LOADING ──loaded──▶ FOLLOWING
      ▲  offer(none, or one that failed): ask the agent, wait       │
      └──────── a hole, another epoch, a missing chunk, behind ◀────┘

What is proven by numbers is trusted: deltas are 1, 2, 3, ... within an epoch, so a follower that has loaded a snapshot of
sequence s and then taken s+1, s+2, ... n has exactly what the agent had at n. What cannot be seen in the stream (its end was
lost, or it went silent) shows in the reports, which carry the last sequence sent.

Nothing that was announced earns credit before the worker is EXACT: a block in a snapshot may have been removed since.
"""

from __future__ import annotations

from enum import Enum

from contract.keyspace import BlockDelta, EngineReport, SnapshotManifest
from controlplane.index_state import IndexState

RETRY_S = 0.1
"""Between two looks for a manifest that is not there yet."""
RETRY_S_MAX = 2.0
BEHIND_S_MAX = 0.1
"""A drained stream that ends below the reported sequence this long: no longer EXACT."""
LOST_S_MAX = 0.5
"""And this long: the missing deltas will not come."""


class Phase(Enum):
    LOST = "lost"
    LOADING = "loading"
    FOLLOWING = "following"


class Offer(Enum):
    """What to do with a manifest, or with its absence."""

    LOAD = "load"
    ASK = "ask"  # ask the agent for a new snapshot, look again later
    RECORD = "record"  # it is of another epoch: read the worker's record, then look again


class Take(Enum):
    """What to do with a delta."""

    APPLY = "apply"
    SKIP = "skip"  # the snapshot covers it
    LOST = "lost"  # a hole: forget the worker's blocks and start again
    FOREIGN = "foreign"  # of another epoch: the same, and read the worker's record


class Follower:
    """One worker in one epoch. `now` is monotonic seconds."""

    def __init__(self, epoch: int, now: float) -> None:
        self.epoch = epoch
        self.phase = Phase.LOST
        self.sequence = 0
        """Of the last delta that is in the index."""
        self.read_from = "0"
        """Stream id after which to read."""
        self.holes = 0
        """How often the worker was lost since this follower began."""
        self._reported = 0
        self._agent_exact = True
        self._caught_up = False
        self._behind_since: float | None = None
        self._needed = 0  # a snapshot below this sequence cannot bridge what is missing from the stream
        self._failed: int | None = None  # a snapshot whose chunks were not there
        self._loading = 0
        self._retry_at = now
        self._retry_s = RETRY_S

    @property
    def state(self) -> IndexState:
        if not self._agent_exact:
            return IndexState.DEGRADED
        return IndexState.EXACT if self.phase is Phase.FOLLOWING and self._caught_up else IndexState.CATCHING_UP

    def due(self, now: float) -> bool:
        """Whether to read the manifest now."""
        return self.phase is Phase.LOST and now >= self._retry_at

    # ------------------------------------------------------------------------------------------------------ snapshot

    def offer(self, manifest: SnapshotManifest | None, now: float) -> Offer:
        """The manifest as Redis has it now. LOAD: load its chunks, then call `loaded` or `lost`."""
        self._retry_at = now + self._retry_s
        if manifest is not None and manifest.epoch != self.epoch:
            return Offer.RECORD
        if manifest is None or manifest.snapshot_id == self._failed or manifest.sequence < self._needed:
            self._retry_s = min(2 * self._retry_s, RETRY_S_MAX)
            return Offer.ASK
        self.phase = Phase.LOADING
        self._loading = manifest.snapshot_id
        self.sequence, self.read_from = manifest.sequence, manifest.stream_id
        return Offer.LOAD

    def loaded(self) -> None:
        """Every chunk is in the index: follow the stream from `read_from`."""
        self.phase = Phase.FOLLOWING
        self._caught_up = False
        self._behind_since = None

    def lost(self, now: float, needed: int = 0) -> None:
        """What the index has of this worker cannot be trusted: the caller clears it.

        needed: the sequence that a snapshot must have reached to help.
        """
        if self.phase is Phase.LOST:
            return
        if self.phase is Phase.LOADING:
            self._failed = self._loading
        self._needed = max(self._needed, needed)
        self.phase = Phase.LOST
        self._caught_up = False
        self._behind_since = None
        self.holes += 1
        self._retry_at = now

    # -------------------------------------------------------------------------------------------------------- stream

    def take(self, delta: BlockDelta, stream_id: str, now: float) -> Take:
        """The next entry of the stream, while FOLLOWING."""
        if delta.epoch != self.epoch:
            self.lost(now)
            self._failed = self._loading  # it does not lead past this entry
            return Take.FOREIGN
        if delta.sequence > self.sequence + 1:
            self.lost(now, delta.sequence - 1)
            return Take.LOST
        self.read_from = stream_id
        if delta.sequence <= self.sequence:
            return Take.SKIP
        self.sequence = delta.sequence
        return Take.APPLY

    def report(self, report: EngineReport) -> None:
        """The agent's own word on this epoch."""
        self._reported = max(self._reported, report.delta_sequence)
        self._agent_exact = report.blocks_exact

    def drained(self, now: float) -> bool:
        """The stream has nothing more for us now. False: we are lost, the caller clears the worker's blocks."""
        if self.phase is not Phase.FOLLOWING:
            return True
        if self.sequence >= self._reported:
            self._caught_up = True
            self._behind_since = None
            self._failed, self._retry_s = None, RETRY_S
            return True
        if self._behind_since is None:
            self._behind_since = now
        behind_s = now - self._behind_since
        if behind_s > LOST_S_MAX:
            self.lost(now, self._reported)
            return False
        if behind_s > BEHIND_S_MAX:
            self._caught_up = False
        return True
