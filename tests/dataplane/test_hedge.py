"""Two attempts at one request: one body to the client, each attempt reported once, nothing left over."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from contract.outcome import End
from proto import routing_pb2 as pb
from tests.dataplane.client import Client, Response, ask, chat, request
from tests.dataplane.conftest import StartBackend, StartProxy
from tests.dataplane.test_accounts import connected, ends, fleet
from tests.dataplane.test_failures import DEATH, ROLE
from tests.fakes.backend import STREAM_HEAD, Backend, Seen, Step, Wire, chat_stream, closes, hangs, raw, resets, status
from tests.fakes.control import Control
from tests.waiting import until

HEDGED = {"hedge": True, "hedge_after_ms": 20, "hedge_ratio": 1.0}


def gated(first: asyncio.Event, text: str) -> Step:
    """Headers and role at once, the text when told."""

    async def pause(index: int) -> None:
        if index == 1:
            await first.wait()

    return chat_stream([text], pause=pause)


async def test_a_silent_worker_is_overtaken_and_its_connection_closed(
    start_proxy: StartProxy, start_backend: StartBackend, short_dir: Path
) -> None:
    silent, quick = await start_backend(), await start_backend()
    silent.script(hangs(STREAM_HEAD + ROLE))
    quick.script(chat_stream(["quick"]))
    async with fleet(short_dir, silent, quick, policy="least_load") as served:
        proxy = await connected(start_proxy, served, **HEDGED)
        response = await asked_until(proxy.port, lambda: bool(silent.requests))
        assert response.text == "quick"
        assert response.headers["x-headway-worker"] == "w1"
        assert response.headers["x-headway-attempts"] == "2"
        await silent.until(lambda backend: backend.open == 0)
        await until(lambda: End.CLIENT_GONE in ends(served) and End.COMPLETE in ends(served))
        assert set(ends(served)) == {End.COMPLETE, End.CLIENT_GONE}
        assert proxy.count("hedges", "won") == 1


async def asked_until(port: int, condition: Callable[[], bool]) -> Response:
    for _ in range(10):
        response = await ask(port, request(chat(stream=True)))
        assert response.status == 200
        if condition():
            return response
    raise AssertionError("the silent worker was never chosen")


@pytest.mark.parametrize(
    ("step", "end"),
    [(resets(), pb.RESET), (status(503), pb.BACK_PRESSURE), (raw(STREAM_HEAD + ROLE + DEATH), pb.ENGINE_ERROR)],
    ids=["reset", "503", "error event"],
)
async def test_a_second_attempt_that_fails_is_reported_and_the_first_goes_on(
    start_proxy: StartProxy, start_backend: StartBackend, control: Control, step: Step, end: int
) -> None:
    go_on = asyncio.Event()
    slow, bad = await start_backend(), await start_backend()
    slow.script(gated(go_on, "slow"))
    bad.script(step)
    control.serve("m", slow.url, bad.url)
    proxy = await start_proxy(control=control, **HEDGED)
    client = await Client.connect(proxy.port)
    await client.send(request(chat(stream=True)))
    await control.until(lambda control: len(control.outcomes) == 1)
    assert control.outcomes[0].end == end
    go_on.set()
    response = await client.read()
    assert (response.text, response.headers["x-headway-attempts"]) == ("slow", "1")
    await control.until(lambda control: len(control.outcomes) == 2)
    assert control.outcomes[1].end == pb.COMPLETE
    client.close()


async def test_the_first_attempt_cancels_the_second_when_it_answers(
    start_proxy: StartProxy, start_backend: StartBackend, control: Control
) -> None:
    go_on = asyncio.Event()
    slow, silent = await start_backend(), await start_backend()
    slow.script(gated(go_on, "slow"))
    silent.script(hangs(STREAM_HEAD))
    control.serve("m", slow.url, silent.url)
    proxy = await start_proxy(control=control, **HEDGED)
    client = await Client.connect(proxy.port)
    await client.send(request(chat(stream=True)))
    await silent.until(lambda backend: len(backend.requests) == 1)
    go_on.set()
    assert (await client.read()).text == "slow"
    await silent.until(lambda backend: backend.open == 0)
    await control.until(lambda control: len(control.outcomes) == 2)
    assert sorted(outcome.end for outcome in control.outcomes) == [pb.COMPLETE, pb.CLIENT_GONE]
    assert control.questions[1].exclude == [1]
    assert proxy.count("hedges", "lost") == 1
    client.close()


async def test_a_first_attempt_that_fails_leaves_the_request_to_the_second(
    start_proxy: StartProxy, start_backend: StartBackend, control: Control
) -> None:
    fail, go_on = asyncio.Event(), asyncio.Event()

    async def fails(seen: Seen, wire: Wire) -> None:
        await wire.send(STREAM_HEAD)
        await fail.wait()
        wire.reset()

    bad, slow = await start_backend(), await start_backend()
    bad.script(fails)
    slow.script(gated(go_on, "second"))
    control.serve("m", bad.url, slow.url)
    proxy = await start_proxy(control=control, retry_ratio=1.0, retry_per_s=0.0, **HEDGED)
    client = await Client.connect(proxy.port)
    await client.send(request(chat(stream=True)))
    await slow.until(lambda backend: len(backend.requests) == 1)
    fail.set()
    await control.until(lambda control: len(control.outcomes) == 1)
    assert proxy.app.gateway.budget.tokens == 1  # no retry was needed
    go_on.set()
    assert (await client.read()).text == "second"
    await control.until(lambda control: len(control.outcomes) == 2)
    assert [outcome.end for outcome in control.outcomes] == [pb.RESET, pb.COMPLETE]
    client.close()


@pytest.mark.parametrize("connected", [True, False], ids=["", "fallback"])
async def test_a_retry_does_not_go_where_the_second_attempt_failed(
    start_proxy: StartProxy, start_backend: StartBackend, control: Control, connected: bool
) -> None:
    fail = asyncio.Event()

    async def fails(seen: Seen, wire: Wire) -> None:
        await wire.send(STREAM_HEAD)
        await fail.wait()
        wire.reset()

    first, second, third = [await start_backend() for _ in range(3)]
    first.script(fails)
    second.script(status(503))
    third.script(chat_stream(["third"]))
    control.serve("m", first.url, second.url, third.url)
    control.decide = lambda question: lowest(control, question)
    proxy = await start_proxy(control=control, **HEDGED)
    client = await Client.connect(proxy.port)
    await client.send(request(chat(stream=True)))
    await control.until(lambda control: len(control.outcomes) == 1)
    if not connected:
        await control.stop()
        await proxy.until(lambda app: not app.control.connected)
    fail.set()
    response = await client.read()
    assert (response.text, response.headers["x-headway-attempts"]) == ("third", "2")
    assert (len(first.requests), len(second.requests), len(third.requests)) == (1, 1, 1)
    client.close()


def lowest(control: Control, question: pb.Question) -> pb.Decision:
    """The first endpoint of the view that is not excluded."""
    left = next(endpoint for endpoint in control.view.endpoints if endpoint.endpoint not in question.exclude)
    return pb.Decision(decision_id=100 + left.endpoint, endpoint=left.endpoint, url=left.url, worker=left.worker)


async def test_a_client_that_leaves_ends_both_attempts(
    start_proxy: StartProxy, start_backend: StartBackend, short_dir: Path
) -> None:
    backends = [await start_backend() for _ in range(2)]
    for backend in backends:
        backend.script(hangs(STREAM_HEAD + ROLE))
    async with fleet(short_dir, *backends) as served:
        proxy = await connected(start_proxy, served, **HEDGED)
        client = await Client.connect(proxy.port)
        await client.send(request(chat(stream=True)))
        for backend in backends:
            await backend.until(lambda backend: len(backend.requests) == 1)
        assert len(served.plant.ledger) == 2
        client.close()
        for backend in backends:
            await backend.until(lambda backend: backend.open == 0)
        await until(lambda: len(served.plant.ledger) == 0)
        assert ends(served) == [End.CLIENT_GONE, End.CLIENT_GONE]


@pytest.mark.parametrize(
    "more",
    [{"hedge": False}, {"hedge_ratio": 0.0}, {"hedge_tokens_max": 0}, {"hedge_after_ms": 0}],
    ids=["off", "no budget", "prompt too long", "nothing known of the worker"],
)
async def test_no_second_attempt(
    start_proxy: StartProxy, start_backend: StartBackend, control: Control, more: dict[str, object]
) -> None:
    go_on = asyncio.Event()
    slow, other = await start_backend(), await start_backend()
    slow.script(gated(go_on, "slow"))
    control.serve("m", slow.url, other.url)
    proxy = await start_proxy(control=control, **HEDGED | more)
    client = await Client.connect(proxy.port)
    await client.send(request(chat(stream=True)))
    await slow.until(lambda backend: len(backend.requests) == 1)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await client.reader.read(1)
    go_on.set()
    assert (await client.read()).text == "slow"
    assert not other.requests
    client.close()


@pytest.mark.parametrize(("ratio", "hedges"), [(0.25, 2), (0.5, 4)])
async def test_second_attempts_are_a_share_of_the_requests_however_slow_all_are(
    start_proxy: StartProxy, start_backend: StartBackend, control: Control, ratio: float, hedges: int
) -> None:
    async def pause(index: int) -> None:
        await asyncio.sleep(0.06 if index == 1 else 0)  # an engine that is slow, not a wait for something

    backends = [await start_backend() for _ in range(2)]
    for each in backends:
        each.script(chat_stream(["slow"], pause=pause))
    control.serve("m", *(each.url for each in backends))
    proxy = await start_proxy(control=control, **HEDGED | {"hedge_ratio": ratio})
    for _ in range(8):
        assert (await ask(proxy.port, request(chat(stream=True)))).text == "slow"
    ended = proxy.app.gateway.metrics.hedges.values
    assert ended[("no_budget",)] == 8 - hedges
    assert sum(ended.values()) == 8
    assert len(backends[0].requests) + len(backends[1].requests) == 8 + hedges


async def test_no_other_worker_is_no_failure(start_proxy: StartProxy, backend: Backend, control: Control) -> None:
    go_on = asyncio.Event()
    backend.script(gated(go_on, "slow"))
    control.serve("m", backend.url)
    proxy = await start_proxy(control=control, **HEDGED)
    client = await Client.connect(proxy.port)
    await client.send(request(chat(stream=True)))
    await proxy.until(lambda app: proxy.count("hedges", "refused") == 1)
    go_on.set()
    assert (await client.read()).text == "slow"
    client.close()


async def test_a_connection_closed_in_the_instant_of_its_reuse_is_no_failed_second_attempt(
    start_proxy: StartProxy, start_backend: StartBackend, control: Control
) -> None:
    """As of a first attempt: engines close idle connections when they like, and nobody is to blame."""
    silent, quick = await start_backend(), await start_backend()
    control.serve("m", silent.url, quick.url)
    proxy = await start_proxy(control=control, decision_timeout_ms=10_000, **HEDGED)
    for _ in range(2):
        assert (await ask(proxy.port, request(chat()))).status == 200  # leaves an idle connection to each
    silent.script(hangs(STREAM_HEAD + ROLE))
    quick.script(closes(), chat_stream(["quick"]))
    decide = control.round_robin

    def silent_first(question: pb.Question) -> pb.Decision | None:
        if not question.exclude:
            question.exclude.append(2)
        return decide(question)

    control.decide = silent_first
    response = await ask(proxy.port, request(chat(stream=True)))
    assert (response.text, response.headers["x-headway-worker"]) == ("quick", "w2")
    assert len(quick.requests) == 3
    await control.until(lambda control: len(control.outcomes) == 4)
    assert sorted(outcome.end for outcome in control.outcomes[2:]) == [pb.COMPLETE, pb.CLIENT_GONE]
    assert proxy.count("hedges", "won") == 1
    assert proxy.count("reconnects") == 1
