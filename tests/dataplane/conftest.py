"""A whole data plane in the test's event loop, scripted engines behind it, a scripted control plane beside it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import uvloop

from dataplane.app import App
from dataplane.http1 import Request
from dataplane.keys import Key, hash_of, line_of, new_token
from dataplane.settings import Settings
from dataplane.upstream import UpstreamConnection
from runtime.clock import SystemClock
from runtime.sockets import Sockets
from tests.dataplane import client
from tests.fakes.backend import Backend
from tests.fakes.control import Control
from tests.waiting import until

WAIT_S = 10.0
DECISION_TIMEOUT_MS = 5_000
"""A machine that stands still for a moment must not send a question to the fallback; tests of the deadline set their own."""


def pytest_asyncio_loop_factories(config: pytest.Config, item: pytest.Item) -> dict[str, Callable[[], Any]]:
    """The loop that the process runs on."""
    return {"uvloop": uvloop.new_event_loop}


@dataclass
class Proxy:
    """A running data plane."""

    app: App
    port: int

    async def until(self, condition: Callable[[App], bool]) -> None:
        """Waits until `condition` holds: the app has no event for everything a test may ask."""
        await until(lambda: condition(self.app))

    def count(self, counter: str, *labels: str) -> float:
        """A counter's value."""
        return float(getattr(self.app.gateway.metrics, counter).values.get(labels, 0))


StartProxy = Callable[..., Awaitable[Proxy]]
StartBackend = Callable[[], Awaitable[Backend]]
AddKey = Callable[..., str]


@pytest.fixture
async def start_backend() -> AsyncIterator[StartBackend]:
    """Starts scripted engines."""
    started: list[Backend] = []

    async def start(port: int = 0) -> Backend:
        started.append(await Backend.start(port))
        return started[-1]

    yield start
    for backend in started:
        await backend.stop()


@pytest.fixture
async def backend(start_backend: StartBackend) -> Backend:
    """One scripted engine."""
    return await start_backend()


@pytest.fixture
async def control(short_dir: Path) -> AsyncIterator[Control]:
    """A scripted control plane on a Unix socket."""
    control = await Control.start(f"unix:{short_dir}/c.sock")
    yield control
    await control.stop()


BOTH_WAYS = frozenset(
    f"tests.dataplane.test_{name}" for name in ("accounts", "control", "endings", "failures", "proxy", "stuck")
)
"""Whose tests run a second time with heads that are known and a connection that idles: usual requests go the short way then."""
NEW_CONNECTIONS = frozenset(
    (
        "test_a_decision_for_an_engine_that_was_tried_is_given_back",
        "test_before_the_first_token_a_request_goes_elsewhere",
        "test_attempts_are_bounded_and_no_endpoint_is_tried_twice",
        "test_the_fallback_goes_elsewhere_too",
    )
)
"""But those that count what comes to an engine that closes: an idle connection that turns out closed is replaced first."""


STREAMS = frozenset(f"tests.dataplane.test_{name}" for name in ("endings", "leaving", "streams", "token_times"))
"""Whose tests run a second time without compiled code, where there is any: streams pass through Python then."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "start_proxy" in metafunc.fixturenames and metafunc.module.__name__ in STREAMS and Sockets().passes:
        metafunc.parametrize("compiled", [True, False], ids=["", "plain"], indirect=True)
    if "start_proxy" in metafunc.fixturenames and metafunc.module.__name__ in BOTH_WAYS:
        ways = [False] if metafunc.function.__name__ in NEW_CONNECTIONS else [False, True]
        metafunc.parametrize("warm", ways, ids=["", "warm"][: len(ways)], indirect=True)


@pytest.fixture
def compiled(request: pytest.FixtureRequest) -> bool:
    """Whether data planes pass streams on by compiled code, if they can."""
    return bool(getattr(request, "param", True))


@pytest.fixture
def warm(request: pytest.FixtureRequest) -> bool:
    """Whether data planes start as if they had served requests before."""
    return bool(getattr(request, "param", False))


async def _warm(app: App, urls: Iterable[str]) -> None:
    for path in ("/v1/chat/completions", "/v1/completions"):
        seen = Request("POST", path.encode(), path, body=b"{}")
        for name, value in ((b"host", b"proxy"), (b"content-type", b"application/json"), (b"content-length", b"2")):
            seen.add_header(name, value)
        app.server.heads.learn(client.request(b"{}", path), seen)
        assert app.server.heads.find(client.request(b"{}", path)) is not None
    pool = app.gateway.pool
    for url in urls:
        connected: asyncio.Future[UpstreamConnection | Exception] = asyncio.get_running_loop().create_future()
        pool.connect(url, connected.set_result)
        found = await connected
        if isinstance(found, UpstreamConnection):
            pool.give(found, app.gateway.clock.now())


@pytest.fixture
async def start_proxy(short_dir: Path, warm: bool, compiled: bool) -> AsyncIterator[StartProxy]:
    """Starts data planes: `start_proxy(backend, ..., setting=value)`. Without `control` there is none.

    After each test nothing may be left in flight: no request, no active count.
    """
    started: list[Proxy] = []

    async def start(*backends: Backend, control: Control | None = None, connected: bool = True, **more: Any) -> Proxy:
        target = more.pop("controls", None) or (control.address if control else f"unix:{short_dir}/absent.sock",)
        settings = Settings(
            **{
                "port": 0,
                "control": target,
                "endpoint": tuple(f"m={backend.url}" for backend in backends),
                "drain_timeout_s": 0.2,
                "decision_timeout_ms": DECISION_TIMEOUT_MS,
                "compiled": compiled,
                **more,
            }
        )
        app = App(settings, SystemClock())
        proxy = Proxy(app, await app.start())
        started.append(proxy)
        if control is not None and connected:
            await proxy.until(lambda app: app.control.connected and app.gateway.fleet.view is not None)
        if warm:
            view = app.gateway.fleet.view
            await _warm(app, [backend.url for backend in backends] or [each.url for each in view.endpoints] if view else [])
        return proxy

    yield start
    for proxy in started:
        await proxy.app.stop()
        gateway = proxy.app.gateway
        assert not gateway.exchanges
        assert gateway.concurrency.in_flight == 0
        assert not gateway.fleet.active, f"active counts left: {dict(gateway.fleet.active)}"


@pytest.fixture
async def proxy(start_proxy: StartProxy, backend: Backend) -> Proxy:
    """A data plane with one engine and no control plane."""
    return await start_proxy(backend)


@pytest.fixture
def keys_file(tmp_path: Path) -> Path:
    path = tmp_path / "keys"
    path.write_bytes(b"# callers\n")
    return path


@pytest.fixture
def add_key(keys_file: Path) -> AddKey:
    """Adds a key to the file; returns it as the caller holds it."""

    def add(id: str = "k", **fields: Any) -> str:
        token = new_token()
        with keys_file.open("ab") as file:
            file.write(line_of(Key(id=id, hash=hash_of(token.encode()), **{"tenant": "acme", **fields})) + b"\n")
        return token

    return add
