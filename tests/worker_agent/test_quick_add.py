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
from worker_agent.quick_add import QuickAdd, _Line


@pytest.fixture
async def client(redis_url: str) -> AsyncIterator[aioredis.Redis]:
    made = aioredis.Redis.from_url(redis_url)
    yield made
    await made.aclose()


@pytest.fixture
async def quick(client: aioredis.Redis) -> AsyncIterator[QuickAdd]:
    made = QuickAdd(client.connection_pool, "s", b"d", entries_max=100, answer_timeout_s=5.0)
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


async def test_an_error_is_raised_and_the_connection_goes_on(client: aioredis.Redis, quick: QuickAdd) -> None:
    await client.set("s", "no stream")
    with pytest.raises(ResponseError, match="WRONGTYPE"):
        await quick.add(b"x")
    line = quick._line
    await client.delete("s")
    await client.xadd("s", {"d": b""})
    assert await quick.add(b"x") is not None
    assert quick._line is line


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


async def test_an_answer_that_comes_too_late_is_not_taken_for_the_next(client: aioredis.Redis) -> None:
    quick = QuickAdd(client.connection_pool, "s", b"d", entries_max=100, answer_timeout_s=0.05)
    await client.xadd("s", {"d": b""})
    await client.client_pause(200)
    with pytest.raises(TimeoutError):
        await quick.add(b"late")
    await client.client_unpause()
    quick._answer_timeout_s = 5.0
    added = await quick.add(b"next")
    assert added is not None
    ((_, fields),) = await client.xrange("s", min=added, max=added)
    assert fields[b"d"] == b"next"
    await quick.close()


async def test_a_cancelled_question_leaves_no_answer_to_the_next(client: aioredis.Redis, quick: QuickAdd) -> None:
    await client.xadd("s", {"d": b""})
    await quick.add(b"first")
    await client.client_pause(100)
    asking = asyncio.create_task(quick.add(b"cancelled"))
    await asyncio.sleep(0)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    added = await quick.add(b"next")
    assert added is not None
    ((_, fields),) = await client.xrange("s", min=added, max=added)
    assert fields[b"d"] == b"next"


async def test_it_goes_through_tls_with_a_password(own_redis: RedisServer, short_dir: Path) -> None:
    authority = Authority(short_dir, "ours")
    server = authority.issue("server")
    async with aioredis.Redis.from_url(own_redis.url) as direct:
        await direct.xadd("s", {"d": b""})
        await direct.config_set("requirepass", "secret")
    front = TlsFront(own_redis.url.removeprefix("unix://"), tls.server_context(server.cert, server.key))
    await front.start()
    async with aioredis.Redis.from_url(f"rediss://:secret@127.0.0.1:{front.port}/0?ssl_ca_certs={authority.ca}") as client:
        quick = QuickAdd(client.connection_pool, "s", b"d", entries_max=100, answer_timeout_s=5.0)
        data = random.Random(1).randbytes(200_000)
        for _ in range(3):
            added = await quick.add(data)
            assert added is not None
            ((_, fields),) = await client.xrange("s", min=added, max=added)
            assert fields[b"d"] == data
        await quick.close()
    await front.stop()


class Wire(asyncio.Transport):
    """Takes what is written to it."""

    def write(self, data: object) -> None:
        pass


def asked() -> tuple[_Line, asyncio.Task[bytes | None]]:
    line = _Line()
    line.connection_made(Wire())
    line.is_open = True
    return line, asyncio.create_task(line.ask(b"question"))


@pytest.mark.parametrize(
    ("answer", "expected"), [(b"$15\r\n1526919030474-5\r\n", b"1526919030474-5"), (b"$-1\r\n", None), (b"_\r\n", None)]
)
async def test_an_answer_in_pieces_is_one_answer(answer: bytes, expected: bytes | None) -> None:
    for cut in range(1, len(answer)):
        line, asking = asked()
        await asyncio.sleep(0)
        line.data_received(answer[:cut])
        line.data_received(answer[cut:])
        assert await asking == expected
    line, asking = asked()
    await asyncio.sleep(0)
    for byte in answer:
        line.data_received(bytes([byte]))
    assert await asking == expected
    assert line.is_open


async def test_what_is_no_answer_ends_the_line() -> None:
    line, asking = asked()
    await asyncio.sleep(0)
    line.data_received(b":1\r\n")
    with pytest.raises(RedisConnectionError, match="no answer to XADD"):
        await asking
    assert not line.is_open


async def test_words_that_nobody_asked_for_end_the_line() -> None:
    line = _Line()
    line.connection_made(Wire())
    line.is_open = True
    line.data_received(b"+hello\r\n")
    assert not line.is_open
