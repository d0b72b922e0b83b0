"""XREAD as one packed write, against a real Redis."""

from __future__ import annotations

import asyncio
import os
import signal
import time

import pytest
import redis.asyncio as redis
from redis.exceptions import RedisError, ResponseError

from controlplane.quick_read import QuickRead
from headway.embedded_redis import RedisServer
from tests.waiting import turns


async def test_what_is_there_comes_at_once_and_what_comes_later_is_waited_for(own_redis: RedisServer) -> None:
    client = redis.Redis.from_url(own_redis.url)
    reader = QuickRead(own_redis.url, entries_max=2, timeout_s=2.0)
    first = await client.xadd("a", {"d": b"1"})
    await client.xadd("b", {"d": b"2", "e": b"\r\n"})
    assert await reader.read({b"a": "0", b"b": "0"}) == [
        [b"a", [[first, [b"d", b"1"]]]],
        [b"b", [[(await client.xrevrange("b"))[0][0], [b"d", b"2", b"e", b"\r\n"]]]],
    ]
    assert await reader.read({b"a": first}) == []
    assert await reader.read({b"a": first}, 20) == []
    waits = asyncio.create_task(reader.read({b"a": first}, 5_000))
    for _ in range(3):
        await client.xadd("a", {"d": b"3"})
    [(key, entries)] = await waits
    assert key == b"a"
    assert 1 <= len(entries) <= 2
    await reader.close()
    await client.aclose()


async def test_a_key_that_is_no_stream_is_an_error_of_redis_and_the_next_read_is_well(own_redis: RedisServer) -> None:
    client = redis.Redis.from_url(own_redis.url)
    reader = QuickRead(own_redis.url, entries_max=2, timeout_s=2.0)
    await client.set("a", "text")
    with pytest.raises(ResponseError, match="WRONGTYPE"):
        await reader.read({b"a": "0"})
    assert await reader.read({b"b": "0"}) == []
    await reader.close()
    await client.aclose()


async def test_a_read_that_was_cancelled_leaves_no_answer_behind_for_the_next(own_redis: RedisServer) -> None:
    client = redis.Redis.from_url(own_redis.url)
    reader = QuickRead(own_redis.url, entries_max=2, timeout_s=2.0)
    assert await reader.read({b"a": "0"}) == []
    waits = asyncio.create_task(reader.read({b"a": "0"}, 5_000))
    await turns()  # its command is sent, and nothing will answer for five seconds
    waits.cancel()
    await asyncio.gather(waits, return_exceptions=True)
    await client.xadd("b", {"d": b"2"})
    [(key, _)] = await reader.read({b"b": "0"})
    assert key == b"b"
    await reader.close()
    await client.aclose()


async def test_a_redis_that_says_nothing_is_given_up(own_redis: RedisServer) -> None:
    reader = QuickRead(own_redis.url, entries_max=2, timeout_s=0.3)
    assert await reader.read({b"a": "0"}) == []
    os.kill(own_redis.pid, signal.SIGSTOP)
    began = time.monotonic()
    try:
        with pytest.raises((TimeoutError, RedisError)):
            await reader.read({b"a": "0"}, 100)
    finally:
        os.kill(own_redis.pid, signal.SIGCONT)
    assert time.monotonic() - began < 5.0
    await reader.close()
