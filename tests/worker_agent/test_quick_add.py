"""The one hot command: what it answers, and what becomes of its connection."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import redis.asyncio as aioredis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError

from headway.embedded_redis import RedisServer
from runtime import tls
from tests.fakes.certificates import Authority
from tests.fakes.tls_front import TlsFront
from tests.waiting import turns
from worker_agent.quick_add import QuickAdd, packed

TIMEOUT_S = 5.0


@pytest.fixture
async def client(redis_url: str) -> AsyncIterator[aioredis.Redis]:
    made = aioredis.Redis.from_url(redis_url, socket_timeout=None)
    yield made
    await made.aclose()


@pytest.fixture
async def quick(client: aioredis.Redis) -> AsyncIterator[QuickAdd]:
    made = QuickAdd(client.connection_pool, "s", b"d", entries_max=100, timeout_s=TIMEOUT_S)
    yield made
    await made.close()


async def test_an_entry_is_added_and_its_id_returned(client: aioredis.Redis, quick: QuickAdd) -> None:
    await client.xadd("s", {"d": b""})
    data = bytes(range(256)) * 100
    ids = [await quick.add(data), await quick.add(b"")]
    entries = await client.xrange("s")
    assert [(entry_id, fields[b"d"]) for entry_id, fields in entries[1:]] == list(zip(ids, [data, b""], strict=True))


async def test_a_stream_that_does_not_exist_is_not_made(client: aioredis.Redis, quick: QuickAdd) -> None:
    assert await quick.add(b"x") is None
    assert await client.exists("s") == 0


async def test_several_commands_are_answered_in_their_order(client: aioredis.Redis, quick: QuickAdd) -> None:
    await client.xadd("s", {"d": b""})
    value = bytes(range(256))
    commands = [
        quick.command(b"1"),
        packed("SET", "k", value, "PX", 60_000),
        packed("GETDEL", "k"),
        packed("EXISTS", "k"),
        quick.command(b"2"),
    ]
    first, done, got, there, second = await quick.run(commands)
    assert (done, got, there) == (b"OK", value, 0)
    assert [entry_id for entry_id, _ in (await client.xrange("s"))[1:]] == [first, second]


async def test_one_error_among_several_answers_is_raised_and_the_next_answers_are_the_next_commands(
    client: aioredis.Redis, quick: QuickAdd
) -> None:
    await client.set("s", "no stream")
    with pytest.raises(ResponseError, match="WRONGTYPE"):
        await quick.run([packed("SET", "a", "1"), quick.command(b"x"), packed("SET", "b", "2")])
    assert await quick.run([packed("GET", "a"), packed("GET", "b")]) == [b"1", b"2"]


async def test_an_error_is_raised_and_the_connection_goes_on(client: aioredis.Redis, quick: QuickAdd) -> None:
    await client.set("s", "no stream")
    with pytest.raises(ResponseError, match="WRONGTYPE"):
        await quick.add(b"x")
    connection = quick._connection
    await client.delete("s")
    await client.xadd("s", {"d": b""})
    assert await quick.add(b"x") is not None
    assert quick._connection is connection


async def test_a_connection_that_the_server_closes_is_made_anew(client: aioredis.Redis, quick: QuickAdd) -> None:
    await client.xadd("s", {"d": b""})
    await quick.add(b"x")
    for one in await client.client_list(_type="normal"):
        if one["id"] != str(await client.client_id()):
            await client.client_kill_filter(_id=one["id"])
    try:
        await quick.add(b"y")
    except RedisConnectionError:
        pass  # where the end had not been heard of when it was sent
    assert await quick.add(b"z") is not None


async def test_a_cancelled_question_leaves_no_answer_to_the_next(client: aioredis.Redis, quick: QuickAdd) -> None:
    await client.xadd("s", {"d": b""})
    await quick.add(b"first")
    await client.client_pause(100)
    asking = asyncio.create_task(quick.add(b"cancelled"))
    await turns()
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    added = await quick.add(b"next")
    assert added is not None
    ((_, fields),) = await client.xrange("s", min=added, max=added)
    assert fields[b"d"] == b"next"


async def test_an_answer_that_does_not_come_is_waited_for_so_long_and_not_taken_for_the_next(client: aioredis.Redis) -> None:
    impatient = QuickAdd(client.connection_pool, "s", b"d", entries_max=100, timeout_s=0.05)
    await client.xadd("s", {"d": b""})
    await impatient.add(b"first")
    await client.client_pause(1_000)
    with pytest.raises(TimeoutError):
        await impatient.add(b"late")
    await client.client_unpause()
    added = await impatient.add(b"next")
    assert added is not None
    ((_, fields),) = await client.xrange("s", min=added, max=added)
    assert fields[b"d"] == b"next"
    await impatient.close()


async def test_it_goes_through_tls_with_a_password(own_redis: RedisServer, short_dir: Path) -> None:
    authority = Authority(short_dir, "ours")
    server = authority.issue("server")
    async with aioredis.Redis.from_url(own_redis.url) as direct:
        await direct.xadd("s", {"d": b""})
        await direct.config_set("requirepass", "secret")
    front = TlsFront(own_redis.url.removeprefix("unix://"), tls.server_context(server.cert, server.key))
    await front.start()
    async with aioredis.Redis.from_url(f"rediss://:secret@127.0.0.1:{front.port}/0?ssl_ca_certs={authority.ca}") as client:
        quick = QuickAdd(client.connection_pool, "s", b"d", entries_max=100, timeout_s=TIMEOUT_S)
        data = random.Random(1).randbytes(200_000)
        for _ in range(3):
            added = await quick.add(data)
            assert added is not None
            ((_, fields),) = await client.xrange("s", min=added, max=added)
            assert fields[b"d"] == data
        await quick.close()
    await front.stop()
