"""Registrations and reports from Redis, without blocks: a fleet whose caches are not followed."""

from __future__ import annotations

import asyncio
import contextlib
import logging

import redis.asyncio
from redis.exceptions import RedisError

from contract import keyspace
from controlplane.prefix_index import PrefixIndex
from controlplane.snapshot import FleetSnapshot
from runtime.clock import Clock

log = logging.getLogger(__name__)

SCAN_S = 0.5


class Registrations:
    def __init__(self, redis_url: str, sink: FleetSnapshot, index: PrefixIndex, clock: Clock) -> None:
        self._client = redis.asyncio.Redis.from_url(redis_url, socket_timeout=5.0)
        self._sink = sink
        self._index = index
        self._clock = clock
        self.connected = False
        self.last_word_at = clock.now()
        self.warm = False

    async def run(self) -> None:
        while True:
            try:
                await self._scan()
                self.connected = self.warm = True
                self.last_word_at = self._clock.now()
            except (RedisError, OSError) as error:
                self.connected = False
                log.warning("no word from Redis: %s", error)
            await asyncio.sleep(SCAN_S)

    async def _scan(self) -> None:
        for key in [key async for key in self._client.scan_iter(keyspace.WORKER_PATTERN)]:
            data = await self._client.get(key)
            if data is not None:
                self._register(keyspace.decode_worker(data))
        for _, fields in reversed(await self._client.xrevrange(keyspace.REPORTS, count=200)):
            with contextlib.suppress(keyspace.CodecError, KeyError):
                self._sink.worker_reported(keyspace.decode_report(fields[keyspace.REPORT_FIELD]), self._clock.now())

    def _register(self, record: keyspace.WorkerRecord) -> None:
        new = self._sink.slot_of(record.worker) is None
        slot = self._sink.worker_registered(record, self._clock.now())
        if new:
            self._index.attach(slot, capacity_blocks=record.cache_blocks, exact=False)
