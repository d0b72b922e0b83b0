"""The outcome log against a real Redis: in order, in batches, through an outage, within its bound."""

from __future__ import annotations

import asyncio

import redis
import redis.asyncio

from contract import keyspace, outcome
from contract.outcome import Outcome
from controlplane.outcomes import BATCH_MAX, OutcomeLog
from headway.embedded_redis import RedisServer
from tests.controlplane.parts import Plant, question
from tests.waiting import until


def records(count: int) -> list[Outcome]:
    plant = Plant(1)
    for number in range(count):
        plant.end(plant.place(question(1), question_id=number))
    return plant.outcomes


def stored(url: str) -> list[Outcome]:
    with redis.Redis.from_url(url) as client:
        entries = client.xrange(keyspace.OUTCOMES)
    return [outcome.decode(fields[keyspace.OUTCOME_FIELD]) for _, fields in entries]  # type: ignore[union-attr,index]


async def test_records_arrive_in_order_and_whole(redis_url: str) -> None:
    made = records(BATCH_MAX + 10)
    async with redis.asyncio.Redis.from_url(redis_url) as client:
        log = OutcomeLog(client)
        for record in made:
            log.put(record)
        task = asyncio.create_task(log.run())
        await until(lambda: log.written == len(made))
        task.cancel()
    assert stored(redis_url) == made


async def test_records_wait_while_redis_is_away(own_redis: RedisServer) -> None:
    made = records(3)
    async with redis.asyncio.Redis.from_url(own_redis.url) as client:
        log = OutcomeLog(client)
        task = asyncio.create_task(log.run())
        own_redis.kill()
        for record in made:
            log.put(record)
        await until(lambda: log.failed_writes > 0)
        assert log.written == 0
        own_redis.start()
        await until(lambda: log.written == 3)
        task.cancel()
    assert stored(own_redis.url) == made


async def test_beyond_its_bound_the_oldest_are_dropped_and_counted(redis_url: str) -> None:
    made = records(5)
    async with redis.asyncio.Redis.from_url(redis_url) as client:
        log = OutcomeLog(client, buffer_max=3)
        for record in made:
            log.put(record)
        assert (len(log), log.dropped) == (3, 2)
        await log.close()
    assert stored(redis_url) == made[2:]
