"""XREAD in as few calls as there can be: what an idle control plane does most.

The client makes a task for every write that it bounds, packs commands argument by argument, and goes through its pool for each:
0.27 ms of CPU a read of two streams. Here a read is one packed write on a connection that is kept, under one timer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, cast

import redis.asyncio as redis
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from runtime.redis_wire import packed


class QuickRead:
    """XREAD on a connection of its own, which is made with the first read. Not for use by several tasks at once."""

    def __init__(self, url: str, *, entries_max: int, timeout_s: float) -> None:
        """entries_max: of each stream in one read; timeout_s: for everything that a read waits for, beside its own wait."""
        self._entries_max = entries_max
        self._timeout_s = timeout_s
        # Its own bound on a write would be a task for each.
        self._pool = redis.ConnectionPool.from_url(
            url, protocol=2, socket_timeout=None, socket_connect_timeout=timeout_s, retry=Retry(NoBackoff(), 0)
        )
        self._connection: AbstractConnection | None = None
        self._keys: tuple[bytes, ...] = ()
        self._block_ms = -1
        self._head = b""

    async def read(self, streams: Mapping[bytes, bytes | str], block_ms: int = 0) -> list[Any]:
        """Redis's own lists: [[key, [[id, [field, value, ...]], ...]], ...]; empty where nothing came in time. streams: key to
        the entry after which to read; block_ms: how long to wait for a first entry, 0: not at all.

        RedisError, OSError, TimeoutError: as the client's own commands.
        """
        command = self._command(streams, block_ms)
        async with asyncio.timeout(block_ms / 1000 + self._timeout_s):
            connection = self._connection or await self._connect()
            await connection.send_packed_command([command], check_health=False)
            return cast("list[Any] | None", await connection.read_response()) or []

    def _command(self, streams: Mapping[bytes, bytes | str], block_ms: int) -> bytes:
        keys = tuple(streams)
        if keys != self._keys or block_ms != self._block_ms:
            waits: tuple[bytes | int, ...] = (b"BLOCK", block_ms) if block_ms else ()
            head = packed(b"XREAD", b"COUNT", self._entries_max, *waits, b"STREAMS", *keys)
            count, _, rest = head.partition(b"\r\n")
            self._keys, self._block_ms = keys, block_ms
            self._head = b"*%d\r\n%s" % (int(count[1:]) + len(keys), rest)
        ids = [one if isinstance(one, bytes) else one.encode() for one in streams.values()]
        return self._head + b"".join([b"$%d\r\n%s\r\n" % (len(one), one) for one in ids])

    async def close(self) -> None:
        if self._connection is not None:
            connection, self._connection = self._connection, None
            await cast("Any", connection).disconnect(nowait=True)
            await self._pool.release(connection)
        await self._pool.disconnect()

    async def _connect(self) -> AbstractConnection:
        self._connection = cast("AbstractConnection", await cast("Any", self._pool).get_connection())
        return self._connection
