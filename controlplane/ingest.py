"""From Redis into the fleet snapshot and the prefix index; never on a request's path.

One read at a time covers the block streams of all workers that are being followed and waits for their next entries; what a
read brought goes to the index as one batch. Beside it the reports of all workers are read at a pace of their own: they come ten
times a second from each, nothing hurries, and a read costs as much as what ten of them bring. So a fleet at rest wakes nobody
for its blocks. Snapshots load beside both, in slices. While Redis does not answer, the fleet stays as it was: `connected` is
false and `last_word_at` stands still, and whoever expires workers must take that into account.

Every wait is bounded, reads are bounded by COUNT, and a connection that breaks is made again after a short, jittered wait.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any, Protocol, cast

import redis.asyncio as redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError, ResponseError

from contract import keyspace
from contract.keyspace import (
    BlockDelta,
    CodecError,
    DeltaFlag,
    EngineReport,
    EngineState,
    SnapshotManifest,
    Tier,
    WorkerRecord,
)
from controlplane.block_sync import Follower, Offer, Phase, Take
from controlplane.entry_age import EntryAge
from controlplane.index_state import IndexState
from controlplane.prefix_index import BlockChange, PrefixIndex
from controlplane.quick_read import QuickRead
from runtime.clock import Clock
from runtime.tasks import cancelled, stop_if_cancelled

log = logging.getLogger(__name__)

BLOCK_MS = 200
"""How long a read waits for the first entry; a worker that joins in between waits as long at most."""
UNSETTLED_BLOCK_MS = 50
"""The same while some worker's blocks are being read: it joins soon."""
REPORTS_BLOCK_MS = 100
REPORTS_INTERVAL_S = 0.02
"""At least this long from one read of reports to the next: those of many workers share its price."""
READ_INTERVAL_S = 0.005
"""At least this long from read to read unless one was full: entries of many workers share the fixed price of a batch."""
READ_ENTRIES_MAX = 128
"""Of each stream, in one read."""
APPLY_BLOCKS_MAX = 2_048
"""Blocks that go into the index before the event loop has its turn."""
LOADS_MAX = 8
"""Snapshots that load at the same time."""
EVENT_S = 0.05
"""From an engine's step to its agent, rather more: what a report covers at least."""
RECORDS_INTERVAL_S = 1.0
"""Registrations are read again this often: new workers that have not reported, changed model lists."""
RECORD_RETRY_S = 0.05
"""A worker's record is asked for at most this often because of reports or deltas that do not fit it."""
RECONNECT_S_MIN = 0.05
RECONNECT_S_MAX = 1.0
SOCKET_TIMEOUT_S = 3.0
"""A Redis that says nothing for this long is treated as gone."""
WARM_S_MAX = 5.0
"""A worker whose snapshot is not in by then does not keep the control plane from calling itself warm."""

_REPORTS = keyspace.REPORTS.encode()


class FleetSink(Protocol):
    """What the fleet's keeper is told. `now` is monotonic seconds."""

    def worker_registered(self, record: WorkerRecord, now: float) -> int:
        """A worker is there, or its record changed; idempotent. Returns its endpoint number."""

    def worker_reported(self, report: EngineReport, now: float) -> None: ...

    def worker_left(self, worker: str, now: float) -> None:
        """It said goodbye (its silence is for the sink to notice)."""

    def slots_of(self, worker: str) -> tuple[int, ...]:
        """Its endpoint numbers: one, or one a rank (see ranks); none where it is not known."""


class _Followed:
    """A registered worker, and how its blocks are followed. follower None: it sends no events."""

    __slots__ = ("asked_at", "follower", "key", "record", "slots", "state")

    def __init__(self, record: WorkerRecord, slots: tuple[int, ...], follower: Follower | None) -> None:
        self.record = record
        self.slots = slots
        self.follower = follower
        self.key = keyspace.blocks_key(record.worker).encode()
        self.state = IndexState.UNSPECIFIED
        self.asked_at = float("-inf")

    def slot_at(self, rank: int) -> int:
        """Whose blocks those of this rank are. A rank that nobody is sent to is counted with the last, and matches little."""
        return self.slots[min(rank, len(self.slots) - 1)]


