"""Requests that wait at an engine where nothing moves: elsewhere once the fleet view says so, if there is somewhere."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from contract.routing import numbered
from proto import routing_pb2 as pb
from tests.dataplane.client import Client, Response, chat, request
from tests.dataplane.conftest import Proxy, StartBackend, StartProxy
from tests.dataplane.test_failures import ROLE
from tests.fakes.backend import STREAM_HEAD, Backend, chat_stream, hangs
from tests.fakes.control import Control
from tests.waiting import meanwhile

SOON = {"stuck_after_s": 0.02, "head_timeout_s": 0.2}  # the second one makes deadlines be looked at more often
BEGUN = STREAM_HEAD + ROLE


def held_at(place: int, go_on: asyncio.Event) -> Callable[[int], Awaitable[None]]:
    """A pause of a stream: before that event, until it is told to go on."""

    async def pause(index: int) -> None:
        if index == place:
            await go_on.wait()

    return pause


def call_stuck(control: Control, *, other_available: bool = True) -> None:
    """The first endpoint is where nothing moves."""
    view = pb.FleetView()
    view.CopyFrom(control.view)
    view.version += 1
    view.endpoints[0].stuck, view.endpoints[0].available = True, False
    view.endpoints[1].available = other_available
    control.show(view)


async def waiting(
    start_proxy: StartProxy, control: Control, stuck: Backend, other: Backend, **more: object
) -> tuple[Proxy, Client]:
    """A stream that waits at the first of two engines."""
    control.serve("m", stuck.url, other.url)
    proxy = await start_proxy(control=control, **SOON | more)
    client = await Client.connect(proxy.port)
    await client.send(request(chat(stream=True)))
    await stuck.until(lambda backend: len(backend.requests) == 1)
    return proxy, client


@pytest.mark.parametrize("sent", [b"", STREAM_HEAD, BEGUN], ids=["silent", "head", "role"])
async def test_a_request_without_a_first_token_goes_elsewhere(
    start_proxy: StartProxy, start_backend: StartBackend, control: Control, sent: bytes
) -> None:
    stuck, other = await start_backend(), await start_backend()
    stuck.script(hangs(sent))
    other.script(chat_stream(["fine"]))
    _, client = await waiting(start_proxy, control, stuck, other)
    call_stuck(control)
    response = await client.read()
    assert (response.text, response.headers["x-headway-attempts"]) == ("fine", "2")
    await stuck.until(lambda backend: backend.open == 0)
    await control.until(lambda control: len(control.outcomes) == 2)
    assert [outcome.end for outcome in control.outcomes] == [pb.TIMED_OUT, pb.COMPLETE]
    assert list(control.questions[1].exclude) == [1]
    client.close()


@pytest.mark.parametrize(
    ("other_available", "more"),
    [(False, {}), (True, {"retry_ratio": 0.0, "retry_per_s": 0.0}), (True, {"stuck_after_s": 60.0})],
    ids=["nowhere to go", "no budget", "not for long"],
)
async def test_else_it_waits_on(
    start_proxy: StartProxy, start_backend: StartBackend, control: Control, other_available: bool, more: dict[str, object]
) -> None:
    go_on = asyncio.Event()
    stuck, other = await start_backend(), await start_backend()
    stuck.script(chat_stream(["late"], pause=held_at(1, go_on)))
    proxy, client = await waiting(start_proxy, control, stuck, other, **more)
    call_stuck(control, other_available=other_available)
    await proxy.until(lambda app: bool(app.gateway.fleet.stuck))
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):  # several looks at the deadlines
            await client.reader.read(1)
    go_on.set()
    response = await client.read()
    assert (response.text, response.headers["x-headway-attempts"]) == ("late", "1")
    assert not other.requests
    client.close()


async def test_what_has_begun_is_never_begun_again(
    start_proxy: StartProxy, start_backend: StartBackend, control: Control
) -> None:
    go_on = asyncio.Event()
    stuck, other = await start_backend(), await start_backend()
    stuck.script(chat_stream(["a", "b"], pause=held_at(2, go_on)))
    proxy, client = await waiting(start_proxy, control, stuck, other)
    await client.read(head_only=True)
    call_stuck(control)
    await proxy.until(lambda app: bool(app.gateway.fleet.stuck))
    await meanwhile(0.2)  # several looks at the deadlines; nothing may come of them
    go_on.set()
    await control.until(lambda control: len(control.outcomes) == 1)
    assert control.outcomes[0].end == pb.COMPLETE
    assert not other.requests
    client.close()


async def test_a_control_plane_that_is_gone_is_not_believed(
    start_proxy: StartProxy, start_backend: StartBackend, control: Control
) -> None:
    go_on = asyncio.Event()
    stuck, other = await start_backend(), await start_backend()
    stuck.script(chat_stream(["late"], pause=held_at(1, go_on)))
    proxy, client = await waiting(start_proxy, control, stuck, other, stuck_after_s=0.3)
    call_stuck(control)
    await proxy.until(lambda app: bool(app.gateway.fleet.stuck))
    await control.stop()
    await proxy.until(lambda app: not app.control.connected)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.5):
            await client.reader.read(1)
    go_on.set()
    response: Response = await client.read()
    assert response.text == "late"
    client.close()


async def test_of_an_engine_of_several_ranks_only_who_waits_at_the_stuck_one_goes_and_another_rank_of_it_will_do(
    start_proxy: StartProxy, start_backend: StartBackend, control: Control
) -> None:
    engine = await start_backend()
    engine.script(hangs(BEGUN), hangs(BEGUN), chat_stream(["fine"]))
    control.serve("m", engine.url)
    ranks = iter((1, 0, 0))

    def decide(question: pb.Question) -> pb.Decision:
        number = len(control.questions)
        return pb.Decision(
            decision_id=number, endpoint=1, url=engine.url, worker="w1", policy="test", data_parallel_rank=next(ranks)
        )

    control.decide = decide
    proxy = await start_proxy(control=control, **SOON)
    clients = [await Client.connect(proxy.port) for _ in range(2)]
    for number, client in enumerate(clients, start=1):
        await client.send(request(chat(stream=True)))
        await engine.until(lambda backend, number=number: len(backend.requests) == number)
    view = pb.FleetView()
    view.CopyFrom(control.view)
    view.version += 1
    view.endpoints[0].stuck_ranks.append(1)
    control.show(view)
    response = await clients[0].read()
    assert (response.text, response.headers["x-headway-attempts"]) == ("fine", "2")
    assert list(control.questions[2].exclude) == [numbered(1, 1)]
    assert [sent.headers["x-data-parallel-rank"] for sent in engine.requests] == ["1", "0", "0"]
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):  # several looks at the deadlines: at the rank that moves it waits on
            await clients[1].reader.read(1)
    for client in clients:
        client.close()
