"""The Redis side alone: bounded streams, late readers, a Redis that stalls."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import AsyncIterator

import msgspec
import pytest
import redis.asyncio as aioredis

from contract import keyspace
from contract.keyspace import EngineReport, EngineState, ModelCard, WorkerRecord
from headway.embedded_redis import RedisServer
from tests.suites.block_reader import BlockReader
from tests.worker_agent.conftest import BLOCK, prompt
from tests.worker_agent.test_block_set import batch, removed, stored
from worker_agent.block_set import BlockSet
from worker_agent.publisher import Bounds, Publisher

RECORD = WorkerRecord(
    worker="w1",
    url="http://x",
    epoch=1,
    models=(ModelCard("m", "m", "m", 10),),
    block_size=BLOCK,
    cache_blocks=10,
    sends_kv_events=True,
)
REPORT = EngineReport(worker="w1", epoch=1, sequence=0, state=EngineState.READY, scrape_age_s=0.0)


@pytest.fixture
async def publisher(redis_url: str, request: pytest.FixtureRequest) -> AsyncIterator[Publisher]:
    """Its bounds are the test's, where it has some: those that it can reach."""
    made = Publisher(redis_url, "w1", ids=random.Random(1), bounds=getattr(request, "param", Bounds()))
    made.begin(1)
    yield made
    await made.close()


@pytest.fixture
async def reader(redis_url: str) -> AsyncIterator[BlockReader]:
    client = aioredis.Redis.from_url(redis_url)
    yield BlockReader(client, "w1")
    await client.aclose()


@pytest.fixture
def block_set() -> BlockSet:
    made = BlockSet("m", BLOCK)
    made.begin(0, 0.0)
    return made


async def test_a_report_says_which_delta_a_reader_should_have(
    publisher: Publisher, reader: BlockReader, block_set: BlockSet, redis_url: str
) -> None:
    await publisher.publish(0.0, RECORD, REPORT, block_set)
    block_set.apply(0, batch(stored([1], prompt(1, 1))))
    assert await publisher.publish(0.1, RECORD, REPORT, block_set)
    async with aioredis.Redis.from_url(redis_url) as client:
        reports = [keyspace.decode_report(fields[b"r"]) for _, fields in await client.xrange(keyspace.REPORTS)]
    await reader.read()
    assert [report.sequence for report in reports] == [1, 2]
    assert reports[-1].delta_sequence == reader.sequence


@pytest.mark.parametrize("publisher", [Bounds(snapshot_every_deltas=40, entries_max=100)], indirect=True, ids=[""])
async def test_the_stream_is_bounded_and_a_late_reader_still_exact(
    publisher: Publisher, reader: BlockReader, block_set: BlockSet, redis_url: str
) -> None:
    for number in range(500):
        block_set.apply(0, batch(stored([number], prompt(number, 1))))
        if number >= 20:
            block_set.apply(0, batch(removed(number - 20)))
        await publisher.publish(number * 0.015, RECORD, None, block_set)
    async with aioredis.Redis.from_url(redis_url) as client:
        assert await client.xlen(keyspace.blocks_key("w1")) < 300
    await reader.read()
    assert reader.gpu == block_set.held()
    assert len(reader.gpu) == 20
    assert (reader.snapshots_read, reader.holes) == (1, 0)


@pytest.mark.parametrize("publisher", [Bounds(chunk_blocks=3)], indirect=True, ids=[""])
async def test_a_snapshot_of_many_blocks_comes_in_chunks_and_replaces_the_one_before(
    publisher: Publisher, reader: BlockReader, block_set: BlockSet, redis_url: str
) -> None:
    block_set.apply(0, batch(stored(list(range(10)), prompt(1, 10))))
    await publisher.publish(0.0, RECORD, REPORT, block_set)
    await reader.read()
    assert reader.gpu == block_set.held()
    await reader.ask()
    await publisher.publish(0.1, RECORD, REPORT, block_set)
    assert publisher.snapshots == 2
    async with aioredis.Redis.from_url(redis_url) as client:
        keys = await client.keys(keyspace.snapshot_key("w1") + ":*")
        lives = sorted([await client.pttl(key) for key in keys])
    assert len(lives) == 8, "the old chunks stay a while for whoever is reading them"
    assert lives[3] <= 30_000 < lives[4]


