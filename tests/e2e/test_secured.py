"""A fleet whose every line is closed: keys for callers, TLS, mTLS between the planes, a Redis behind TLS and a password."""

from __future__ import annotations

import asyncio
import os
import ssl
import sys
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
import redis

from headway.embedded_redis import RedisServer
from runtime import tls
from tests.fakes.certificates import Authority, Pair
from tests.fakes.engine import FakeEngine
from tests.fakes.tls_front import TlsFront
from tests.waiting import until_elsewhere

ROOT = Path(__file__).parents[2]
WAIT_S = 40.0
PASSWORD = "bus-p@ss/word"
Launch = Callable[..., Awaitable[asyncio.subprocess.Process]]


@pytest.fixture
async def launch() -> AsyncIterator[Launch]:
    """Starts processes, with the bus's password in their environment; their stderr is kept in `said`."""
    started: list[asyncio.subprocess.Process] = []

    async def start(*argv: str, **environ: str) -> asyncio.subprocess.Process:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            *argv,
            cwd=ROOT,
            env={**os.environ, "REDIS_PASSWORD": PASSWORD, **environ},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def ready(process: asyncio.subprocess.Process) -> str:
    """Everything up to and with the line that says so."""
    assert process.stderr is not None
    said = ""
    async with asyncio.timeout(WAIT_S):
        async for line in process.stderr:
            said += line.decode()
            if "ready: " in said:
                return said
    raise AssertionError(said)


async def headway(launch: Launch, *argv: str, **environ: str) -> tuple[int, str]:
    process = await launch("headway", *argv, **environ)
    async with asyncio.timeout(WAIT_S):
        out, error = await process.communicate()
    assert process.returncode is not None
    return process.returncode, (out + error).decode()


def get(url: str, context: ssl.SSLContext, key: str = "") -> int:
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {key}"} if key else {})
    try:
        with urllib.request.urlopen(request, context=context, timeout=5) as reply:
            return int(reply.status)
    except urllib.error.HTTPError as error:
        return error.code
    except urllib.error.URLError:
        return 0


def shown(pair: Pair, authority: Authority) -> dict[str, str]:
    """What a `headway` command is told in its environment."""
    return {"HEADWAY_CONTROL_CA": authority.ca, "HEADWAY_CONTROL_CERT": pair.cert, "HEADWAY_CONTROL_KEY": pair.key}


async def test_a_closed_fleet_works_for_those_who_belong_to_it(
    launch: Launch, own_redis: RedisServer, short_dir: Path, free_port: int
) -> None:
    ours, theirs = Authority(short_dir, "ours"), Authority(short_dir, "theirs")
    server, member, stranger = ours.issue("server"), ours.issue("member"), theirs.issue("stranger")
    with redis.Redis.from_url(own_redis.url) as client:
        client.config_set("requirepass", PASSWORD)
    front = TlsFront(own_redis.url.removeprefix("unix://"), tls.server_context(server.cert, server.key))
    await front.start()
    bus = f"rediss://127.0.0.1:{front.port}/0?ssl_ca_certs={ours.ca}"
    engine = FakeEngine()
    await engine.start()
    keys = str(short_dir / "keys")

    plane = await launch(
        *("controlplane", "--listen", "127.0.0.1:0", "--redis-url", bus, "--metrics-port", "0"),
        *("--tls-cert", server.cert, "--tls-key", server.key, "--tls-client-ca", ours.ca),
    )
    agent = await launch("worker_agent", "--worker", "w1", "--engine-url", engine.url, "--redis-url", bus)
    said = await ready(plane)
    control = said.split("gRPC on ")[1].split(",")[0]
    said += await ready(agent)

    code, token = await headway(launch, "keys", "new", "--tenant", "acme", "--keys-file", keys)
    assert code == 0
    proxy = await launch(
        *("dataplane", "--port", str(free_port), "--control", control, "--keys-file", keys),
        *("--control-ca", ours.ca, "--control-cert", member.cert, "--control-key", member.key),
        *("--tls-cert", server.cert, "--tls-key", server.key),
    )
    said += await ready(proxy)
    url, context = f"https://127.0.0.1:{free_port}", tls.client_context(ours.ca)
    await until_elsewhere(lambda: get(url + "/ready", context, token.strip()) == 200, what="the fleet's view came over mTLS")
    assert await asyncio.to_thread(get, url + "/v1/models", context, token.strip()) == 200
    assert await asyncio.to_thread(get, url + "/v1/models", context) == 401

    code, table = await headway(launch, "workers", "--control", control, **shown(member, ours))
    assert code == 0, table
    assert "w1" in table
    for environ in ({}, {"HEADWAY_CONTROL_CA": ours.ca}, {**shown(stranger, theirs), "HEADWAY_CONTROL_CA": ours.ca}):
        code, refused = await headway(launch, "workers", "--control", control, **environ)
        assert code == 2, refused
    assert PASSWORD not in said
    assert token.strip() not in said
    await engine.stop()
    await front.stop()


async def test_keys_are_made_listed_and_revoked(launch: Launch, tmp_path: Path) -> None:
    path = str(tmp_path / "keys")
    _, token = await headway(
        launch, "keys", "new", "--tenant", "acme", "--requests-per-minute", "60", HEADWAY_DATAPLANE_KEYS_FILE=path
    )
    _, listed = await headway(launch, "keys", "list", "--keys-file", path)
    assert "acme" in listed
    assert "requests/min 60" in listed
    assert token.strip() not in listed + Path(path).read_text()  # noqa: ASYNC240 - a small file
    code, said = await headway(launch, "keys", "revoke", listed.split()[0], "--keys-file", path)
    assert (code, said.strip()) == (0, f"revoked {listed.split()[0]}")
    code, said = await headway(launch, "keys", "revoke", "absent", "--keys-file", path)
    assert code == 2
    assert "no key absent" in said
