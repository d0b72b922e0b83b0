"""A process that ends before its requests do says so to each of them: nobody is left with half an answer that looks whole."""

from __future__ import annotations

import asyncio

import pytest

from proto import routing_pb2 as pb
from tests.dataplane.client import Client, chat, request
from tests.dataplane.conftest import StartProxy
from tests.fakes.backend import STREAM_HEAD, Backend, chunk, delta, event, hangs
from tests.fakes.control import Control

TOKEN = STREAM_HEAD + chunk(event(delta("a")))
TORN = TOKEN + chunk(event(delta("b")))[:-9]


@pytest.mark.parametrize("known", [False, True], ids=["new head", "known head"])
@pytest.mark.parametrize("sent", [TOKEN, TORN], ids=["at an event's end", "amid an event"])
async def test_a_stream_ends_with_an_error_event(
    sent: bytes, known: bool, start_proxy: StartProxy, backend: Backend, control: Control
) -> None:
    control.serve("m", backend.url)
    proxy = await start_proxy(control=control, drain_timeout_s=0.05)
    client = await Client.connect(proxy.port)
    for _ in range(2 * known):
        await client.send(request(chat()))
        await client.read()
    backend.script(hangs(sent))
    before = len(control.outcomes)
    await client.send(request(chat(stream=True)))
    reading = asyncio.create_task(client.read())
    await control.until(lambda control: len(control.first_bytes) == 1)
    await asyncio.gather(proxy.app.stop(), reading)
    assert reading.result().events[0] == delta("a")
    assert reading.result().events[-1]["error"]["code"] == "upstream_failed"
    assert await client.at_end()
    assert {outcome.end for outcome in control.outcomes[before + 2 * known :]} <= {pb.CLIENT_GONE}
    client.close()


async def test_what_has_not_begun_is_refused(start_proxy: StartProxy, backend: Backend, control: Control) -> None:
    backend.script(hangs())
    control.serve("m", backend.url)
    asked = control.round_robin
    control.decide = lambda question: None if question.streams else asked(question)
    proxy = await start_proxy(control=control, drain_timeout_s=0.05, decision_timeout_ms=10_000)
    waiting, asking = await Client.connect(proxy.port), await Client.connect(proxy.port)
    await waiting.send(request(chat()))
    await asking.send(request(chat(stream=True)))
    await backend.until(lambda backend: len(backend.requests) == 1)
    await control.until(lambda control: len(control.questions) == 2)
    answers = asyncio.gather(waiting.read(), asking.read())
    await proxy.app.stop()
    for response in await answers:
        assert (response.status, response.json["error"]["code"]) == (503, "shutting_down")
        assert (response.headers["connection"], response.headers["retry-after"]) == ("close", "1")
    await control.until(lambda control: len(control.cancels) == len(control.outcomes) == 1)
    assert control.outcomes[0].end == pb.CLIENT_GONE


async def test_a_client_that_speaks_http_1_0_finds_its_error_event_too(
    start_proxy: StartProxy, backend: Backend, control: Control
) -> None:
    backend.script(hangs(TOKEN))
    control.serve("m", backend.url)
    proxy = await start_proxy(control=control, drain_timeout_s=0.05)
    client = await Client.connect(proxy.port)
    await client.send(request(chat(stream=True), version="1.0"))
    reading = asyncio.create_task(client.read())
    await control.until(lambda control: len(control.first_bytes) == 1)
    await asyncio.gather(proxy.app.stop(), reading)
    assert reading.result().events[-1]["error"]["code"] == "upstream_failed"
    client.close()


async def test_whoever_pipelines_behind_it_is_not_served_any_more(
    start_proxy: StartProxy, backend: Backend, control: Control
) -> None:
    backend.script(hangs(TOKEN))
    control.serve("m", backend.url)
    proxy = await start_proxy(control=control, drain_timeout_s=0.05)
    client = await Client.connect(proxy.port)
    await client.send(request(chat(stream=True)) + request(chat("next")))
    reading = asyncio.create_task(client.read())
    await control.until(lambda control: len(control.first_bytes) == 1)
    await asyncio.gather(proxy.app.stop(), reading)
    assert await client.at_end()
    assert len(backend.requests) == 1
    client.close()
