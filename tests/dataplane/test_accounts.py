"""A data plane and the real control plane: whatever happens to a request, its reservation is released, its outcome counts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest

from contract.outcome import End
from contract.routing import Answer, Asked
from contract.routing import Request as Wanted
from proto import routing_pb2 as pb
from tests.controlplane.served import Served, serve
from tests.dataplane.client import Client, ask, chat, request
from tests.dataplane.conftest import Proxy, StartBackend, StartProxy
from tests.fakes.backend import STREAM_HEAD, Backend, Seen, Step, Wire, chat_stream, chunk, delta, event, hangs, resets, status
from tests.waiting import until

TOKEN = STREAM_HEAD + chunk(event(delta("a")))


@asynccontextmanager
async def fleet(directory: Path, *backends: Backend, policy: str = "round_robin", **more: object) -> AsyncIterator[Served]:
    """The real control plane over these engines, checked to be empty of reservations at the end."""
    async with serve(directory, workers=0, policy=policy, **more) as served:
        served.bus.connected = False  # nobody leaves for want of an agent
        for number, backend in enumerate(backends):
            served.plant.join(f"w{number}", url=backend.url)
        yield served
        await until(lambda: len(served.plant.ledger) == 0)
        assert all(one.load.active == one.load.prefill_tokens == 0 for one in served.plant.snapshot.endpoints())


async def connected(start_proxy: StartProxy, served: Served, **more: object) -> Proxy:
    control = SimpleNamespace(address=served.address)
    return await start_proxy(control=control, decision_timeout_ms=10_000, **more)


def ends_at(go_on: asyncio.Event) -> Step:
    """A first token at once, the end when it is told to."""

    async def step(seen: Seen, wire: Wire) -> None:
        await wire.send(TOKEN)
        await go_on.wait()
        await wire.send(chunk(event(delta(finish="stop"))) + chunk(event("[DONE]")) + b"0\r\n\r\n")

    return step


def ends(served: Served) -> list[int]:
    return [outcome.end for outcome in served.plant.outcomes]


@pytest.mark.parametrize(
    ("step", "end"), [(resets(), End.RESET), (status(503), End.BACK_PRESSURE), (status(500), End.ENGINE_ERROR)]
)
async def test_a_retry_is_two_decisions_and_two_outcomes(
    start_proxy: StartProxy, start_backend: StartBackend, short_dir: Path, step: Step, end: End
) -> None:
    backends = [await start_backend() for _ in range(2)]
    backends[0].script(step)
    backends[1].script(chat_stream(["fine"]))
    async with fleet(short_dir, *backends, policy="least_load") as served:
        proxy = await connected(start_proxy, served)
        for _ in range(4):
            assert (await ask(proxy.port, request(chat(stream=True)))).text == "fine"
        await until(lambda: ends(served).count(End.COMPLETE) == 4)
        assert set(ends(served)) <= {end, End.COMPLETE}
        assert {outcome.worker for outcome in served.plant.outcomes if outcome.attempt} <= {"w1"}


@pytest.mark.parametrize("sent", [b"", STREAM_HEAD, TOKEN], ids=["silent", "head", "first token"])
async def test_a_client_that_leaves_releases_its_reservation_and_is_one_outcome(
    start_proxy: StartProxy, backend: Backend, short_dir: Path, sent: bytes
) -> None:
    backend.script(hangs(sent))
    async with fleet(short_dir, backend) as served:
        proxy = await connected(start_proxy, served)
        client = await Client.connect(proxy.port)
        await client.send(request(chat(stream=True)))
        await until(lambda: len(served.plant.ledger) == 1 and len(backend.requests) == 1)
        client.close()
        await until(lambda: len(served.plant.ledger) == 0)
        await backend.until(lambda backend: backend.open == 0)
        assert ends(served) == [End.CLIENT_GONE]


async def test_clients_that_leave_in_the_tick_they_ask_in_leave_no_reservation(
    start_proxy: StartProxy, backend: Backend, short_dir: Path
) -> None:
    """Question and cancel gather for one message there, which is read cancels first."""
    async with fleet(short_dir, backend) as served:
        proxy = await connected(start_proxy, served)
        control = proxy.app.control
        for _ in range(20):
            asked = Asked(0, Wanted(model="m", input_tokens=5))
            question_id = control.ask(asked, lambda decision: None, proxy.app.gateway.clock.now())
            control.cancel(question_id)
        assert (await ask(proxy.port, request(chat()))).status == 200
        await until(lambda: len(served.plant.ledger) == 0)


async def test_a_cancel_in_the_message_of_its_question_releases_it(short_dir: Path, backend: Backend) -> None:
    async with fleet(short_dir, backend) as served:
        stream = served.stream()
        await stream.send(pb.Question(question_id=1, model="m"), pb.Question(question_id=2, model="m"), cancels=(1, 2))
        assert len(await stream.receive()) == 2
        await until(lambda: len(served.plant.ledger) == 0)


async def test_a_decision_for_an_engine_that_was_tried_is_given_back(
    start_proxy: StartProxy, start_backend: StartBackend, short_dir: Path
) -> None:
    """Two endpoint numbers for one address: an exclusion by number does not hold, the address does."""
    bad, good = await start_backend(), await start_backend()
    bad.script(resets())
    async with fleet(short_dir, bad, good) as served:
        proxy = await connected(start_proxy, served)
        tried_again: list[Answer] = []
        release, take = proxy.app.control.release, proxy.app.control._take

        def released(answer: Answer) -> None:
            tried_again.append(answer)
            release(answer)

        def disguise(answers: list[Answer]) -> None:
            take([msgspec.structs.replace(answer, url=bad.url) if answer.url == good.url else answer for answer in answers])

        proxy.app.control.release = released  # type: ignore[method-assign]
        proxy.app.control._take = disguise  # type: ignore[method-assign]
        response = await ask(proxy.port, request(chat()))
        assert (response.status, response.headers["x-headway-fallback"]) == (200, "1")
        assert len(bad.requests) == 1
        assert len(tried_again) == 1
        await until(lambda: len(served.plant.ledger) == 0)


async def test_what_ends_while_the_control_plane_is_cut_off_is_counted_as_it_ended(
    start_proxy: StartProxy, backend: Backend, short_dir: Path
) -> None:
    go_on = asyncio.Event()
    backend.script(ends_at(go_on))
    async with fleet(short_dir, backend) as served:
        proxy = await connected(start_proxy, served)
        client = await Client.connect(proxy.port)
        await client.send(request(chat(stream=True)))
        await until(lambda: len(served.plant.ledger) == 1 and len(backend.requests) == 1)
        task = proxy.app._control_task
        assert task is not None
        task.cancel()
        await until(lambda: not proxy.app.control.connected)
        go_on.set()
        assert (await client.read()).text == "a"
        client.close()
        assert len(served.plant.ledger) == 1
        proxy.app._control_task = asyncio.create_task(proxy.app.control.run())
        await until(lambda: len(served.plant.ledger) == 0)
        assert ends(served) == [End.COMPLETE]


async def test_a_control_plane_that_forgot_everything_still_counts_what_ended_meanwhile(
    start_proxy: StartProxy, backend: Backend, short_dir: Path
) -> None:
    go_on = asyncio.Event()
    backend.script(ends_at(go_on))
    client: Client | None = None
    async with serve(short_dir, workers=0) as first:
        first.bus.connected = False
        first.plant.join("w0", url=backend.url)
        proxy = await connected(start_proxy, first)
        client = await Client.connect(proxy.port)
        await client.send(request(chat(stream=True)))
        await until(lambda: len(first.plant.ledger) == 1 and len(backend.requests) == 1)
    await until(lambda: not proxy.app.control.connected)
    go_on.set()
    assert (await client.read()).text == "a"
    client.close()
    async with fleet(short_dir, backend) as second:
        await until(lambda: ends(second) == [End.COMPLETE])
