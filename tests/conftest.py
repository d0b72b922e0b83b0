"""Parts that many tests stand on: a real Redis, free ports, a short directory for sockets."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import grpc.aio
import pytest
import redis
from hypothesis import settings

from headway.embedded_redis import RedisServer
from tests.loops import let_grpc_outlive_loops
from tests.ports import free_ports

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_OFFLINE", "1")
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "false")
"""As in `headway up`: children that a test forks while an earlier one's gRPC is busy ended by SIGABRT now and then."""

settings.register_profile("shared machine", settings.get_profile("ci" if "CI" in os.environ else "default"), deadline=None)
settings.load_profile("shared machine")

PROCESSES = 2
"""Of `make test`: few enough for a machine with two cores, which is what tests with bounds are tried on."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """What `-n auto` is. A file or two are not worth a second process; and a name that is none is said by this one alone."""
    return PROCESSES if any(Path(name).is_dir() for name in config.args) else 0


def pytest_sessionstart() -> None:
    """gRPC's asyncio side is never shut down amid a run: whoever frees its last object waits for its poller, and an operation
    that is still pending, of a channel that an earlier test left, makes that wait endless. Channels and their tasks are cycles,
    so it is the garbage collector that frees them, in whatever test it happens to run: there the whole process, an event loop
    with a thousand requests in it, stood still until its timeout. One more use that is never given back prevents it.
    """

    async def use() -> None:
        grpc.aio.init_grpc_aio()

    loop = asyncio.new_event_loop()  # it wants one
    loop.run_until_complete(use())
    loop.close()
    let_grpc_outlive_loops()


@pytest.fixture
def short_dir() -> Iterator[Path]:
    """A directory whose path is short enough for Unix sockets (108 bytes)."""
    path = Path(tempfile.mkdtemp(prefix="hw-"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="session")
def _redis_server() -> Iterator[RedisServer]:
    path = Path(tempfile.mkdtemp(prefix="hw-"))
    server = RedisServer(path)
    server.start()
    yield server
    server.stop()
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def redis_url(_redis_server: RedisServer) -> str:
    """URL of a real, empty Redis, shared by the tests of a run one after the other."""
    with redis.Redis.from_url(_redis_server.url) as client:
        client.flushall()
    return _redis_server.url


@pytest.fixture
def own_redis(short_dir: Path) -> Iterator[RedisServer]:
    """A real Redis of this test's own, to kill and to start again."""
    server = RedisServer(short_dir)
    server.start()
    yield server
    server.stop()


@pytest.fixture
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """HEADWAY_HOME as a person would set it: commands find no running stack but this test's own, and leave nothing behind."""
    home = tmp_path / "home"
    monkeypatch.setenv("HEADWAY_HOME", str(home))
    return home


@pytest.fixture
def free_port() -> int:
    """A TCP port that was free a moment ago."""
    return free_ports()


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of captures and traces beside the checkout; tests that want it skip where it is absent."""
    path = Path(__file__).resolve().parents[2] / "shared"
    if not path.is_dir():
        pytest.skip("no shared/ folder beside the checkout")
    return path
