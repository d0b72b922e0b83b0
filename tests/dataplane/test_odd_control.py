"""A control plane that says what nobody here expected, newer than this data plane or out of its mind: no request hangs."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from contract.routing import Ended
from proto import routing_pb2 as pb
from tests.dataplane.client import ask, chat, request
from tests.dataplane.conftest import StartProxy
from tests.fakes.backend import Backend
from tests.fakes.control import Control
from tests.waiting import until

NOT_UTF8 = b"\xff\xfe\xfd"


class Garbling(Control):
    """Sends text that is no UTF-8 with its first answer."""

    garbled = 0

    def _sent(self, batch: pb.DecisionBatch) -> pb.DecisionBatch:
        sent = super()._sent(batch)
        if sent.packed and not self.garbled:
            self.garbled += 1
            sent = pb.DecisionBatch(packed=sent.packed.replace(b"scripted", NOT_UTF8 + b"ipted"))
        return sent


@pytest.fixture
async def garbling(short_dir: Path, request: pytest.FixtureRequest) -> AsyncIterator[Garbling]:
    control = Garbling()
    control.lines = bool(request.param)
    await control.listen(f"unix:{short_dir}/c.sock")
    yield control
    await control.stop()


@pytest.mark.parametrize("garbling", [False, True], ids=["stream", "line"], indirect=True)
async def test_an_answer_that_cannot_be_read_costs_its_stream_and_nothing_else(
    start_proxy: StartProxy, backend: Backend, garbling: Garbling
) -> None:
    garbling.serve("m", backend.url)
    proxy = await start_proxy(control=garbling)
    if garbling.lines:
        await until(lambda: garbling._line_ends)
    assert (await ask(proxy.port, request(chat()))).headers["x-headway-fallback"] == "1"
    assert garbling.garbled == 1
    await garbling.until(lambda control: len(control.hellos) == 2)
    await proxy.until(lambda app: app.control.connected)
    assert "x-headway-fallback" not in (await ask(proxy.port, request(chat()))).headers


@pytest.mark.parametrize("reason", [77, -1])
async def test_a_refusal_for_a_reason_that_is_not_known_here_is_a_refusal(
    reason: int, start_proxy: StartProxy, backend: Backend, control: Control
) -> None:
    control.serve("m", backend.url)
    control.decide = lambda question: pb.Decision(shed=pb.Shed(reason=reason, message="too late in the day"))  # type: ignore[arg-type]
    proxy = await start_proxy(control=control)
    response = await ask(proxy.port, request(chat()))
    assert (response.status, response.json["error"]["message"]) == (503, "too late in the day")
    assert proxy.count("sheds", "other") == 1


@pytest.mark.parametrize("seconds", [math.nan, math.inf, -math.inf, -5.0, 1e300])
async def test_a_time_that_is_none_is_not_passed_on(
    seconds: float, start_proxy: StartProxy, backend: Backend, control: Control
) -> None:
    control.serve("m", backend.url)
    control.decide = lambda question: pb.Decision(shed=pb.Shed(reason=pb.Shed.NO_WORKER, retry_after_s=seconds))
    proxy = await start_proxy(control=control)
    response = await ask(proxy.port, request(chat()))
    assert response.status == 503
    assert 1 <= int(response.headers["retry-after"]) <= 3600


@pytest.mark.parametrize(
    "url",
    ["", "nonsense", "ftp://127.0.0.1/", "http://", "http://[::1", "http://127.0.0.1:99999999", "http://" + "x" * 70 + ".test"],
)
async def test_an_endpoint_that_is_none_is_a_failed_attempt(
    url: str, start_proxy: StartProxy, backend: Backend, control: Control
) -> None:
    control.serve("m", backend.url)
    proxy = await start_proxy(control=control)

    def decide(question: pb.Question) -> pb.Decision | None:
        decision = control.round_robin(question)
        if decision is not None and not question.exclude:
            decision.url, decision.endpoint, decision.worker = url, 4711, "nobody\r\nx-evil: 1"
        return decision

    control.decide = decide
    response = await ask(proxy.port, request(chat()))
    assert (response.status, response.headers["x-headway-attempts"]) == (200, "2")
    await control.until(lambda control: len(control.outcomes) == 2)
    assert [outcome.end for outcome in control.outcomes] == [pb.CONNECT_FAILED, pb.COMPLETE]
    assert not proxy.app.gateway.fleet.active


@pytest.mark.parametrize("way", ["packed", "messages", "line"])
async def test_an_outcome_that_nobody_can_say_costs_its_stream_and_nothing_else(
    way: str, start_proxy: StartProxy, backend: Backend, short_dir: Path
) -> None:
    control = Control()
    control.packs, control.lines = way != "messages", way == "line"
    await control.listen(f"unix:{short_dir}/c.sock")
    control.serve("m", backend.url)
    proxy = await start_proxy(control=control)
    for number in range(3):
        assert "x-headway-fallback" not in (await ask(proxy.port, request(chat()))).headers
        await control.until(lambda control, number=number: len(control.outcomes) == number + 1)  # type: ignore[misc]
        proxy.app.control.report(Ended(decision_id=2**80 + number, end=1))
        await control.until(lambda control, number=number: len(control.hellos) == number + 2)  # type: ignore[misc]
        await proxy.until(lambda app: app.control.connected and app.control._call is not None)
    assert not proxy.app.control.outcomes_pending
    await control.stop()


async def test_a_fault_of_our_own_is_not_the_end_of_deciding(
    start_proxy: StartProxy, backend: Backend, control: Control, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No such fault is known, so one is made: a view that is not taken, as where no thread can be started for its tokenizer."""
    control.serve("m", backend.url)
    proxy = await start_proxy(control=control)
    assert "x-headway-fallback" not in (await ask(proxy.port, request(chat()))).headers
    see, views = proxy.app.prompts.see, []

    def seen(*args: Any, **more: Any) -> None:
        views.append(args)
        if len(views) == 1:
            raise RuntimeError("can't start new thread")
        see(*args, **more)

    monkeypatch.setattr(proxy.app.prompts, "see", seen)
    control.serve("m", backend.url)
    await control.until(lambda control: len(control.hellos) == 2)
    await proxy.until(lambda app: app.control.connected and len(views) > 1)
    assert "x-headway-fallback" not in (await ask(proxy.port, request(chat()))).headers
