"""One XADD, and what goes with a report, in as few calls as there can be.

A tick of the agent ends with one delta on one stream, on code and data that the processor's caches have forgotten since the
tick before; there each Python function passed through costs. The client's own bound on a write is the dearest of them: a task
for each. So the connection has none, and one timer here bounds a write and its answers.
"""

from __future__ import annotations

import asyncio
from typing import Any, cast

from redis.asyncio.connection import AbstractConnection, ConnectionPool
from redis.exceptions import ResponseError

from runtime.redis_wire import packed


class QuickAdd:
    """XADD of one field to one stream that must exist, on a connection of its own. Not for use by several tasks at once."""

    def __init__(self, pool: ConnectionPool, stream: str, field: bytes, *, entries_max: int, timeout_s: float) -> None:
        """pool: of connections without a socket_timeout of their own; entries_max: the stream's bound, approximate;
        timeout_s: for everything that a call waits for."""
        self._pool = pool
        self._timeout_s = timeout_s
        self._connection: AbstractConnection | None = None
        encoded = packed("XADD", stream, "NOMKSTREAM", "MAXLEN", "~", entries_max, "*", field)
        self._head = b"*9" + encoded.removeprefix(b"*8")  # the data comes with each

    def command(self, data: bytes) -> bytes:
        """What `add` sends: for `run`, among others."""
        return b"%s$%d\r\n%s\r\n" % (self._head, len(data), data)

    async def add(self, data: bytes) -> bytes | None:
        """The entry's id; None: there is no such stream. RedisError, OSError, TimeoutError: as the client's own commands."""
        async with asyncio.timeout(self._timeout_s):
            connection = self._connection or await self._connect()
            await connection.send_packed_command([self.command(data)])
            return cast("bytes | None", await connection.read_response())

    async def run(self, commands: list[bytes]) -> list[Any]:
        """The answers to these (`packed`, `command`), in order. Where one is an error it is raised once all are there."""
        refused: ResponseError | None = None
        answers: list[Any] = []
        async with asyncio.timeout(self._timeout_s):
            connection = self._connection or await self._connect()
            await connection.send_packed_command([b"".join(commands)])
            for _ in commands:
                try:
                    answers.append(await connection.read_response())
                except ResponseError as error:
                    refused = refused or error
        if refused is not None:
            raise refused
        return answers

    async def close(self) -> None:
        if self._connection is not None:
            connection, self._connection = self._connection, None
            await cast("Any", connection).disconnect(nowait=True)
            await self._pool.release(connection)

    async def _connect(self) -> AbstractConnection:
        # Once: a connection that broke was closed by the call that noticed (one that was cancelled in the middle, too), and
        # the next write makes it anew.
        self._connection = cast("AbstractConnection", await cast("Any", self._pool).get_connection())
        return self._connection
