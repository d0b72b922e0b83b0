"""One XADD in as few calls as there can be.

A tick of the agent ends with one delta on one stream, on code and data that the processor's caches have forgotten since the
tick before; there each Python function passed through costs. So the client's connection is made by the client (address, TLS,
password, database), and then spoken on directly: bytes to the transport, the answer from its protocol. That also keeps clear
of the client's `asyncio.wait_for` (see runtime/tasks.py).
"""

from __future__ import annotations

import asyncio
from typing import Any, cast

from redis.asyncio.connection import AbstractConnection, ConnectionPool
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError

END = b"\r\n"


class QuickAdd:
    """XADD of one field to one stream that must exist, on a connection of its own. Not for use by several tasks at once."""

    def __init__(self, pool: ConnectionPool, stream: str, field: bytes, *, entries_max: int, answer_timeout_s: float) -> None:
        """entries_max: the stream's bound, approximate."""
        self._pool = pool
        self._answer_timeout_s = answer_timeout_s
        self._connection: AbstractConnection | None = None
        self._line = _Line()
        parts = ("XADD", stream, "NOMKSTREAM", "MAXLEN", "~", str(entries_max), "*", field.decode())
        encoded = [part.encode() for part in parts]
        self._head = b"*%d\r\n" % (len(encoded) + 1) + b"".join(b"$%d\r\n%s\r\n" % (len(part), part) for part in encoded)

    async def add(self, data: bytes) -> bytes | None:
        """The entry's id; None: there is no such stream. RedisError, OSError, TimeoutError: as the client's own commands."""
        if not self._line.is_open:
            await self._connect()
        try:
            async with asyncio.timeout(self._answer_timeout_s):
                return await self._line.ask(b"%s$%d\r\n%s\r\n" % (self._head, len(data), data))
        except ResponseError:
            raise
        except BaseException:
            # An answer that comes later would be taken for that to the next question.
            self._line.is_open = False
            raise

    async def close(self) -> None:
        self._line.is_open = False
        if self._connection is not None:
            connection, self._connection = self._connection, None
            await cast("Any", connection).disconnect(nowait=True)
            await self._pool.release(connection)

    async def _connect(self) -> None:
        await self.close()
        self._connection = cast("AbstractConnection", await cast("Any", self._pool).get_connection())
        self._line = _Line()
        transport = cast("asyncio.Transport", cast("Any", self._connection)._writer.transport)
        transport.set_protocol(self._line)
        self._line.connection_made(transport)
        self._line.is_open = not transport.is_closing()


class _Line(asyncio.Protocol):
    """One question at a time, whose answer is an id, nothing, or an error."""

    def __init__(self) -> None:
        self.is_open = False
        self._transport: asyncio.Transport | None = None
        self._answer: asyncio.Future[bytes | None] | None = None
        self._received = b""

    async def ask(self, question: bytes) -> bytes | None:
        if self._transport is None or not self.is_open:
            raise RedisConnectionError("connection closed by server")
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(question)
        return await self._answer

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        received = self._received = self._received + data if self._received else data
        if not received.endswith(END) or (received[:1] == b"$" and received[:2] != b"$-" and received.count(END) < 2):
            return  # the rest is on its way
        self._received = b""
        answer = self._answer
        if answer is None or answer.done():
            self.is_open = False  # said without being asked: not a line that can be trusted
        elif received[:1] == b"$":
            answer.set_result(None if received[:2] == b"$-" else received.split(END)[1])
        elif received[:1] == b"_":
            answer.set_result(None)
        elif received[:1] == b"-":
            answer.set_exception(ResponseError(received[1:-2].decode(errors="replace")))
        else:
            self.is_open = False
            answer.set_exception(RedisConnectionError(f"no answer to XADD: {received[:40]!r}"))

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_open = False
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(RedisConnectionError(str(exc or "connection closed by server")))
