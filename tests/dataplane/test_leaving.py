"""A client leaves: the engine's connection is closed in the turn of the event loop that notices it, and it is said once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from dataplane.connection import ClientConnection
from dataplane.upstream import UpstreamConnection
from proto import routing_pb2 as pb
from tests.dataplane.client import Client, chat, request
from tests.dataplane.conftest import StartProxy
from tests.fakes.backend import STREAM_HEAD, Backend, chunk, delta, event, hangs
from tests.fakes.control import Control

TOKEN = STREAM_HEAD + chunk(event(delta("a")))


class Turns:
    """Counts the turns of the running event loop."""

    def __init__(self) -> None:
        self.count = 0
        self._loop = asyncio.get_running_loop()
        self._next()

    def _next(self) -> None:
        self.count += 1
        self._handle = self._loop.call_soon(self._next)

    def stop(self) -> None:
        self._handle.cancel()


@pytest.fixture
async def turns() -> AsyncIterator[Turns]:
    counting = Turns()
    yield counting
    counting.stop()


class Watched:
    """In which turn each side of the proxy lost its connection. closing: the engine's was on its way out by then.

    The real methods run, and are noted: from outside, a turn of the loop cannot be told from the next one.
    """

    def __init__(self, turns: Turns, monkeypatch: pytest.MonkeyPatch) -> None:
        self.client: list[int] = []
        self.engine: list[int] = []
        self.closing: list[bool] = []
        client_lost, engine_lost = ClientConnection.connection_lost, UpstreamConnection.connection_lost

        def on_client(connection: ClientConnection, error: Exception | None) -> None:
            exchange = connection.exchange
            attempt = getattr(exchange, "_attempt", None)
            engine = attempt.connection if attempt is not None else None
            client_lost(connection, error)
            self.client.append(turns.count)
            self.closing.append(engine is None or (engine.transport is not None and engine.transport.is_closing()))

        def on_engine(connection: UpstreamConnection, error: Exception | None) -> None:
            engine_lost(connection, error)
            self.engine.append(turns.count)

        # The real ones run, and are watched: in which turn of the loop each came is not to be seen from outside.
        monkeypatch.setattr(ClientConnection, "connection_lost", on_client)
        monkeypatch.setattr(UpstreamConnection, "connection_lost", on_engine)


@pytest.mark.parametrize("resets", [False, True], ids=["closes", "resets"])
@pytest.mark.parametrize("seen_before", [False, True], ids=["new head", "known head"])
@pytest.mark.parametrize("sent", [b"", STREAM_HEAD, TOKEN], ids=["silent", "head", "first token"])
async def test_the_engine_is_left_in_the_turn_in_which_it_is_noticed_and_that_is_said_once(
    sent: bytes,
    seen_before: bool,
    resets: bool,
    start_proxy: StartProxy,
    backend: Backend,
    control: Control,
    turns: Turns,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    control.serve("m", backend.url)
    proxy = await start_proxy(control=control)
    if seen_before:
        warm = await Client.connect(proxy.port)
        for _ in range(2):
            await warm.send(request(chat()))
            assert (await warm.read()).status == 200
        warm.close()
        await control.until(lambda control: len(control.outcomes) == 2)
    before = len(control.outcomes)
    backend.script(hangs(sent))
    await proxy.until(lambda app: not app.server.connections)
    watched = Watched(turns, monkeypatch)
    client = await Client.connect(proxy.port)
    requests = len(backend.requests)
    await client.send(request(chat(stream=True)))
    await backend.until(lambda backend: len(backend.requests) == requests + 1)
    if sent == TOKEN:
        await client.read(head_only=True)
    if resets:
        client.reset()
    else:
        client.close()
    await backend.until(lambda backend: backend.open == 0)
    assert watched.closing == [True]
    assert watched.engine[-1] - watched.client[0] <= 1
    assert len(watched.engine) == 1
    await control.until(lambda control: len(control.outcomes) > before)
    await proxy.app.stop()  # what else there is to say leaves
    ends = [(outcome.end, outcome.decision_id > 0) for outcome in control.outcomes[before:]]
    assert ends == [(pb.CLIENT_GONE, True)]
    assert not control.cancels
