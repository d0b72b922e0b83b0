"""A worker's agent as far as Redis can tell: writes what contract/keyspace.py says, from a block set that a test moves."""

from __future__ import annotations

import time
from array import array
from collections.abc import Iterable

import redis

from contract import keyspace
from contract.keyspace import BlockDelta, DeltaFlag, EngineReport, EngineState, ModelCard, SnapshotManifest, Tier, WorkerRecord


class FakeAgent:
    """Synchronous; every call is on Redis when it returns."""

    def __init__(
        self,
        url: str,
        worker: str,
        *,
        epoch: int = 1,
        sends_kv_events: bool = True,
        capacity_blocks: int = 100_000,
        ranks: int = 1,
    ) -> None:
        self.redis = redis.Redis.from_url(url)
        self.worker = worker
        self.epoch = epoch
        self.sends_kv_events = sends_kv_events
        self.capacity_blocks = capacity_blocks
        self.ranks = ranks
        self.blocks: set[int] = set()
        self.sequence = 0
        self.reports = 0
        self.snapshots = 0
        self.stream_id = "0"

    def close(self) -> None:
        self.redis.close()

    def register(self, ttl_ms: int = 60_000) -> None:
        record = WorkerRecord(
            worker=self.worker,
            url=f"http://{self.worker}",
            epoch=self.epoch,
            models=(ModelCard("m", "m", "m", 4096),),
            block_size=16,
            cache_blocks=self.capacity_blocks,
            sends_kv_events=self.sends_kv_events,
            ttl_ms=ttl_ms,
            engine_version="0.32.0",
            data_parallel_size=self.ranks,
            named_ranks=self.ranks if self.ranks > 1 else 0,
        )
        self.redis.set(keyspace.worker_key(self.worker), keyspace.encode_worker(record), px=ttl_ms)

    def report(self, *, state: EngineState = EngineState.READY, exact: bool = True, delta_sequence: int | None = None) -> None:
        self.reports += 1
        report = EngineReport(
            worker=self.worker,
            epoch=self.epoch,
            sequence=self.reports,
            state=state,
            scrape_age_s=0.0,
            delta_sequence=self.sequence if delta_sequence is None else delta_sequence,
            blocks_exact=exact,
        )
        self.redis.xadd(keyspace.REPORTS, {keyspace.REPORT_FIELD: keyspace.encode_report(report)}, maxlen=20_000)

    def delta(
        self,
        added: Iterable[int] = (),
        removed: Iterable[int] = (),
        *,
        send: bool = True,
        tier: Tier = Tier.GPU,
        rank: int = 0,
        flags: DeltaFlag = DeltaFlag.NONE,
    ) -> None:
        """One delta. send False: it is lost on its way, as are the bytes of a Redis that dies."""
        add, remove = array("Q", added), array("Q", removed)
        self.sequence += 1
        if tier is Tier.GPU:
            if flags & DeltaFlag.CLEAR:
                self.blocks.clear()
            self.blocks.difference_update(remove)
            self.blocks.update(add)
        if send:
            delta = BlockDelta(self.epoch, self.sequence, time.time(), add, remove, rank, tier, flags)
            entry = self.redis.xadd(keyspace.blocks_key(self.worker), {keyspace.DELTA_FIELD: keyspace.encode_delta(delta)})
            self.stream_id = bytes(entry).decode()  # type: ignore[arg-type]

    def snapshot(self, *, chunk_blocks: int = keyspace.SNAPSHOT_CHUNK_BLOCKS, lose_chunk: int | None = None) -> None:
        self.snapshots += 1
        blocks = list(self.blocks)
        chunks = [blocks[start : start + chunk_blocks] for start in range(0, len(blocks), chunk_blocks)]
        for number, chunk in enumerate(chunks):
            if number != lose_chunk:
                delta = BlockDelta(self.epoch, self.sequence, 0.0, array("Q", chunk), flags=DeltaFlag.SNAPSHOT)
                key = keyspace.snapshot_chunk_key(self.worker, self.snapshots, number)
                self.redis.set(key, keyspace.encode_delta(delta))
        manifest = SnapshotManifest(
            epoch=self.epoch,
            sequence=self.sequence,
            snapshot_id=self.snapshots,
            chunks=len(chunks),
            blocks=len(blocks),
            stream_id=self.stream_id,
        )
        self.redis.set(keyspace.snapshot_key(self.worker), keyspace.encode_manifest(manifest))

    def asked(self) -> bool:
        """Whether a reader asked for a snapshot since the last call."""
        return self.redis.getdel(keyspace.resync_key(self.worker)) is not None

    def restart(self, epoch: int) -> None:
        """The engine came back, empty; registered and with a snapshot, as a real agent is before its first delta."""
        self.epoch, self.sequence, self.reports = epoch, 0, 0
        self.blocks.clear()
        self.register()
        self.snapshot()

    def begin(self) -> None:
        """What a real agent does first."""
        self.register()
        self.snapshot()
        self.report()
