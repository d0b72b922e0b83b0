"""The control plane absent, late, slow, frozen, restarted: requests go on, and it hears of them afterwards."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from proto import routing_pb2 as pb
from tests.dataplane.client import Client, ask, chat, request
from tests.dataplane.conftest import StartBackend, StartProxy
from tests.fakes.backend import LAST_CHUNK, STREAM_HEAD, Backend, chunk, delta, event, raw, status, stream_events
from tests.fakes.control import Control
from tests.waiting import meanwhile


async def test_without_any_fleet_view_requests_are_refused_and_ready_says_no(start_proxy: StartProxy) -> None:
    proxy = await start_proxy()
    response = await ask(proxy.port, request(chat()))
    assert (response.status, response.json["error"]["code"]) == (503, "no_fleet_view")
    assert int(response.headers["retry-after"]) >= 1
    ready = await ask(proxy.port, request(path="/ready", method="GET"))
    assert (ready.status, ready.json["control"], ready.json["fleet"]["known"]) == (503, "fallback", False)


async def test_a_control_plane_that_comes_late_takes_over(start_proxy: StartProxy, backend: Backend, short_dir: Path) -> None:
    proxy = await start_proxy(backend)
    assert (await ask(proxy.port, request(chat()))).headers["x-headway-fallback"] == "1"
    control = await Control.start(f"unix:{short_dir}/absent.sock")
    try:
        control.serve("m", backend.url)
        await proxy.until(lambda app: app.control.connected)
        await control.until(lambda control: len(control.outcomes) == 1)
        outcome = control.outcomes[0]
        assert (outcome.decision_id, outcome.model, outcome.url, outcome.end) == (0, "m", backend.url, pb.COMPLETE)
        response = await ask(proxy.port, request(chat()))
        assert "x-headway-fallback" not in response.headers
    finally:
        await control.stop()


@pytest.mark.parametrize("packs", [True, False])
async def test_a_control_plane_is_spoken_to_in_the_messages_that_it_reads(
    packs: bool, start_proxy: StartProxy, backend: Backend, control: Control
) -> None:
    """Packed or one by one: the same questions, decisions and outcomes."""
    control.packs = packs
    control.serve("m", backend.url, tokenizer="headway-8k")
    proxy = await start_proxy(control=control)
    await proxy.until(lambda app: app.prompts.status(control.view.models) == {"m": "ready"})
    body = chat(messages=[{"role": "user", "content": "word " * 40}], max_tokens=7)
    wishes = {"x-headway-tenant": "acme", "x-headway-priority": "3", "x-headway-slo-ttft-ms": "1500", "x-headway-session": "s"}
    response = await ask(proxy.port, request(body, headers=wishes))
    await control.until(lambda control: len(control.outcomes) == 1)
    question, outcome = control.questions[0], control.outcomes[0]
    assert any(batch.packed for batch in control.batches) == packs
    assert (question.model, question.max_tokens, question.tenant, question.priority) == ("m", 7, "acme", 3)
    assert (question.slo_ttft_ms, question.session, question.chain_kind) == (1500, "s", pb.TOKENS)
    assert question.input_tokens > 16
    assert [(chain.block_size, len(chain.hashes)) for chain in question.chains] == [(16, 8 * (question.input_tokens // 16))]
    assert response.headers["x-headway-decision"] == f"{outcome.decision_id:016x}"
    assert (outcome.end, outcome.http_status) == (pb.COMPLETE, 200)


async def test_a_missed_deadline_goes_to_the_fallback_and_is_cancelled(
    start_proxy: StartProxy, backend: Backend, control: Control
) -> None:
    control.serve("m", backend.url)
    proxy = await start_proxy(control=control, decision_timeout_ms=200)
    control.decide = lambda question: None
    response = await ask(proxy.port, request(chat()))
    assert (response.status, response.headers["x-headway-fallback"]) == (200, "1")
    await control.until(lambda control: len(control.cancels) == 1 and len(control.outcomes) == 1)
    await control.answer_late()  # nobody waits for it any more
    control.decide = control.round_robin
    assert "x-headway-fallback" not in (await ask(proxy.port, request(chat()))).headers


async def test_a_frozen_control_plane_delays_only_the_first_few_requests(
    start_proxy: StartProxy, backend: Backend, control: Control
) -> None:
    control.serve("m", backend.url)
    proxy = await start_proxy(control=control, decision_timeout_ms=30)
    control.decide = lambda question: None
    for _ in range(20):
        assert (await ask(proxy.port, request(chat()))).status == 200
    assert len(control.questions) < 10


async def test_a_question_that_waits_for_room_waits_longer(start_proxy: StartProxy, backend: Backend, control: Control) -> None:
    control.serve("m", backend.url)
    control.decide = lambda question: pb.Decision(queued=True)
    proxy = await start_proxy(control=control, decision_timeout_ms=200)
    await control.until(lambda control: len(control.hellos) == 1)
    assert control.hellos[0].queue_notices
    asked = asyncio.create_task(ask(proxy.port, request(chat())))
    await control.until(lambda control: len(control.questions) == 1)
    await meanwhile(0.4)  # beyond the deadline of a question without a notice
    assert not asked.done()
    await control.answer_late()
    assert "x-headway-fallback" not in (await asked).headers
    assert proxy.count("late") == 0


async def test_a_question_that_waits_for_room_does_not_wait_as_long_as_one_without_a_notice(
    start_proxy: StartProxy, backend: Backend, control: Control
) -> None:
    """Where the deadline of decisions is the longer one."""
    control.serve("m", backend.url)
    control.decide = lambda question: pb.Decision(queued=True)
    proxy = await start_proxy(control=control, decision_timeout_ms=60_000, queue_timeout_ms=300)
    asked = asyncio.create_task(ask(proxy.port, request(chat())))
    await control.until(lambda control: len(control.questions) == 1)
    assert (await asked).headers["x-headway-fallback"] == "1"  # ask itself gives up earlier than after a minute
    assert proxy.count("late") == 1


async def test_a_fault_of_whoever_writes_ends_its_stream_and_the_next_one_is_asked(
    start_proxy: StartProxy, backend: Backend, control: Control
) -> None:
    """Else answers would still be read, and nothing would ever be asked again."""
    control.serve("m", backend.url)
    control.view.token_ages = True
    proxy = await start_proxy(control=control)
    backend.script(raw(STREAM_HEAD + b"".join(map(chunk, stream_events(["a", "b"]))) + LAST_CHUNK))
    assert (await ask(proxy.port, request(chat(stream=True)))).status == 200
    await control.until(lambda control: len(control.outcomes) == 1)
    proxy.app.gateway.fleet.numbers = None  # type: ignore[assignment]  # until the next view
    assert (await ask(proxy.port, request(chat()))).headers["x-headway-fallback"] == "1"
    await control.until(lambda control: len(control.hellos) == 2)
    control.show(control.view)
    await proxy.until(lambda app: app.control.connected and app.gateway.fleet.numbers)
    assert "x-headway-fallback" not in (await ask(proxy.port, request(chat()))).headers


async def test_a_restart_loses_no_request_and_the_new_one_hears_what_is_held(
    start_proxy: StartProxy, backend: Backend, control: Control
) -> None:
    go_on = asyncio.Event()
    events = stream_events(["a", "b", "c"])

    async def step(seen: object, wire: object) -> None:
        await wire.send(STREAM_HEAD + chunk(events[0]) + chunk(events[1]))  # type: ignore[attr-defined]
        await go_on.wait()
        await wire.send(b"".join(map(chunk, events[2:])) + b"0\r\n\r\n")  # type: ignore[attr-defined]

    backend.script(step)
    control.serve("m", backend.url)
    proxy = await start_proxy(control=control)
    client = await Client.connect(proxy.port)
    await client.send(request(chat(stream=True)))
    await control.until(lambda control: len(control.first_bytes) == 1)
    decision_id = control.first_bytes[0].decision_id

    await control.stop()
    await proxy.until(lambda app: not app.control.connected)
    other = asyncio.create_task(ask(proxy.port, request(chat(stream=True))))
    await backend.until(lambda backend: len(backend.requests) == 2)

    new = await Control.start(control.address)
    try:
        new.view = pb.FleetView(version=1, warm=False)
        await new.until(lambda new: len(new.hellos) == 1)
        held = new.hellos[0].held
        assert [(h.decision_id, h.url, h.first_byte_seen) for h in held] == [(decision_id, backend.url, True)]

        # It does not know its fleet yet: what it sheds as unknown is decided here.
        await proxy.until(lambda app: app.control.connected)
        third = asyncio.create_task(ask(proxy.port, request(chat(stream=True))))
        await backend.until(lambda backend: len(backend.requests) == 3)
        go_on.set()
        assert (await client.read()).text == "abc"
        assert (await other).text == "abc"
        response = await third
        assert (response.status, response.text, response.headers["x-headway-fallback"]) == (200, "abc", "1")
        await new.until(lambda new: len(new.outcomes) == 3)
        assert sorted(outcome.decision_id for outcome in new.outcomes) == [0, 0, decision_id]
    finally:
        client.close()
        await new.stop()


async def test_questions_in_flight_when_the_control_plane_dies_go_to_the_fallback(
    start_proxy: StartProxy, backend: Backend, control: Control
) -> None:
    control.serve("m", backend.url)
    control.decide = lambda question: None
    proxy = await start_proxy(control=control, decision_timeout_ms=60_000)
    asked = asyncio.create_task(ask(proxy.port, request(chat())))
    await control.until(lambda control: len(control.questions) == 1)
    await control.stop()
    response = await asked
    assert (response.status, response.headers["x-headway-fallback"]) == (200, "1")


async def test_outcomes_kept_while_it_is_away_are_bounded(start_proxy: StartProxy, backend: Backend) -> None:
    proxy = await start_proxy(backend, outcomes_max=3)
    for _ in range(5):
        await ask(proxy.port, request(chat()))
    assert proxy.app.control.outcomes_pending == 3
    assert proxy.count("outcomes_dropped") == 2


async def test_changed_endpoint_numbers_do_not_bring_a_request_back_to_the_same_engine(
    start_proxy: StartProxy, start_backend: StartBackend, control: Control
) -> None:
    """A control plane that restarts between two attempts numbers its endpoints anew and cannot know what was tried."""
    bad, good = await start_backend(), await start_backend()
    bad.script(status(500))
    control.serve("m", bad.url, good.url)
    control.decide = lambda question: pb.Decision(decision_id=7, endpoint=9, url=bad.url, worker="bad", policy="stuck")
    proxy = await start_proxy(control=control)
    response = await ask(proxy.port, request(chat()))
    assert (response.status, response.headers["x-headway-worker"]) == (200, "w2")
    assert len(bad.requests) == 1
    await control.until(lambda control: len(control.cancels) == 1)


async def test_the_scripted_control_plane_itself_excludes_and_sheds(control: Control) -> None:
    control.serve("m", "http://a", "http://b")
    chosen = [control.round_robin(pb.Question(model="m", exclude=[1])) for _ in range(3)]
    assert {decision.endpoint for decision in chosen if decision} == {2}
    assert control.round_robin(pb.Question(model="m", exclude=[1, 2])).shed.reason == pb.Shed.EXCLUDED  # type: ignore[union-attr]
    assert control.round_robin(pb.Question(model="x")).shed.reason == pb.Shed.UNKNOWN_MODEL  # type: ignore[union-attr]


async def test_an_error_event_is_no_content(start_proxy: StartProxy, backend: Backend) -> None:
    proxy = await start_proxy(backend)
    refusal = chunk(event({"error": {"message": "no", "code": 400}}))
    backend.script(raw(STREAM_HEAD + chunk(event(delta("", role="assistant"))) + refusal + LAST_CHUNK))
    response = await ask(proxy.port, request(chat(stream=True)))
    assert response.events[-1] == {"error": {"message": "no", "code": 400}}
    assert proxy.count("attempts", "caller_error") == 1
