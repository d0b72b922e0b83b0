"""What became of requests, as the router says: the outcomes on Redis, joined to requests by their ids."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from typing import Any

import redis.asyncio
from redis.exceptions import RedisError

from contract import keyspace, outcome
from contract.outcome import Outcome
from loadgen.errors import LoadError

BATCH = 2_000
BLOCK_MS = 100
LATE_S = 10.0
"""How long after a step's last end its last outcome may come."""


class OutcomeReader:
    """Reads the stream from where it ended when `begin` was called. LoadError: Redis does not answer."""

    def __init__(self, client: redis.asyncio.Redis) -> None:
        self._client = client
        self._position: Any = "0"
        self.foreign = 0
        """Records of another build, which cannot be read."""

    async def begin(self) -> None:
        try:
            newest = await self._client.xrevrange(keyspace.OUTCOMES, count=1)
        except (RedisError, OSError) as error:
            raise LoadError(f"the fleet's outcomes cannot be read from Redis: {error}") from None
        self._position = newest[0][0] if newest else "0"

    async def of(self, wanted: Collection[str]) -> list[Outcome]:
        """All outcomes of these requests (one an attempt); returns when each has one, or LATE_S without the rest."""
        missing = set(wanted)
        known = frozenset(wanted)
        found: list[Outcome] = []
        try:
            async with asyncio.timeout(LATE_S):
                while missing:
                    for entry in await self._next():
                        if entry.request_id in known:
                            found.append(entry)
                            missing.discard(entry.request_id)
        except TimeoutError:
            pass
        except (RedisError, OSError) as error:
            raise LoadError(f"the fleet's outcomes cannot be read from Redis: {error}") from None
        return found

    async def _next(self) -> list[Outcome]:
        reply: Any = await self._client.xread({keyspace.OUTCOMES: self._position}, count=BATCH, block=BLOCK_MS)
        entries = reply[0][1] if reply else []
        decoded: list[Outcome] = []
        for position, fields in entries:
            self._position = position
            try:
                decoded.append(outcome.decode(fields[keyspace.OUTCOME_FIELD]))
            except (KeyError, ValueError):
                self.foreign += 1
        return decoded
