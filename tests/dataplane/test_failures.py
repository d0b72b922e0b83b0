"""Engines that fail: elsewhere while nothing was passed on, and an honest end after that."""

from __future__ import annotations

import asyncio
import time

import pytest

from proto import routing_pb2 as pb
from tests.dataplane.client import Client, Truncated, ask, chat, request
from tests.dataplane.conftest import Proxy, StartBackend, StartProxy
from tests.fakes.backend import (
    LAST_CHUNK,
    STREAM_HEAD,
    Backend,
    Seen,
    Step,
    Wire,
    chat_json,
    chat_payload,
    chat_stream,
    chunk,
    closes,
    delta,
    event,
    hangs,
    json_bytes,
    raw,
    resets,
    status,
    stream_events,
)
from tests.fakes.control import Control

ROLE = chunk(event(delta("", role="assistant")))
FIRST = chunk(event(delta("partial")))
TORN = FIRST[:-20]
DEATH = chunk(event({"error": {"message": "dead", "code": 500}})) + chunk(event("[DONE]")) + LAST_CHUNK

RETRIED: list[tuple[str, Step, int]] = [
    ("reset before a byte", resets(), pb.RESET),
    ("closed before a byte", closes(), pb.RESET),
    ("reset amid the head", resets(b"HTTP/1.1 200"), pb.RESET),
    ("reset behind the head", resets(STREAM_HEAD), pb.RESET),
    ("closed behind the role", closes(STREAM_HEAD + ROLE), pb.RESET),
    ("ended behind the role", raw(STREAM_HEAD + ROLE + LAST_CHUNK), pb.ENGINE_ERROR),
    ("closed amid a body", closes(json_bytes(chat_payload("x"))[:-5]), pb.RESET),
    ("500", status(500), pb.ENGINE_ERROR),
    ("502 that closes", raw(json_bytes({"error": {}}, 502), close=True), pb.ENGINE_ERROR),
    ("503", status(503), pb.BACK_PRESSURE),
    ("429", status(429), pb.BACK_PRESSURE),
    ("408", status(408), pb.TIMED_OUT),
    ("an error event first", raw(STREAM_HEAD + ROLE + DEATH), pb.ENGINE_ERROR),
    ("aborted without text", chat_stream([], finish="abort"), pb.ENGINE_ABORTED),
    ("aborted without text, not streamed", chat_json("", finish="abort"), pb.ENGINE_ABORTED),
    ("not HTTP", raw(b"220 smtp ready\r\n\r\n"), pb.ENGINE_ERROR),
    (
        "a head that smuggles",
        raw(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\n{}"),
        pb.ENGINE_ERROR,
    ),
]


@pytest.mark.parametrize(("step", "end"), [(step, end) for _, step, end in RETRIED], ids=[name for name, _, _ in RETRIED])
async def test_before_the_first_token_a_request_goes_elsewhere(
    start_proxy: StartProxy, start_backend: StartBackend, control: Control, step: Step, end: int
) -> None:
    bad, good = await start_backend(), await start_backend()
    bad.script(step)
    good.script(chat_stream(["fine"]))
    control.serve("m", bad.url, good.url)
    proxy = await start_proxy(control=control)
    response = await ask(proxy.port, request(chat(stream=True)))
    assert response.status == 200
    assert response.text == "fine"
    assert response.headers["x-headway-worker"] == "w2"
    assert response.headers["x-headway-attempts"] == "2"
    await control.until(lambda control: len(control.outcomes) == 2)
    assert [outcome.end for outcome in control.outcomes] == [end, pb.COMPLETE]
    assert [list(question.exclude) for question in control.questions] == [[], [1]]
    assert [question.attempt for question in control.questions] == [0, 1]
    assert len(bad.requests) == 1


async def test_an_endpoint_that_cannot_be_reached_is_left_for_another(
    start_proxy: StartProxy, backend: Backend, control: Control, free_port: int
) -> None:
    control.serve("m", f"http://127.0.0.1:{free_port}", backend.url)
    proxy = await start_proxy(control=control)
    assert (await ask(proxy.port, request(chat()))).status == 200
    await control.until(lambda control: len(control.outcomes) == 2)
    assert control.outcomes[0].end == pb.CONNECT_FAILED


async def test_silence_before_the_first_token_has_a_limit(
    start_proxy: StartProxy, start_backend: StartBackend, control: Control
) -> None:
    bad, good = await start_backend(), await start_backend()
    bad.script(hangs(STREAM_HEAD + ROLE))
    control.serve("m", bad.url, good.url)
    proxy = await start_proxy(control=control, first_byte_timeout_s=0.1)
    assert (await ask(proxy.port, request(chat()))).status == 200
    await control.until(lambda control: len(control.outcomes) == 2)
    assert control.outcomes[0].end == pb.TIMED_OUT
    await bad.until(lambda backend: backend.open == 0)


@pytest.mark.parametrize("code", [400, 401, 404, 422])
async def test_the_callers_mistakes_are_passed_on_unchanged(
    start_proxy: StartProxy, start_backend: StartBackend, control: Control, code: int
) -> None:
    first, second = await start_backend(), await start_backend()
    first.script(status(code, "your fault"))
    control.serve("m", first.url, second.url)
    proxy = await start_proxy(control=control)
    response = await ask(proxy.port, request(chat()))
    assert (response.status, response.json["error"]["message"]) == (code, "your fault")
    await control.until(lambda control: len(control.outcomes) == 1)
    assert control.outcomes[0].end == pb.CALLER_ERROR
    assert control.outcomes[0].http_status == code
    assert not second.requests


async def test_when_all_refuse_the_last_ones_own_words_are_passed_on(
    start_proxy: StartProxy, start_backend: StartBackend, control: Control
) -> None:
    backends = [await start_backend() for _ in range(2)]
    for backend in backends:
        backend.script(status(503, f"full: {backend.port}", b"x-engine: 1\r\n"))
    control.serve("m", *(backend.url for backend in backends))
    proxy = await start_proxy(control=control)
    response = await ask(proxy.port, request(chat()))
    assert response.status == 503
    assert response.json["error"]["message"].startswith("full: ")
    assert response.headers["x-engine"] == "1"
    assert response.headers["retry-after"] == "1"  # engines leave that to us
    assert response.headers["x-headway-attempts"] == "2"
    await control.until(lambda control: len(control.outcomes) == 2)
    assert {outcome.end for outcome in control.outcomes} == {pb.BACK_PRESSURE}


@pytest.mark.parametrize(("code", "extra", "after"), [(429, b"", "1"), (503, b"Retry-After: 7\r\n", "7"), (500, b"", None)])
async def test_when_to_come_back_is_said_once(
    start_proxy: StartProxy, backend: Backend, code: int, extra: bytes, after: str | None
) -> None:
    backend.script(status(code, "no", extra))
    proxy = await start_proxy(backend, retry_ratio=0.0, retry_per_s=0.0)
    response = await ask(proxy.port, request(chat()))
    assert response.status == code
    assert response.headers.get("retry-after") == after
    assert response.names.count("retry-after") == (after is not None)


async def test_attempts_are_bounded_and_no_endpoint_is_tried_twice(
    start_proxy: StartProxy, start_backend: StartBackend, control: Control
) -> None:
    backends = [await start_backend() for _ in range(5)]
    for backend in backends:
        backend.script(resets())
    control.serve("m", *(backend.url for backend in backends))
    proxy = await start_proxy(control=control, attempts_max=3)
    response = await ask(proxy.port, request(chat()))
    assert (response.status, response.json["error"]["type"]) == (502, "upstream_error")
    assert sorted(len(backend.requests) for backend in backends) == [0, 0, 1, 1, 1]


async def test_without_budget_the_first_failure_is_the_answer(start_proxy: StartProxy, start_backend: StartBackend) -> None:
    backends = [await start_backend() for _ in range(2)]
    for backend in backends:
        backend.script(status(503, "full"))
    proxy = await start_proxy(*backends, retry_ratio=0.0, retry_per_s=0.0)
    response = await ask(proxy.port, request(chat()))
    assert (response.status, response.headers["x-headway-attempts"]) == (503, "1")


async def test_the_fallback_goes_elsewhere_too(start_proxy: StartProxy, start_backend: StartBackend) -> None:
    bad, good = await start_backend(), await start_backend()
    bad.script(resets())
    proxy = await start_proxy(bad, good)
    for _ in range(6):
        assert (await ask(proxy.port, request(chat()))).status == 200
    assert len(bad.requests) == 1  # skipped for a while after it failed


@pytest.mark.parametrize(
    "step",
    [resets(STREAM_HEAD + ROLE + FIRST), closes(STREAM_HEAD + ROLE + FIRST), closes(STREAM_HEAD + ROLE + FIRST + TORN)],
    ids=["reset", "closed", "closed amid an event"],
)
async def test_after_the_first_token_a_break_ends_the_stream_with_an_error_event(
    start_proxy: StartProxy, start_backend: StartBackend, control: Control, step: Step
) -> None:
    bad, good = await start_backend(), await start_backend()
    bad.script(step)
    control.serve("m", bad.url, good.url)
    proxy = await start_proxy(control=control)
    client = await Client.connect(proxy.port)
    await client.send(request(chat(stream=True)))
    response = await client.read()
    assert response.complete
    assert response.text == "partial"
    assert response.events[-1]["error"]["code"] == "upstream_failed"
    await control.until(lambda control: len(control.outcomes) == 1)
    assert control.outcomes[0].end == pb.RESET
    assert not good.requests
    good.script(raw(json_bytes(chat_payload("again"))))
    await client.send(request(chat()))
    assert (await client.read()).status == 200  # its body was ended as the protocol says: the connection serves on
    client.close()


async def test_a_stream_that_ends_without_finishing_gets_an_error_event(proxy: Proxy, backend: Backend) -> None:
    backend.script(raw(STREAM_HEAD + ROLE + FIRST + LAST_CHUNK))
    response = await ask(proxy.port, request(chat(stream=True)))
    assert response.complete
    assert response.text == "partial"
    assert response.events[-1]["error"]["code"] == "upstream_failed"
    assert proxy.count("attempts", "engine_error") == 1


async def test_a_dying_engines_error_event_is_passed_on_and_counted_as_failure(
    start_proxy: StartProxy, backend: Backend, control: Control
) -> None:
    backend.script(raw(STREAM_HEAD + ROLE + FIRST + DEATH))
    control.serve("m", backend.url)
    proxy = await start_proxy(control=control)
    response = await ask(proxy.port, request(chat(stream=True)))
    assert response.raw.partition(b"\r\n\r\n")[2] == ROLE + FIRST + DEATH
    await control.until(lambda control: len(control.outcomes) == 1)
    assert control.outcomes[0].end == pb.ENGINE_ERROR
    assert control.outcomes[0].http_status == 200


async def test_an_abort_amid_a_stream_is_counted_as_one(start_proxy: StartProxy, backend: Backend, control: Control) -> None:
    backend.script(chat_stream(["some"], finish="abort"))
    control.serve("m", backend.url)
    proxy = await start_proxy(control=control)
    assert (await ask(proxy.port, request(chat(stream=True)))).text == "some"
    await control.until(lambda control: len(control.outcomes) == 1)
    assert control.outcomes[0].end == pb.ENGINE_ABORTED


async def test_silence_amid_a_stream_ends_it_with_an_error_event(start_proxy: StartProxy, backend: Backend) -> None:
    backend.script(hangs(STREAM_HEAD + ROLE + FIRST))
    proxy = await start_proxy(backend, idle_timeout_s=0.1)
    response = await ask(proxy.port, request(chat(stream=True)))
    assert "silent" in response.events[-1]["error"]["message"]
    await backend.until(lambda backend: backend.open == 0)
    assert proxy.count("attempts", "timed_out") == 1


@pytest.mark.parametrize("begun", [0, 2], ids=["before the first token", "amid the stream"])
async def test_time_in_which_the_process_stood_still_is_no_engines_silence(
    begun: int, start_proxy: StartProxy, backend: Backend
) -> None:
    """Its machine may have stood still with it: what the engine would have said meanwhile comes after it."""
    limit_s, go_on = 0.5, asyncio.Event()
    events = stream_events(["a", "b", "c"])

    async def step(seen: Seen, wire: Wire) -> None:
        await wire.send(STREAM_HEAD + b"".join(map(chunk, events[:begun])))
        await go_on.wait()
        await wire.send(b"".join(map(chunk, events[begun:])) + LAST_CHUNK)

    backend.script(step)
    proxy = await start_proxy(backend, first_byte_timeout_s=limit_s, idle_timeout_s=limit_s)
    asked = asyncio.create_task(ask(proxy.port, request(chat(stream=True))))
    await backend.until(lambda backend: len(backend.requests) == 1)
    await proxy.until(lambda app: [one.is_silent for one in app.gateway.exchanges] == [not begun])
    time.sleep(3 * limit_s)  # noqa: ASYNC251 - the process stands still, which is what is tested
    go_on.set()
    response = await asked
    assert (response.status, response.headers["x-headway-attempts"], response.text) == (200, "1", "abc")
    assert proxy.count("attempts", "timed_out") == 0


async def test_a_long_body_that_breaks_off_is_cut_not_completed(start_proxy: StartProxy, backend: Backend) -> None:
    whole = json_bytes({"data": "x" * 500_000})
    backend.script(closes(whole[:400_000]))
    proxy = await start_proxy(backend)
    with pytest.raises(Truncated):
        await ask(proxy.port, request(chat()))


async def test_a_connection_closed_in_the_instant_of_its_reuse_costs_nothing(
    start_proxy: StartProxy, backend: Backend, control: Control
) -> None:
    """The engine closes an idle connection just when it is used again: one more connection, the same endpoint, no retry."""
    control.serve("m", backend.url)
    proxy = await start_proxy(control=control, retry_ratio=0.0, retry_per_s=0.0)
    backend.script(chat_json("first"), closes(), chat_json("second"))
    assert (await ask(proxy.port, request(chat()))).json["choices"][0]["message"]["content"] == "first"
    response = await ask(proxy.port, request(chat()))
    assert response.json["choices"][0]["message"]["content"] == "second"
    assert response.headers["x-headway-attempts"] == "1"
    await control.until(lambda control: len(control.outcomes) == 2)
    assert [outcome.end for outcome in control.outcomes] == [pb.COMPLETE, pb.COMPLETE]
    assert proxy.count("reconnects") == 1


async def test_bytes_behind_a_response_do_not_reach_the_next_client(proxy: Proxy, backend: Backend) -> None:
    backend.script(raw(json_bytes({"a": 1}) + json_bytes({"stolen": 1})), chat_json("clean"))
    client = await Client.connect(proxy.port)
    await client.send(request(chat()))
    assert (await client.read()).json == {"a": 1}
    await client.send(request(chat()))
    assert (await client.read()).json["choices"][0]["message"]["content"] == "clean"
    client.close()
    assert backend.connections == 2


async def test_a_whole_request_has_a_limit_where_one_is_set(start_proxy: StartProxy, backend: Backend) -> None:
    backend.script(hangs())
    proxy = await start_proxy(backend, total_timeout_s=0.1)
    response = await ask(proxy.port, request(chat()))
    assert (response.status, response.json["error"]["code"]) == (504, "upstream_timeout")


async def test_a_shed_request_is_503_with_its_reason_and_a_time(
    start_proxy: StartProxy, backend: Backend, control: Control
) -> None:
    control.serve("m", backend.url)
    control.decide = lambda question: pb.Decision(
        shed=pb.Shed(reason=pb.Shed.QUEUE_FULL, message="The queue is full.", retry_after_s=7)
    )
    proxy = await start_proxy(control=control)
    response = await ask(proxy.port, request(chat()))
    assert response.status == 503
    assert response.headers["retry-after"] == "7"
    assert response.json["error"] == {
        "message": "The queue is full.",
        "type": "overloaded_error",
        "param": None,
        "code": "queue_full",
    }


# --- clients that leave ---


@pytest.mark.parametrize("how", ["close", "reset", "half close"])
@pytest.mark.parametrize("stage", ["no head", "head", "role", "content"])
async def test_a_client_that_leaves_frees_the_engine_at_once_and_is_reported_once(
    start_proxy: StartProxy, backend: Backend, control: Control, stage: str, how: str
) -> None:
    sent = {"no head": b"", "head": STREAM_HEAD, "role": STREAM_HEAD + ROLE, "content": STREAM_HEAD + ROLE + FIRST}[stage]
    backend.script(hangs(sent))
    control.serve("m", backend.url)
    proxy = await start_proxy(control=control)
    client = await Client.connect(proxy.port)
    await client.send(request(chat(stream=True)))
    await backend.until(lambda backend: len(backend.requests) == 1)
    if stage == "content":
        async with asyncio.timeout(5):
            await client.reader.readuntil(b"partial")
    if how == "half close":
        client.writer.write_eof()
    elif how == "reset":
        client.reset()
    else:
        client.close()
    await backend.until(lambda backend: backend.open == 0)
    await control.until(lambda control: len(control.outcomes) == 1)
    assert control.outcomes[0].end == pb.CLIENT_GONE
    await proxy.until(lambda app: not app.gateway.exchanges)
    assert len(control.outcomes) == 1
    client.close()


async def test_a_client_that_leaves_while_the_question_is_open_cancels_it(
    start_proxy: StartProxy, backend: Backend, control: Control
) -> None:
    control.serve("m", backend.url)
    control.decide = lambda question: None
    proxy = await start_proxy(control=control, decision_timeout_ms=5000)
    client = await Client.connect(proxy.port)
    await client.send(request(chat()))
    await control.until(lambda control: len(control.questions) == 1)
    client.close()
    await control.until(lambda control: len(control.cancels) == 1)
    assert control.cancels[0].question_id == control.questions[0].question_id
    await proxy.app.stop()  # what else there is to say leaves
    assert (control.outcomes, backend.requests) == ([], [])


async def test_a_client_that_leaves_while_connecting_leaves_nothing_behind(
    start_proxy: StartProxy, backend: Backend, control: Control
) -> None:
    control.serve("m", "http://10.255.255.1:9")  # takes connections nowhere
    proxy = await start_proxy(control=control)
    client = await Client.connect(proxy.port)
    await client.send(request(chat()))
    await control.until(lambda control: len(control.questions) == 1)
    client.close()
    await proxy.until(lambda app: not app.gateway.exchanges)


async def test_a_client_that_never_reads_is_cut_off(start_proxy: StartProxy, backend: Backend) -> None:
    event_of_8k = chunk(event(delta("x" * 8000)))

    async def step(seen: object, wire: object) -> None:
        await wire.send(STREAM_HEAD)  # type: ignore[attr-defined]
        while True:
            await wire.send(event_of_8k)  # type: ignore[attr-defined]

    backend.script(step)
    proxy = await start_proxy(backend, client_stall_s=0.1)
    client = await Client.connect(proxy.port)
    client.writer.transport.pause_reading()
    await client.send(request(chat(stream=True)))
    await backend.until(lambda backend: backend.left == 1)
    assert proxy.count("attempts", "client_gone") == 1
    client.close()


@pytest.mark.parametrize(
    "step",
    [chat_stream([], finish="abort"), chat_json("", finish="abort"), raw(STREAM_HEAD + ROLE + LAST_CHUNK)],
    ids=["aborted stream", "aborted body", "stream without content"],
)
async def test_an_empty_abort_never_looks_like_an_answer(
    start_proxy: StartProxy, start_backend: StartBackend, step: Step
) -> None:
    backends = [await start_backend() for _ in range(2)]
    for backend in backends:
        backend.script(step)
    for more in ({}, {"retry_ratio": 0.0, "retry_per_s": 0.0}):
        proxy = await start_proxy(*backends, **more)
        response = await ask(proxy.port, request(chat()))
        assert (response.status, response.json["error"]["code"]) == (502, "upstream_failed")
