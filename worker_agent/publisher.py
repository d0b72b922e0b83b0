"""The Redis shell: everything that leaves the agent, one write a tick.

Changes stay in the block set, where they net out, until Redis takes them: so an absent Redis costs no memory beyond the
cache's own size. A pipeline whose answer was lost may have been carried out; on return the last delta of the stream tells, and
nothing is sent twice. A snapshot is written on every connection, for every epoch, when a reader asks, when Redis lost
something, and often enough that a late reader replays a bounded number of deltas.
"""

from __future__ import annotations

import logging
import random
from dataclasses import dataclass
from typing import Any

import msgspec
import redis.asyncio as aioredis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from contract import keyspace
from contract.keyspace import EngineReport, SnapshotManifest, WorkerRecord
from runtime.redis_wire import packed
from worker_agent.block_set import BlockSet
from worker_agent.delta_log import SNAPSHOT_EVERY_DELTAS, UNSENT_BLOCKS_MAX, DeltaLog
from worker_agent.quick_add import QuickAdd

log = logging.getLogger(__name__)

CONNECT_TIMEOUT_S = 1.0
ANSWER_TIMEOUT_S = 3.0
RETRY_AFTER_S = 0.1
RETRY_AFTER_S_MAX = 1.0
CHECK_EVERY_S = 1.0
"""How often the manifest and the stream are looked for: a flushed Redis is noticed within this."""
OLD_CHUNK_TTL_MS = 30_000
"""How long a reader in the middle of the snapshot before may go on reading it."""
CHUNKS_PER_PIPELINE = 4


@dataclass(frozen=True, slots=True)
class Bounds:
    """entries_max: of the stream; unsent_blocks_max: of deltas that wait, beyond which a snapshot takes their place;
    chunk_blocks: of one key of a snapshot."""

    entries_max: int = keyspace.BLOCKS_ENTRIES_MAX
    snapshot_every_deltas: int = SNAPSHOT_EVERY_DELTAS
    unsent_blocks_max: int = UNSENT_BLOCKS_MAX
    chunk_blocks: int = keyspace.SNAPSHOT_CHUNK_BLOCKS
    answer_timeout_s: float = ANSWER_TIMEOUT_S


USUAL = Bounds()


class NameTaken(Exception):
    """Another agent reports under this worker's name, for another engine."""


