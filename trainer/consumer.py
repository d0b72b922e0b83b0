"""Reads outcomes from Redis, from a position on."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Any

import redis.asyncio
from redis.exceptions import ResponseError

from contract import keyspace, outcome
from contract.outcome import Outcome

log = logging.getLogger(__name__)

BATCH_MAX = 2_000
BLOCK_MS = 500


@dataclass(frozen=True, slots=True)
class Read:
    """outcomes: those this build can read; position: of the stream's last entry among them, "" where nothing came."""

    outcomes: list[Outcome] = field(default_factory=list)
    position: str = ""
    unreadable: int = 0


async def read(client: redis.asyncio.Redis, position: str) -> Read:
    """What came after this position, after at most BLOCK_MS. RedisError, OSError.

    A position beyond the stream's end means that Redis has lost it and begun anew: then it is read from its beginning.
    """
    if await _is_beyond(client, position):
        log.warning("the outcome stream has begun anew", extra={"f": {"position": position}})
        position = "0-0"
    reply: Any = await client.xread({keyspace.OUTCOMES: position}, count=BATCH_MAX, block=BLOCK_MS)
    if not reply:
        return Read()
    outcomes, unreadable, last = [], 0, ""
    for identity, fields in reply[0][1]:
        last = identity.decode()
        try:
            outcomes.append(outcome.decode(fields[keyspace.OUTCOME_FIELD]))
        except (ValueError, KeyError):
            unreadable += 1
    return Read(outcomes, last, unreadable)


async def _is_beyond(client: redis.asyncio.Redis, position: str) -> bool:
    if position == "0-0":
        return False
    try:
        info: Any = await client.xinfo_stream(keyspace.OUTCOMES)
    except ResponseError:  # there is none yet
        return False
    last = info["last-generated-id"]
    last = last.decode() if isinstance(last, bytes) else str(last)
    return _order(last) < _order(position)


def _order(position: str) -> tuple[int, int]:
    milliseconds, _, number = position.partition("-")
    return int(milliseconds), int(number or 0)