class Ingest:
    """The reader. One task: `run`."""

    def __init__(
        self, redis_url: str, sink: FleetSink, index: PrefixIndex, clock: Clock, *, rng: random.Random | None = None
    ) -> None:
        """redis_url: redis://host:port/db or unix:///path; rng: for the jitter of reconnections."""
        self._url = redis_url
        self._sink = sink
        self._index = index
        self._clock = clock
        self._rng = rng or random.Random()
        self._workers: dict[str, _Followed] = {}
        self._by_key: dict[bytes, _Followed] = {}
        self._reports_from: bytes | str = "$"
        self._lay = EntryAge()  # of reports
        self._awaited: list[_Followed] = []  # whose streams were read to their ends, and whose next entries are waited for
        self._loads: set[asyncio.Task[None]] = set()
        self._records_at = float("-inf")
        self._unread: dict[str, float] = {}  # workers that report and are not registered -> when their record was asked for
        self._started_at = clock.now()
        self.on_applied: Callable[[], None] | None = None
        """Called when what a read brought is in the index."""
        self.connected = False
        self.last_word_at = clock.now()
        """Monotonic seconds of Redis's last answer."""
        self.warm = False
        """The registrations and the snapshots of all workers registered then have been read once."""
        self.blocks_applied = 0
        self.holes = 0
        """How often a worker's stream had to be given up for its snapshot."""
        self.bad_entries = 0
        self.apply_lag_s = 0.0
        """Engine's stamp to visible, of the last delta."""

    async def run(self) -> None:
        """Until cancelled."""
        wait_s = RECONNECT_S_MIN
        while True:
            stop_if_cancelled()
            client = redis.Redis.from_url(
                self._url,
                protocol=2,
                socket_timeout=SOCKET_TIMEOUT_S,
                socket_connect_timeout=SOCKET_TIMEOUT_S,
                retry=Retry(NoBackoff(), 0),
            )
            blocks, reports = [QuickRead(self._url, entries_max=READ_ENTRIES_MAX, timeout_s=SOCKET_TIMEOUT_S) for _ in range(2)]
            try:
                await self._connect(client)
                wait_s = RECONNECT_S_MIN
                following = asyncio.create_task(self._follow_blocks(client, blocks), name="blocks")
                try:
                    while not (cancelled() or following.done()):
                        await self._turn(client, reports)
                    if cancelled():
                        raise asyncio.CancelledError
                    await following
                finally:
                    following.cancel()
                    await asyncio.gather(following, return_exceptions=True)
            except (RedisError, OSError, TimeoutError) as error:
                self._note_disconnected(error)
            finally:
                await self._cancel_loads()
                await blocks.close()
                await reports.close()
                await client.aclose(close_connection_pool=True)
            await asyncio.sleep(wait_s * self._rng.uniform(0.5, 1.0))
            wait_s = min(2 * wait_s, RECONNECT_S_MAX)

    # ---------------------------------------------------------------------------------------------------- connection

    async def _connect(self, client: redis.Redis) -> None:
        """Registrations first, then whether the streams still are the ones we were reading."""
        await self._read_records(client)
        await self._check_streams(client)
        if not self.connected:
            log.info("connected to redis", extra={"f": {"workers": len(self._workers)}})
        self.connected = True

    async def _check_streams(self, client: redis.Redis) -> None:
        """A stream that ends before what we have read is another one: Redis came back without it.

        Where it ends at or after, nothing needs to be proven here: its deltas carry on without a hole, or there is one.
        """
        following = [one for one in self._workers.values() if one.follower and one.follower.phase is Phase.FOLLOWING]
        pipe = client.pipeline(transaction=False)
        for key in (_REPORTS, *(one.key for one in following)):
            pipe.execute_command("XREVRANGE", key, "+", "-", "COUNT", 1)
        reports, *streams = await pipe.execute()
        last = _last_id(reports)
        if self._reports_from == "$" or _number(last) < _number(self._reports_from):
            self._reports_from = last
        now = self._clock.now()
        for one, entries in zip(following, streams, strict=True):
            assert one.follower is not None
            if _number(_last_id(entries)) < _number(one.follower.read_from):
                self._lose(one, now)

    def _note_disconnected(self, error: BaseException) -> None:
        if self.connected:
            log.warning("redis does not answer; decisions go on from memory", extra={"f": {"error": error}})
        self.connected = False

    async def _cancel_loads(self) -> None:
        loads = list(self._loads)
        for load in loads:
            load.cancel()
        await asyncio.gather(*loads, return_exceptions=True)
        now = self._clock.now()
        for one in self._workers.values():
            if one.follower is not None and one.follower.phase is Phase.LOADING:
                self._abandon(one, now)

    # ---------------------------------------------------------------------------------------------------------- turn

    async def _turn(self, client: redis.Redis, reports: QuickRead) -> None:
        """The reports since the last one, and what time alone changes."""
        self._start_loads(client, self._clock.now())
        entries: list[Any] = []
        reply = await reports.read({_REPORTS: self._reports_from}, REPORTS_BLOCK_MS)
        self.last_word_at = now = self._clock.now()
        for _, entries in reply:
            for entry_id, fields in entries:
                self._reports_from = entry_id
                await self._take_report(client, entry_id, fields, now)
        for one in self._awaited:
            self._note_drained(one, now)
        await self._upkeep(client, now)
        if len(entries) < READ_ENTRIES_MAX:
            await asyncio.sleep(REPORTS_INTERVAL_S)

    async def _follow_blocks(self, client: redis.Redis, blocks: QuickRead) -> None:
        """The block streams of all workers that are followed, until cancelled or until Redis does not answer."""
        drained: set[tuple[Follower, int]] = set()  # by the last read, each in the life that it had then
        while True:
            stop_if_cancelled()
            following = [
                one for one in self._workers.values() if one.follower is not None and one.follower.phase is Phase.FOLLOWING
            ]
            if not following:
                await asyncio.sleep(UNSETTLED_BLOCK_MS / 1000)
                continue
            settled = all(one.state is not IndexState.CATCHING_UP for one in self._workers.values())
            streams = {one.key: one.follower.read_from for one in following if one.follower is not None}
            self._awaited = [one for one in following if one.follower and (one.follower, one.follower.holes) in drained]
            try:
                reply = await blocks.read(streams, BLOCK_MS if settled else UNSETTLED_BLOCK_MS)
            except ResponseError as error:
                if not await self._set_aside(client, following, error):
                    raise
                continue
            finally:
                self._awaited = []
            now = self._clock.now()
            self.last_word_at = now
            full = await self._take_reply(client, reply, streams, now)
            drained = {(one.follower, one.follower.holes) for one in following if one.follower and one.key not in full}
            if not full:
                await asyncio.sleep(max(0.0, READ_INTERVAL_S - (self._clock.now() - now)))

    async def _set_aside(self, client: redis.Redis, following: list[_Followed], error: ResponseError) -> bool:
        """A key that is no stream fails the read of all: its worker is read anew a little later. False: there is none such."""
        pipe = client.pipeline(transaction=False)
        for one in following:
            pipe.type(one.key)
        kinds = await pipe.execute()
        odd = [one for one, kind in zip(following, kinds, strict=True) if kind not in (b"stream", b"none")]
        now = self._clock.now()
        for one in odd:
            self._note_bad(error)
            self._lose(one, now, again_s=RECORDS_INTERVAL_S)
        return bool(odd)

    async def _take_reply(self, client: redis.Redis, reply: list[Any], streams: Mapping[bytes, str], now: float) -> set[bytes]:
        """Deltas, then who is up to date. Returns the streams that may have more."""
        full: set[bytes] = set()
        changes: list[BlockChange] = []
        pending = 0
        for key, entries in reply:
            if len(entries) >= READ_ENTRIES_MAX:
                full.add(key)
            one = self._by_key.get(key)
            if one is None:
                continue
            for entry_id, delta in self._deltas(entries):
                pending += await self._take_delta(client, one, entry_id, delta, changes, now)
                if pending >= APPLY_BLOCKS_MAX:
                    self._apply(changes)
                    pending = 0
                    await asyncio.sleep(0)
        self._apply(changes)
        for one in list(self._workers.values()):
            if one.key in streams and one.key not in full:
                self._note_drained(one, now)
        return full

    def _deltas(self, entries: list[Any]) -> Iterator[tuple[str, BlockDelta]]:
        for entry_id, fields in entries:
            try:
                yield entry_id.decode(), keyspace.decode_delta(_field(fields, keyspace.DELTA_FIELD))
            except CodecError as error:  # its number is missing now, so its worker will be read anew
                self._note_bad(error)

    async def _take_delta(
        self, client: redis.Redis, one: _Followed, entry_id: str, delta: BlockDelta, changes: list[BlockChange], now: float
    ) -> int:
        """Returns how many blocks it put into `changes`."""
        follower = one.follower
        if follower is None or follower.phase is not Phase.FOLLOWING or not self._attached(one):
            return 0
        take = follower.take(delta, entry_id, now)
        if take is Take.APPLY and delta.tier is Tier.GPU:
            if delta.flags & DeltaFlag.CLEAR:
                self._apply(changes)
                self._index.clear(one.slot_at(delta.rank), delta.rank)
            if delta.added or delta.removed:
                self.apply_lag_s = lag_s = self._clock.unix() - delta.at
                if one.state is IndexState.EXACT:  # else it is old news
                    self._index.lagged(one.slot_at(delta.rank), lag_s)
                at, slot = self._clock.now() - lag_s, one.slot_at(delta.rank)
                changes.append(BlockChange(slot, delta.rank, delta.added, delta.removed, at))
                return len(delta.added) + len(delta.removed)
        elif take in (Take.LOST, Take.FOREIGN):
            self._apply(changes)
            self._forget_blocks(one)
            if take is Take.FOREIGN:
                await self._refresh_record(client, one.record.worker, now)
        return 0

    def _apply(self, changes: list[BlockChange]) -> None:
        if changes:
            self._index.apply(changes)
            self.blocks_applied += sum(len(change.added) + len(change.removed) for change in changes)
            changes.clear()
            if self.on_applied is not None:
                self.on_applied()

    async def _take_report(self, client: redis.Redis, entry_id: bytes, fields: list[bytes], now: float) -> None:
        try:
            report = keyspace.decode_report(_field(fields, keyspace.REPORT_FIELD))
        except CodecError as error:
            self._note_bad(error)
            return
        one = self._workers.get(report.worker)
        if one is None or one.record.epoch != report.epoch or self._sink.slots_of(report.worker) != one.slots:
            if report.state != EngineState.LEAVING:
                await self._refresh_record(client, report.worker, now)
            one = self._workers.get(report.worker)
            if one is None or one.record.epoch != report.epoch:
                return  # of a run that is over, or of a worker that is not registered
        if report.state == EngineState.LEAVING:
            self._leave(one, now)
            return
        entry_ms = _number(entry_id)[0]
        self._sink.worker_reported(report, now - self._lay.of(entry_ms, self._clock.unix()))
        if one.follower is not None:
            one.follower.report(report)
            self._publish_state(one)
            if one.follower.sequence >= report.delta_sequence:
                sent_s_ago = self._clock.unix() - entry_ms / 1000
                for slot in one.slots:
                    self._index.heard(slot, now - sent_s_ago - EVENT_S)

    def _note_drained(self, one: _Followed, now: float) -> None:
        if one.follower is not None:
            if not one.follower.drained(now):
                self._forget_blocks(one)
            self._publish_state(one)

    def _note_bad(self, error: Exception) -> None:
        self.bad_entries += 1
        if self.bad_entries & (self.bad_entries - 1) == 0:
            log.warning("unreadable entry on the bus", extra={"f": {"error": error, "entries": self.bad_entries}})

    # ------------------------------------------------------------------------------------------------ registrations

    async def _upkeep(self, client: redis.Redis, now: float) -> None:
        if now - self._records_at >= RECORDS_INTERVAL_S:
            await self._read_records(client)
            last = _last_id(await _ask(client, "XREVRANGE", _REPORTS, "+", "-", "COUNT", 1))
            if _number(last) < _number(self._reports_from):
                self._reports_from = last  # flushed, and begun again in an earlier millisecond
        if not self.warm:
            waiting = any(one.follower is not None and one.state is IndexState.CATCHING_UP for one in self._workers.values())
            self.warm = not waiting or now - self._started_at > WARM_S_MAX

    async def _read_records(self, client: redis.Redis) -> None:
        """Every registration there is."""
        keys = [key async for key in client.scan_iter(match=keyspace.WORKER_PATTERN, count=1_000)]
        values = await cast("Awaitable[list[bytes | None]]", client.mget(keys)) if keys else []
        now = self._clock.now()
        self.last_word_at = self._records_at = now
        for value in values:
            self._register(value, now)
        for worker in [worker for worker, at in self._unread.items() if now - at > RECORDS_INTERVAL_S]:
            del self._unread[worker]

    async def _refresh_record(self, client: redis.Redis, worker: str, now: float) -> None:
        one = self._workers.get(worker)
        asked_at = self._unread.get(worker, float("-inf")) if one is None else one.asked_at
        if now - asked_at < RECORD_RETRY_S:
            return
        if one is None:
            self._unread[worker] = now
        else:
            one.asked_at = now
        self._register(await _get(client, keyspace.worker_key(worker)), now)

    def _register(self, value: bytes | None, now: float) -> None:
        if value is None:
            return
        try:
            record = keyspace.decode_worker(value)
        except CodecError as error:
            self._note_bad(error)
            return
        one = self._workers.get(record.worker)
        if one is not None and one.record == record and self._sink.slots_of(record.worker) == one.slots:
            return
        self._sink.worker_registered(record, now)
        slots = self._sink.slots_of(record.worker)
        if one is not None and one.slots == slots and _same_cache(one.record, record) and self._attached(one):
            one.record = record
            return
        for other in list(self._workers.values()):
            if other is not one and not set(slots).isdisjoint(other.slots):
                self._drop(other)
        for slot in () if one is None else set(one.slots).difference(slots):
            self._index.detach(slot)
        self._follow(record, slots, now)

    def _follow(self, record: WorkerRecord, slots: tuple[int, ...], now: float) -> None:
        """A worker, or a new run of one: nothing of the run before is credited from here on."""
        for slot in slots:
            blocks = record.cache_blocks // len(slots)
            self._index.attach(slot, capacity_blocks=blocks, exact=record.sends_kv_events)
        one = _Followed(record, slots, Follower(record.epoch, now) if record.sends_kv_events else None)
        self._workers[record.worker] = self._by_key[one.key] = one
        self._publish_state(one)
        log.info(
            "worker registered",
            extra={
                "f": {"worker": record.worker, "url": record.url, "epoch": record.epoch, "kv_events": record.sends_kv_events}
            },
        )
        if 1 < record.data_parallel_size != len(slots):
            log.info(
                "its ranks are one endpoint: it balances over them by itself",
                extra={"f": {"worker": record.worker, "ranks": record.data_parallel_size, "version": record.engine_version}},
            )

    def _leave(self, one: _Followed, now: float) -> None:
        self._drop(one)
        for slot in one.slots:
            self._index.detach(slot)
        self._sink.worker_left(one.record.worker, now)
        self._unread[one.record.worker] = now
        log.info("worker left", extra={"f": {"worker": one.record.worker}})

    def _drop(self, one: _Followed) -> None:
        self._workers.pop(one.record.worker, None)
        self._by_key.pop(one.key, None)

    # ------------------------------------------------------------------------------------------------------ snapshots

    def _start_loads(self, client: redis.Redis, now: float) -> None:
        for one in list(self._workers.values()):
            if len(self._loads) >= LOADS_MAX:
                return
            if (
                one.follower is not None
                and one.follower.due(now)
                and not any(t.get_name() == one.record.worker for t in self._loads)
            ):
                task = asyncio.create_task(self._load(client, one, one.follower), name=one.record.worker)
                self._loads.add(task)
                task.add_done_callback(self._loads.discard)

    async def _load(self, client: redis.Redis, one: _Followed, follower: Follower) -> None:
        """Manifest and chunks into the index, or a request for new ones. A broken connection shows in the main read."""
        try:
            manifest = await self._manifest(client, one.record.worker)
            now = self._clock.now()
            offer = follower.offer(manifest, now)
            if offer is Offer.LOAD and manifest is not None:
                self._forget_blocks(one)
                if await self._load_chunks(client, one, follower, manifest):
                    follower.loaded()
                elif self._current(one, follower):
                    self._abandon(one, self._clock.now())
            elif offer is Offer.RECORD:
                await self._refresh_record(client, one.record.worker, now)
                await client.set(keyspace.resync_key(one.record.worker), "1", px=keyspace.RESYNC_TTL_MS)
            else:
                await client.set(keyspace.resync_key(one.record.worker), "1", px=keyspace.RESYNC_TTL_MS)
        except (RedisError, OSError, TimeoutError):
            if self._current(one, follower) and follower.phase is Phase.LOADING:
                self._abandon(one, self._clock.now())

    async def _manifest(self, client: redis.Redis, worker: str) -> SnapshotManifest | None:
        try:
            data = await _get(client, keyspace.snapshot_key(worker))
            return None if data is None else keyspace.decode_manifest(data)
        except (CodecError, ResponseError) as error:
            self._note_bad(error)
            return None

    async def _load_chunks(self, client: redis.Redis, one: _Followed, follower: Follower, manifest: SnapshotManifest) -> bool:
        """False: a chunk is missing or does not belong, or the worker is no longer followed by this follower."""
        blocks = 0
        for number in range(manifest.chunks):
            data = await _get(client, keyspace.snapshot_chunk_key(one.record.worker, manifest.snapshot_id, number))
            if data is None:
                return False
            try:
                chunk = keyspace.decode_delta(data)
            except CodecError as error:
                self._note_bad(error)
                return False
            blocks += len(chunk.added)
            for start in range(0, len(chunk.added) if chunk.tier is Tier.GPU else 0, APPLY_BLOCKS_MAX):
                if not self._current(one, follower):
                    return False
                blocks_now = chunk.added[start : start + APPLY_BLOCKS_MAX]
                self._index.store(one.slot_at(chunk.rank), blocks_now, chunk.rank)
                await asyncio.sleep(0)
        return blocks == manifest.blocks and self._current(one, follower)

    def _current(self, one: _Followed, follower: Follower) -> bool:
        return self._workers.get(one.record.worker) is one and one.follower is follower and self._attached(one)

    def _attached(self, one: _Followed) -> bool:
        return one.slots[0] in self._index  # they come and go together

    def _lose(self, one: _Followed, now: float, *, again_s: float = 0.0) -> None:
        """again_s: when to look for its snapshot, at the soonest."""
        assert one.follower is not None
        one.follower.lost(now + again_s)
        self._forget_blocks(one)

    def _abandon(self, one: _Followed, now: float) -> None:
        self._lose(one, now)

    def _forget_blocks(self, one: _Followed) -> None:
        if self._attached(one):
            for slot in one.slots:
                self._index.clear(slot)
        if one.follower is not None and one.follower.phase is Phase.LOST:
            self.holes += 1
            log.info("reading a worker's blocks anew", extra={"f": {"worker": one.record.worker, "epoch": one.record.epoch}})
        self._publish_state(one)

    def _publish_state(self, one: _Followed) -> None:
        state = IndexState.SPECULATIVE if one.follower is None else one.follower.state
        if state is not one.state and self._attached(one):
            one.state = state
            for slot in one.slots:
                self._index.set_state(slot, state)


