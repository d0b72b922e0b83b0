"""Two control planes: one decides, the other stands by. Killed, frozen, back again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from proto import routing_pb2 as pb
from tests.dataplane.client import Client, Response, ask, chat, request
from tests.dataplane.conftest import Proxy, StartBackend, StartProxy
from tests.fakes.backend import STREAM_HEAD, Backend, chunk, stream_events
from tests.fakes.control import Control
from tests.waiting import meanwhile

STEADY_S = 0.1
VIEWS_EVERY_S = 0.5


@pytest.fixture(params=["stream", "line"])
async def pair(short_dir: Path, backend: Backend, request: pytest.FixtureRequest) -> AsyncIterator[tuple[Control, Control]]:
    """By gRPC alone, and with lines beside."""
    made = []
    for name, first_id in (("a", 0xA000), ("b", 0xB000)):
        control = Control(first_id)
        control.lines = request.param == "line"
        await control.listen(f"unix:{short_dir}/{name}.sock")
        control.serve("m", backend.url)
        made.append(control)
    yield made[0], made[1]
    for control in made:
        await control.stop()


@pytest.fixture
async def proxy(start_proxy: StartProxy, pair: tuple[Control, Control]) -> Proxy:
    proxy = await start_proxy(connected=False, controls=tuple(each.address for each in pair))
    await proxy.until(lambda app: app.control.connected and all(plane.warm for plane in app.control.planes))
    for plane in proxy.app.control.planes:
        plane.steady_s = STEADY_S
    return proxy


def target(proxy: Proxy) -> str:
    return proxy.app.control.target


async def returned(proxy: Proxy, control: Control) -> None:
    """It has been steady, and the next view says so."""
    await meanwhile(STEADY_S)
    show_again(control)
    await proxy.until(lambda app: app.control.target == control.address)


def show_again(control: Control) -> None:
    """Another view of the same fleet."""
    view = pb.FleetView()
    view.CopyFrom(control.view)
    view.version += 1
    control.show(view)


async def lives(control: Control) -> None:
    """Views come for as long as it does, as of a control plane; who shows none for seconds is not gone on with."""
    while True:
        await meanwhile(VIEWS_EVERY_S)
        show_again(control)


async def test_the_first_decides_and_the_second_only_stands_by(proxy: Proxy, pair: tuple[Control, Control]) -> None:
    first, second = pair
    assert (await ask(proxy.port, request(chat()))).status == 200
    assert (len(first.questions), len(second.hellos)) == (1, 0)
    ready = await ask(proxy.port, request(path="/ready", method="GET"))
    assert ready.json["control_target"] == first.address
    metrics = (await ask(proxy.port, request(path="/metrics", method="GET"))).body.decode()
    assert f'headway_proxy_control_target{{target="{first.address}"}} 1.0' in metrics
    assert f'headway_proxy_control_target{{target="{second.address}"}} 0.0' in metrics


async def test_the_first_one_killed_costs_no_decision(proxy: Proxy, pair: tuple[Control, Control], backend: Backend) -> None:
    first, second = pair
    asked = [asyncio.create_task(ask(proxy.port, request(chat()))) for _ in range(8)]
    first.decide = lambda question: None  # these it will never answer
    await first.until(lambda control: len(control.questions) > 0)
    await first.stop()
    answers = await asyncio.gather(*asked)
    assert {answer.status for answer in answers} == {200}
    assert not any("x-headway-fallback" in answer.headers for answer in answers)
    assert target(proxy) == second.address
    assert proxy.count("late") == proxy.count("decisions", "fallback") == 0
    await second.until(lambda control: len(control.outcomes) == 8)
    assert len({outcome.decision_id for outcome in second.outcomes}) == 8


async def test_what_is_relayed_is_claimed_at_the_other_and_reported_there(
    proxy: Proxy, pair: tuple[Control, Control], backend: Backend
) -> None:
    first, second = pair
    go_on = asyncio.Event()
    events = stream_events(["a", "b"])

    async def step(seen: object, wire: object) -> None:
        await wire.send(STREAM_HEAD + chunk(events[0]))  # type: ignore[attr-defined]
        await go_on.wait()
        await wire.send(b"".join(map(chunk, events[1:])) + b"0\r\n\r\n")  # type: ignore[attr-defined]

    backend.script(step)
    client = await Client.connect(proxy.port)
    await client.send(request(chat(stream=True)))
    await first.until(lambda control: len(control.questions) == 1)
    await backend.until(lambda backend: len(backend.requests) == 1)
    await first.stop()
    await second.until(lambda control: len(control.hellos) == 1)
    (held,) = second.hellos[0].held
    assert held.decision_id == 0xA000
    go_on.set()
    assert (await client.read()).text == "ab"
    await second.until(lambda control: len(control.outcomes) == 1)
    assert second.outcomes[0].decision_id == 0xA000
    client.close()


async def test_it_comes_back_to_the_first_and_the_second_is_told(proxy: Proxy, pair: tuple[Control, Control]) -> None:
    first, second = pair
    await first.stop()
    await proxy.until(lambda app: app.control.target == second.address)
    again = Control(0xC000)
    again.lines = first.lines
    again.view = first.view
    await again.listen(first.address)
    try:
        await proxy.until(lambda app: next(iter(app.control.planes)).warm and next(iter(app.control.planes)).watched)
        second.decide = lambda question: None
        pending = asyncio.create_task(ask(proxy.port, request(chat())))
        await second.until(lambda control: len(control.questions) == 1)
        await returned(proxy, again)
        await second.until(lambda control: len(control.cancels) == 1)
        await second.answer_late()  # nobody listens to it any more
        answer = await pending
        assert "x-headway-fallback" not in answer.headers
        assert answer.headers["x-headway-decision"] == f"{0xC000:016x}"
        await second.until(lambda control: control.moved == 1 and control.streams == 0)
        assert [cancel.question_id for cancel in second.cancels] == [second.questions[0].question_id]
        await again.until(lambda control: len(control.outcomes) == 1)
        assert (len(second.outcomes), proxy.count("decisions", "fallback")) == (0, 0)
    finally:
        await again.stop()


async def test_a_silent_one_is_left_before_the_deadline_of_what_it_was_asked(
    start_proxy: StartProxy, pair: tuple[Control, Control], backend: Backend
) -> None:
    first, second = pair
    proxy = await start_proxy(connected=False, controls=tuple(each.address for each in pair))
    await proxy.until(lambda app: app.control.connected and all(plane.warm for plane in app.control.planes))
    first.decide = lambda question: None
    living = asyncio.create_task(lives(second))
    answers = [await ask(proxy.port, request(chat())) for _ in range(10)]
    living.cancel()
    assert {answer.status for answer in answers} == {200}
    assert not any("x-headway-fallback" in answer.headers for answer in answers)
    assert (len(first.questions), len(second.questions)) == (1, 10)
    assert target(proxy) == second.address


async def test_one_that_answers_now_and_then_is_left_after_a_few_questions_that_it_missed(
    start_proxy: StartProxy, pair: tuple[Control, Control], backend: Backend
) -> None:
    """Something comes back, so patience is not lost; three in a row without an answer are enough."""
    first, second = pair
    proxy = await start_proxy(connected=False, decision_timeout_ms=600, controls=tuple(each.address for each in pair))
    await proxy.until(lambda app: app.control.connected and all(plane.warm for plane in app.control.planes))
    asked: list[asyncio.Task[Response]] = []
    for number in range(3):
        first.decide = lambda question: None
        asked.append(asyncio.create_task(ask(proxy.port, request(chat()))))
        await first.until(lambda control, seen=2 * number + 1: len(control.questions) == seen)  # type: ignore[misc]
        first.decide = first.round_robin
        assert (await ask(proxy.port, request(chat()))).status == 200
    answers = await asyncio.gather(*asked)
    assert sum("x-headway-fallback" in answer.headers for answer in answers) == 3
    await proxy.until(lambda app: app.control.target == second.address)


async def test_what_was_tried_is_excluded_by_the_numbers_of_whoever_is_asked(
    start_proxy: StartProxy, start_backend: StartBackend, pair: tuple[Control, Control]
) -> None:
    first, second = pair
    bad, good = await start_backend(), await start_backend()
    first.serve("m", bad.url, good.url)
    second.serve("m", good.url, bad.url)
    proxy = await start_proxy(connected=False, controls=tuple(each.address for each in pair))
    await proxy.until(lambda app: app.control.connected and all(plane.warm for plane in app.control.planes))

    async def die(seen: object, wire: object) -> None:
        await first.stop()
        await proxy.until(lambda app: app.control.target == second.address)
        wire.reset()  # type: ignore[attr-defined]

    bad.script(die)
    answer = await ask(proxy.port, request(chat(stream=True)))
    assert (answer.status, answer.headers["x-headway-worker"], answer.headers["x-headway-attempts"]) == (200, "w1", "2")
    assert [list(asked.exclude) for asked in second.questions] == [[2]]
    assert "x-headway-fallback" not in answer.headers


async def test_without_any_the_fallback_decides_until_one_is_there(
    proxy: Proxy, pair: tuple[Control, Control], backend: Backend
) -> None:
    first, second = pair
    await first.stop()
    await second.stop()
    await proxy.until(lambda app: not app.control.connected)
    assert (await ask(proxy.port, request(chat()))).headers["x-headway-fallback"] == "1"
    assert target(proxy) == ""
    again = Control(0xD000)
    again.serve("m", backend.url)
    await again.listen(second.address)
    try:
        await proxy.until(lambda app: app.control.target == second.address)
        assert "x-headway-fallback" not in (await ask(proxy.port, request(chat()))).headers
    finally:
        await again.stop()
