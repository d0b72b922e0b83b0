"""Redis URLs: what cannot be connected to is refused in one sentence, which never holds a password."""

from __future__ import annotations

import pytest

from runtime.redis_url import check_redis_url


@pytest.mark.parametrize(
    "url",
    [
        "redis://user:hush@host:port/0",
        "redis://user:hush@host:99999/0",
        "redis://user:hush@[host/0",
        "redis://:hu/sh@host:6379/0",
        "http://user:hush@host:6379/0",
    ],
)
def test_a_url_that_is_none_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(ValueError, match="--redis-url") as refused:
        check_redis_url("--redis-url", url)
    assert "hu" not in str(refused.value).replace("--redis-url", "")


@pytest.mark.parametrize(
    "url", ["redis://host", "rediss://user:hu%2Fsh@host:6380/1?ssl_ca_certs=/ca", "unix:///run/redis.sock"]
)
def test_others_pass(url: str) -> None:
    check_redis_url("--redis-url", url)