def _same_cache(old: WorkerRecord, new: WorkerRecord) -> bool:
    """Whether a changed record leaves the block set as it is."""
    return (old.epoch, old.block_size, old.cache_blocks, old.sends_kv_events) == (
        new.epoch,
        new.block_size,
        new.cache_blocks,
        new.sends_kv_events,
    )


async def _ask(client: redis.Redis, *command: Any) -> Any:
    return await client.execute_command(*command)  # type: ignore[no-untyped-call]


async def _get(client: redis.Redis, key: str) -> bytes | None:
    return cast("bytes | None", await client.get(key))


def _field(fields: list[bytes], name: bytes) -> bytes:
    """CodecError: no such field."""
    for position in range(0, len(fields) - 1, 2):
        if fields[position] == name:
            return fields[position + 1]
    raise CodecError(f"a stream entry without the field {name.decode()!r}")


def _last_id(entries: Any) -> bytes | str:
    return cast("bytes", entries[0][0]) if entries else "0-0"


def _number(entry_id: bytes | str) -> tuple[int, int]:
    """A stream id as two numbers, which compare as Redis compares them."""
    text = entry_id.decode() if isinstance(entry_id, bytes) else entry_id
    milliseconds, _, sequence = text.partition("-")
    return int(milliseconds), int(sequence or 0)