async def test_a_redis_that_stalls_gets_nothing_twice_and_misses_nothing(own_redis: RedisServer) -> None:
    publisher = Publisher(own_redis.url, "w1", ids=random.Random(1), bounds=Bounds(answer_timeout_s=0.2))
    client = aioredis.Redis.from_url(own_redis.url)
    block_set = BlockSet("m", BLOCK)
    block_set.begin(0, 0.0)
    reader = BlockReader(client, "w1")
    publisher.begin(1)
    assert await publisher.publish(0.0, RECORD, REPORT, block_set)
    await reader.read()
    os.kill(own_redis.pid, signal.SIGSTOP)
    try:
        block_set.apply(0, batch(stored([1], prompt(1, 1))))
        assert not await publisher.publish(1.0, RECORD, REPORT, block_set)
        block_set.apply(0, batch(stored([2], prompt(2, 1)), removed(1)))
        assert not await publisher.publish(3.0, RECORD, None, block_set)
        assert not await publisher.publish(3.01, RECORD, None, block_set), "a failure is not retried at once"
    finally:
        os.kill(own_redis.pid, signal.SIGCONT)
    assert await publisher.publish(9.0, RECORD, REPORT, block_set)
    await reader.read()
    assert reader.gpu == block_set.held()
    assert len(reader.gpu) == 1
    assert reader.epoch == 1
    await publisher.close()
    await client.aclose()


@pytest.mark.parametrize("publisher", [Bounds(unsent_blocks_max=5)], indirect=True, ids=[""])
async def test_more_changes_than_deltas_should_carry_become_a_snapshot(
    publisher: Publisher, reader: BlockReader, block_set: BlockSet
) -> None:
    await publisher.publish(0.0, RECORD, REPORT, block_set)
    await reader.read()
    block_set.apply(0, batch(stored(list(range(10)), prompt(1, 10))))
    await publisher.publish(0.1, RECORD, REPORT, block_set)
    block_set.apply(0, batch(stored([99], prompt(2, 1))))
    await publisher.publish(0.2, RECORD, REPORT, block_set)
    await reader.read()
    assert reader.gpu == block_set.held()
    assert (reader.holes, reader.snapshots_read) == (1, 2)


async def test_a_wrong_value_under_our_stream_key_is_waited_out(
    publisher: Publisher, block_set: BlockSet, redis_url: str
) -> None:
    async with aioredis.Redis.from_url(redis_url) as client:
        await client.set(keyspace.blocks_key("w1"), "not a stream")
        assert not await publisher.publish(0.0, RECORD, REPORT, block_set)
        await client.delete(keyspace.blocks_key("w1"))
    assert await publisher.publish(5.0, RECORD, REPORT, block_set)


async def test_a_name_that_another_engine_has_is_waited_for_and_nothing_of_it_is_touched(
    publisher: Publisher, redis_url: str, block_set: BlockSet, caplog: pytest.LogCaptureFixture
) -> None:
    theirs = Publisher(redis_url, "w1", ids=random.Random(2))
    other = msgspec.structs.replace(RECORD, url="http://y", epoch=2)
    ours = BlockSet("m", BLOCK)
    ours.begin(0, 0.0)
    theirs.begin(2)
    assert await theirs.publish(0.0, other, REPORT, block_set)
    for number in range(3):
        assert not await publisher.publish(float(10 * number), RECORD, REPORT, ours)
    assert await publisher.leave(REPORT)  # of what it never had
    async with aioredis.Redis.from_url(redis_url) as client:
        kept = await client.get(keyspace.worker_key("w1"))
        assert kept is not None
        assert keyspace.decode_worker(kept).url == "http://y"
        assert await client.xlen(keyspace.REPORTS) == 1
    (said,) = [record for record in caplog.records if record.levelname == "ERROR"]
    assert "names of workers must differ" in said.message
    assert await theirs.leave(REPORT)
    assert await publisher.publish(100.0, RECORD, REPORT, ours)
    await theirs.close()


async def test_an_agent_that_comes_back_for_the_same_engine_takes_its_name_at_once(
    publisher: Publisher, redis_url: str, block_set: BlockSet
) -> None:
    killed = Publisher(redis_url, "w1", ids=random.Random(2))
    killed.begin(2)
    assert await killed.publish(0.0, msgspec.structs.replace(RECORD, epoch=2), REPORT, block_set)
    await killed.close()
    again = BlockSet("m", BLOCK)
    again.begin(0, 0.0)
    assert await publisher.publish(0.0, RECORD, REPORT, again)
