"""A reference reader of a worker's blocks, written from `contract/keyspace` alone: what a control plane must arrive at."""

from __future__ import annotations

from typing import Any

import redis.asyncio as aioredis

from contract import keyspace
from contract.keyspace import DeltaFlag, Tier

Blocks = dict[tuple[int, Tier], set[int]]
ROUNDS_MAX = 8


class BlockReader:
    """`await read()` brings `blocks` up to what Redis has; `synced` is False while a snapshot is missing."""

    def __init__(self, client: aioredis.Redis, worker: str) -> None:
        self._redis = client
        self._worker = worker
        self.epoch = -1
        self.sequence = -1
        self.blocks: Blocks = {}
        self.synced = False
        self.snapshots_read = 0
        self.holes = 0
        self._stream_id: Any = "0"

    @property
    def gpu(self) -> set[int]:
        """Blocks of rank 0 on its GPU."""
        return self.blocks.get((0, Tier.GPU), set())

    async def read(self) -> None:
        for _ in range(ROUNDS_MAX):
            if not self.synced and not await self._read_snapshot():
                return
            if await self._follow():
                return

    async def ask(self) -> None:
        """Ask the agent for a new snapshot."""
        await self._redis.set(keyspace.resync_key(self._worker), "1", px=keyspace.RESYNC_TTL_MS)

    async def _read_snapshot(self) -> bool:
        data = await self._redis.get(keyspace.snapshot_key(self._worker))
        if data is None:
            return False
        manifest = keyspace.decode_manifest(data)
        blocks: Blocks = {}
        for number in range(manifest.chunks):
            chunk = await self._redis.get(keyspace.snapshot_chunk_key(self._worker, manifest.snapshot_id, number))
            if chunk is None:
                return False
            delta = keyspace.decode_delta(chunk)
            assert delta.flags == DeltaFlag.SNAPSHOT
            assert delta.epoch == manifest.epoch
            held = blocks.setdefault((delta.rank, delta.tier), set())
            assert held.isdisjoint(delta.added), "a block is in two chunks"
            held.update(delta.added)
        assert sum(map(len, blocks.values())) == manifest.blocks
        self.epoch, self.sequence, self.blocks = manifest.epoch, manifest.sequence, blocks
        self._stream_id = manifest.stream_id
        self.synced = True
        self.snapshots_read += 1
        return True

    async def _follow(self) -> bool:
        """False: start again at the manifest."""
        answer = await self._redis.xread({keyspace.blocks_key(self._worker): self._stream_id}, count=100_000)
        for _, entries in answer or []:
            for entry_id, fields in entries:
                delta = keyspace.decode_delta(fields[keyspace.DELTA_FIELD])
                self._stream_id = entry_id
                if delta.epoch == self.epoch and delta.sequence <= self.sequence:
                    continue
                if delta.epoch != self.epoch or delta.sequence != self.sequence + 1:
                    self.holes += 1
                    self.synced = False
                    return False
                self._apply(delta)
        return True

    def _apply(self, delta: keyspace.BlockDelta) -> None:
        held = self.blocks.setdefault((delta.rank, delta.tier), set())
        if delta.flags & DeltaFlag.CLEAR:
            held.clear()
        assert set(delta.added).isdisjoint(delta.removed)
        assert held.isdisjoint(delta.added), "added twice"
        assert held.issuperset(delta.removed), "removed though not there"
        held.difference_update(delta.removed)
        held.update(delta.added)
        self.sequence = delta.sequence