class Publisher:
    """url: of the Redis; worker: whose keys these are; ids: names snapshots apart."""

    def __init__(self, url: str, worker: str, *, ids: random.Random, bounds: Bounds = USUAL) -> None:
        self._worker = worker
        self._bounds = bounds
        self._ids = ids
        patience: dict[str, Any] = {"socket_connect_timeout": CONNECT_TIMEOUT_S, "retry": Retry(NoBackoff(), 0)}
        self._redis: aioredis.Redis = aioredis.Redis.from_url(url, socket_timeout=bounds.answer_timeout_s, **patience)
        self._quick_pool = aioredis.ConnectionPool.from_url(url, socket_timeout=None, **patience)
        self._quick = QuickAdd(
            self._quick_pool,
            keyspace.blocks_key(worker),
            keyspace.DELTA_FIELD,
            entries_max=bounds.entries_max,
            timeout_s=bounds.answer_timeout_s,
        )
        self._log = DeltaLog(unsent_blocks_max=bounds.unsent_blocks_max, snapshot_every_deltas=bounds.snapshot_every_deltas)
        self._connected = False
        self._failures = 0
        self._name_taken = False
        self._retry_at = 0.0
        self._check_at = 0.0
        self._stream_id = "0"
        self._stream_exists = False
        self._chunk_keys: list[str] = []
        self._report_sequence = 0
        self.snapshots = 0

    @property
    def connected(self) -> bool:
        return self._connected

    @property
    def deltas(self) -> DeltaLog:
        return self._log

    def begin(self, epoch: int) -> None:
        """Everything from here on is of this epoch."""
        self._log.begin(epoch)
        self._report_sequence = 0

    async def publish(
        self, now: float, record: WorkerRecord, report: EngineReport | None, blocks: BlockSet | None, *, may_wait: bool = False
    ) -> bool:
        """Send what there is: changed blocks, the report where given (with it the registration is renewed). blocks: None where
        the engine sends no events. False: Redis is away, or the name is another's; nothing is lost by it."""
        if now < self._retry_at and not may_wait:
            return False
        try:
            await self._publish(now, record, report, blocks)
        except NameTaken as error:
            self._not_ours(now, record, error)
            return False
        except (RedisError, OSError, TimeoutError) as error:
            self._failed(now, error)
            return False
        if self._failures:
            log.info("redis is back")
            self._failures = 0
        self._name_taken = False
        return True

    async def leave(self, report: EngineReport) -> bool:
        """Say goodbye and take every key of this worker away. False: Redis is away, and the registration's TTL will do it."""
        if self._name_taken:
            return True  # they are another's
        keys = [
            keyspace.worker_key(self._worker),
            keyspace.snapshot_key(self._worker),
            keyspace.resync_key(self._worker),
            keyspace.blocks_key(self._worker),
            *self._chunk_keys,
        ]
        try:
            async with self._redis.pipeline(transaction=True) as pipe:
                entry: dict[Any, Any] = {keyspace.REPORT_FIELD: self._numbered(report)}
                pipe.xadd(keyspace.REPORTS, entry, maxlen=keyspace.REPORTS_ENTRIES_MAX, approximate=True)
                pipe.delete(*keys)
                await pipe.execute()
        except (RedisError, OSError, TimeoutError) as error:
            log.warning("redis is away: the registration will expire", extra={"f": {"error": error}})
            return False
        return True

    async def close(self) -> None:
        await self._quick.close()
        await self._quick_pool.aclose()
        await self._redis.aclose()

    # ------------------------------------------------------------------------------------------------------------ sending

    async def _publish(self, now: float, record: WorkerRecord, report: EngineReport | None, blocks: BlockSet | None) -> None:
        if not self._connected:
            await self._reconnect(record)
        if blocks is not None:
            self._log.check_snapshot(now)
            if self._log.snapshot_due == "new epoch":
                # Before any delta of the epoch: whoever sees one looks for its manifest.
                await self._write_snapshot(now, blocks)
            else:
                self._log.append(blocks.take())
        await self._send(now, record, report, with_blocks=blocks is not None)
        if blocks is not None and self._log.snapshot_due:
            await self._write_snapshot(now, blocks)

    async def _reconnect(self, record: WorkerRecord) -> None:
        """Learn what Redis has of ours, and write the snapshot anew. NameTaken."""
        await self._check_name(record)
        stream = keyspace.blocks_key(self._worker)
        last: Any = await self._redis.xrevrange(stream, count=1)
        self._stream_exists = bool(last)
        self._stream_id = "0"
        if last:
            entry_id, fields = last[0]
            self._stream_id = entry_id.decode()
            self._acknowledge_sent(fields.get(keyspace.DELTA_FIELD, b""))
        if not self._chunk_keys:
            await self._find_old_chunks()
        self._connected = True
        self._log.want_snapshot("connected")

    async def _check_name(self, record: WorkerRecord) -> None:
        """Two that report under one name, such as replicas with one --worker, would take it from each other ten times a second.
        A registration for another engine that is a dead agent's is gone within its TTL. NameTaken."""
        data: Any = await self._redis.get(keyspace.worker_key(self._worker))
        try:
            other = keyspace.decode_worker(data) if data else None
        except keyspace.CodecError:
            other = None
        if other is not None and other.url != record.url:
            raise NameTaken(other.url)

    def _not_ours(self, now: float, record: WorkerRecord, taken: NameTaken) -> None:
        if not self._name_taken:
            log.error(
                "another agent reports under this name: waiting for it to leave; names of workers must differ",
                extra={"f": {"worker": self._worker, "its_engine": taken, "our_engine": record.url}},
            )
        self._name_taken = True
        self._retry_at = now + RETRY_AFTER_S_MAX

    def _acknowledge_sent(self, data: bytes) -> None:
        try:
            delta = keyspace.decode_delta(data)
        except keyspace.CodecError:
            return
        if delta.epoch == self._log.epoch:
            self._log.acknowledge(delta.sequence)

    async def _find_old_chunks(self) -> None:
        """The snapshot of the run before, which its chunks must not outlive."""
        data: Any = await self._redis.get(keyspace.snapshot_key(self._worker))
        try:
            old = keyspace.decode_manifest(data) if data else None
        except keyspace.CodecError:
            old = None
        if old is not None:
            self._chunk_keys = [
                keyspace.snapshot_chunk_key(self._worker, old.snapshot_id, chunk) for chunk in range(min(old.chunks, 10_000))
            ]

    async def _send(self, now: float, record: WorkerRecord, report: EngineReport | None, *, with_blocks: bool) -> None:
        deltas = list(self._log.unsent)
        checking = with_blocks and report is not None and now >= self._check_at
        if not deltas and report is None:
            return
        if report is None and len(deltas) == 1:
            # The usual tick between two reports.
            self._note_deltas(deltas, [await self._quick.add(deltas[0][1])])
            return
        commands = [self._quick.command(data) for _, data in deltas]
        if report is not None:
            bound = ("MAXLEN", "~", keyspace.REPORTS_ENTRIES_MAX, "*")
            said = keyspace.encode_worker(record)
            commands += [
                packed("XADD", keyspace.REPORTS, *bound, keyspace.REPORT_FIELD, self._numbered(report)),
                packed("SET", keyspace.worker_key(self._worker), said, "PX", record.ttl_ms),
                packed("GETDEL", keyspace.resync_key(self._worker)),
            ]
        if checking:
            commands.append(packed("EXISTS", keyspace.snapshot_key(self._worker)))
            commands.append(packed("EXISTS", keyspace.blocks_key(self._worker)))
        answers = await self._quick.run(commands)
        self._note_deltas(deltas, answers[: len(deltas)])
        if report is not None and answers[len(deltas) + 2]:
            self._log.want_snapshot("a reader asked")
        if checking:
            self._check_at = now + CHECK_EVERY_S
            self._note_check(bool(answers[-2]), bool(answers[-1]))

    def _note_deltas(self, deltas: list[tuple[int, bytes]], ids: list[bytes | None]) -> None:
        if not deltas:
            return
        self._log.acknowledge(deltas[-1][0])
        if ids[-1] is not None:
            self._stream_id = ids[-1].decode()
        if None in ids:
            self._stream_exists = False
            self._log.want_snapshot("the stream was lost")

    def _note_check(self, manifest: bool, stream: bool) -> None:
        if not stream:
            self._stream_exists = False
            self._stream_id = "0"
            self._log.want_snapshot("the stream was lost")
        if not manifest:
            self._log.want_snapshot("the manifest was lost")

    def _add_delta(self, pipe: Any, data: bytes, *, create: bool) -> Any:
        return pipe.xadd(
            keyspace.blocks_key(self._worker),
            {keyspace.DELTA_FIELD: data},
            maxlen=self._bounds.entries_max,
            approximate=True,
            nomkstream=not create,
        )

    def _numbered(self, report: EngineReport) -> bytes:
        self._report_sequence += 1
        return keyspace.encode_report(
            msgspec.structs.replace(report, sequence=self._report_sequence, delta_sequence=self._log.sequence)
        )

    # ---------------------------------------------------------------------------------------------------------- snapshots

    async def _write_snapshot(self, now: float, blocks: BlockSet) -> None:
        """Chunks, then the manifest, then, where readers cannot know of it otherwise, a marker on the stream."""
        why = self._log.snapshot_due
        new_epoch = why == "new epoch"
        changes = blocks.take()
        if not new_epoch:
            self._log.append(changes)
        sequence, epoch = self._log.sequence, self._log.epoch
        chunks = list(blocks.chunks(self._bounds.chunk_blocks))  # one instant: the set may change while these are sent
        snapshot_id = self._ids.getrandbits(62)
        keys = [keyspace.snapshot_chunk_key(self._worker, snapshot_id, number) for number in range(len(chunks))]
        for start in range(0, len(chunks), CHUNKS_PER_PIPELINE):
            async with self._redis.pipeline(transaction=False) as pipe:
                for key, (rank, tier, hashes) in zip(keys[start:], chunks[start : start + CHUNKS_PER_PIPELINE], strict=False):
                    delta = keyspace.BlockDelta(
                        epoch, sequence, 0.0, added=hashes, rank=rank, tier=tier, flags=keyspace.DeltaFlag.SNAPSHOT
                    )
                    pipe.set(key, keyspace.encode_delta(delta), px=keyspace.SNAPSHOT_TTL_MS)
                await pipe.execute()
        held = sum(len(hashes) for _, _, hashes in chunks)
        if self._log.epoch != epoch:
            # The engine restarted meanwhile: these chunks are of nobody, and the next round writes the right ones.
            self._chunk_keys += keys
            return
        manifest = SnapshotManifest(
            epoch=epoch,
            sequence=sequence,
            snapshot_id=snapshot_id,
            chunks=len(chunks),
            blocks=held,
            stream_id=self._stream_id,
        )
        await self._write_manifest(manifest, mark=new_epoch or not self._stream_exists)
        self._chunk_keys = keys
        if self._log.epoch == epoch:
            self._log.snapshot_written(sequence, now)
        self.snapshots += 1
        log.debug("snapshot written", extra={"f": {"why": why, "blocks": held, "sequence": sequence}})

    async def _write_manifest(self, manifest: SnapshotManifest, *, mark: bool) -> None:
        stream = keyspace.blocks_key(self._worker)
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.set(keyspace.snapshot_key(self._worker), keyspace.encode_manifest(manifest), px=keyspace.SNAPSHOT_TTL_MS)
            for key in self._chunk_keys:
                pipe.pexpire(key, OLD_CHUNK_TTL_MS)
            if mark:
                # Unsent deltas have lower numbers than a marker has: they are in the snapshot, and go before it.
                for _, data in self._log.unsent:
                    self._add_delta(pipe, data, create=True)
                self._add_delta(pipe, self._log.marker(clear=manifest.blocks == 0), create=True)
            pipe.pexpire(stream, keyspace.SNAPSHOT_TTL_MS)
            answers: list[Any] = await pipe.execute()
        if mark:
            self._log.acknowledge(self._log.sequence)
            self._stream_id = answers[-2].decode()
            self._stream_exists = True

    def _failed(self, now: float, error: Exception) -> None:
        if not self._failures:
            log.warning("redis is away", extra={"f": {"error": f"{type(error).__name__}: {error}"}})
        self._failures += 1
        self._connected = False
        self._retry_at = now + min(RETRY_AFTER_S * 2 ** min(self._failures - 1, 10), RETRY_AFTER_S_MAX)
