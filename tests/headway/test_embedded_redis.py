"""The Redis of our own starts, serves, dies and starts again on the same socket."""

from __future__ import annotations

import redis

from headway.embedded_redis import RedisServer


def test_it_serves_and_forgets_when_killed(own_redis: RedisServer) -> None:
    with redis.Redis.from_url(own_redis.url) as client:
        client.set("a", "1")
        own_redis.kill()
        own_redis.start()
        assert client.get("a") is None
