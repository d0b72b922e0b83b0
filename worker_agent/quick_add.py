"""One XADD in as few calls as there can be.

A tick of the agent ends with one delta on one stream, on code and data that the processor's caches have forgotten since the
tick before; there each Python function passed through costs. The client's own bound on a write is the dearest of them: a task
for each. So the connection has none, and one timer here bounds the write and its answer.
"""

from __future__ import annotations

import asyncio
from typing import Any, cast

from redis.asyncio.connection import AbstractConnection, ConnectionPool


class QuickAdd:
    """XADD of one field to one stream that must exist, on a connection of its own. Not for use by several tasks at once."""

    def __init__(self, pool: ConnectionPool, stream: str, field: bytes, *, entries_max: int, timeout_s: float) -> None:
        """pool: of connections without a socket_timeout of their own; entries_max: the stream's bound, approximate;
        timeout_s: for everything that an `add` waits for."""
        self._pool = pool
        self._timeout_s = timeout_s
        self._connection: AbstractConnection | None = None
        parts = ("XADD", stream, "NOMKSTREAM", "MAXLEN", "~", str(entries_max), "*", field.decode())
        encoded = [part.encode() for part in parts]
        self._head = b"*%d\r\n" % (len(encoded) + 1) + b"".join(b"$%d\r\n%s\r\n" % (len(part), part) for part in encoded)

    async def add(self, data: bytes) -> bytes | None:
        """The entry's id; None: there is no such stream. RedisError, OSError, TimeoutError: as the client's own commands."""
        async with asyncio.timeout(self._timeout_s):
            if self._connection is None:
                self._connection = cast("AbstractConnection", await cast("Any", self._pool).get_connection())
            # A connection that broke was closed by the call that noticed (one that was cancelled in the middle, too); the
            # next one makes it anew.
            await self._connection.send_packed_command([b"%s$%d\r\n%s\r\n" % (self._head, len(data), data)])
            return cast("bytes | None", await self._connection.read_response())

    async def close(self) -> None:
        if self._connection is not None:
            connection, self._connection = self._connection, None
            await cast("Any", connection).disconnect(nowait=True)
            await self._pool.release(connection)
