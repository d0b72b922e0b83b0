"""What Redis holds between agents and control plane: registrations, and a stream of block deltas and one snapshot a worker."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from contract.keyspace import BLOCKS_ENTRIES_MAX, BlockDelta, SnapshotManifest, WorkerRecord
from simulation.timeline import Timeline

ASKED_S = 0.02
"""From a request for a snapshot to the agent's answer."""


@dataclass(frozen=True, slots=True)
class BlockSnapshot:
    """Everything one worker holds, as of delta `manifest.sequence`."""

    manifest: SnapshotManifest
    chunks: tuple[BlockDelta, ...]


@dataclass(slots=True)
class _Stream:
    first: int = 1
    """Id of entries[0]."""
    entries: deque[BlockDelta] = field(default_factory=deque)

    @property
    def last(self) -> int:
        return self.first + len(self.entries) - 1


class SimBus:
    """take_snapshot: the agents' answer, by worker; None where it does not answer now."""

    def __init__(self, timeline: Timeline, take_snapshot: Callable[[str], BlockSnapshot | None]) -> None:
        self._timeline = timeline
        self._take_snapshot = take_snapshot
        self._streams: dict[str, _Stream] = {}
        self._snapshots: dict[str, BlockSnapshot] = {}
        self._asked: set[str] = set()
        self.records: dict[str, WorkerRecord] = {}
        """Registrations, by worker."""

    def append(self, worker: str, delta: BlockDelta) -> None:
        stream = self._streams.setdefault(worker, _Stream())
        stream.entries.append(delta)
        if len(stream.entries) > BLOCKS_ENTRIES_MAX:
            stream.entries.popleft()
            stream.first += 1

    def position(self, worker: str) -> str:
        stream = self._streams.get(worker)
        return "0" if stream is None else str(stream.last)

    def next(self, worker: str, after: str) -> tuple[str, BlockDelta] | None:
        """The first entry after id `after` that is still there."""
        stream = self._streams.get(worker)
        if stream is None:
            return None
        wanted = max(int(after) + 1, stream.first)
        return (str(wanted), stream.entries[wanted - stream.first]) if wanted <= stream.last else None

    def snapshot(self, worker: str) -> BlockSnapshot | None:
        return self._snapshots.get(worker)

    def ask(self, worker: str) -> None:
        """For a new snapshot."""
        if worker not in self._asked:
            self._asked.add(worker)
            self._timeline.after(ASKED_S, self._answer, worker)

    def _answer(self, worker: str) -> None:
        self._asked.discard(worker)
        snapshot = self._take_snapshot(worker)
        if snapshot is not None:
            self._snapshots[worker] = snapshot
