"""A request's way through a whole data plane, over real sockets."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable

import pytest

from contract import blocks, tokens
from proto import routing_pb2 as pb
from tests.dataplane.client import Client, ask, chat, request
from tests.dataplane.conftest import Proxy, StartBackend, StartProxy
from tests.fakes.backend import (
    STREAM_HEAD,
    Backend,
    chat_json,
    chat_payload,
    chat_stream,
    json_bytes,
    raw,
    stream_bytes,
    stream_events,
    usage,
)
from tests.fakes.control import Control
from tests.waiting import turns

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


async def test_a_response_arrives_as_the_engine_wrote_it(proxy: Proxy, backend: Backend) -> None:
    payload = chat_payload("hello")
    backend.script(raw(json_bytes(payload, extra=b"x-engine: yes\r\n")))
    response = await ask(proxy.port, request(chat()))
    assert response.status == 200
    assert response.json == payload
    assert response.headers["x-engine"] == "yes"
    assert response.headers["x-headway-worker"] == "static-1"
    assert response.headers["x-headway-attempts"] == "1"
    assert response.headers["x-headway-fallback"] == "1"


@pytest.mark.parametrize("bytewise", [False, True])
async def test_a_stream_arrives_byte_for_byte(proxy: Proxy, backend: Backend, bytewise: bool) -> None:
    body = stream_bytes(stream_events(["a", "b", "ü"], usage_of=usage(5, 3, 0)))
    backend.script(raw(STREAM_HEAD + body, bytewise=bytewise))
    response = await ask(proxy.port, request(chat(stream=True)))
    assert response.raw.partition(b"\r\n\r\n")[2] == body
    assert response.text == "abü"
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"


async def test_the_engine_gets_the_callers_bytes_and_headers(proxy: Proxy, backend: Backend) -> None:
    body = b'{ "model" :"m", "messages":[], "odd" : 1.50 }'
    headers = {
        "Authorization": "Bearer k",
        "X-Request-Id": "mine",
        "traceparent": f"00-{TRACE}-{SPAN}-00",
        "tracestate": "a=1",
        "Connection": "keep-alive, X-Hop",
        "X-Hop": "1",
    }
    response = await ask(proxy.port, request(body, "/v1/chat/completions?a=b", headers=headers))
    seen = backend.requests[0]
    assert seen.body == body
    assert seen.target == "/v1/chat/completions?a=b"
    assert seen.headers["authorization"] == "Bearer k"
    assert seen.headers["x-request-id"] == "mine"
    version, trace, span, flags = seen.headers["traceparent"].split("-")
    assert (version, trace, flags) == ("00", TRACE, "00")
    assert span != SPAN
    assert seen.headers["tracestate"] == "a=1"
    assert response.headers["traceparent"] == seen.headers["traceparent"]
    assert response.headers["x-request-id"] == "mine"
    assert seen.headers["host"] == backend.url.removeprefix("http://")
    assert "x-hop" not in seen.headers
    assert "connection" not in seen.headers


async def test_a_trace_that_is_none_begins_anew_without_its_state(proxy: Proxy, backend: Backend) -> None:
    await ask(proxy.port, request(chat(), headers={"traceparent": "00-1-2-01", "tracestate": "a=1"}))
    seen = backend.requests[0]
    assert len(seen.headers["traceparent"]) == 55
    assert "tracestate" not in seen.headers


async def test_ids_are_made_where_the_caller_has_none(proxy: Proxy, backend: Backend) -> None:
    response = await ask(proxy.port, request(chat()))
    seen = backend.requests[0]
    assert len(seen.headers["x-request-id"]) == 32
    assert response.headers["x-request-id"] == seen.headers["x-request-id"]
    version, trace, span, flags = seen.headers["traceparent"].split("-")
    assert (version, len(trace), len(span), flags) == ("00", 32, 16, "01")


async def test_connections_are_kept_on_both_sides(proxy: Proxy, backend: Backend) -> None:
    client = await Client.connect(proxy.port)
    for _ in range(5):
        await client.send(request(chat()))
        assert (await client.read()).status == 200
    client.close()
    assert backend.connections == 1


async def test_old_idle_connections_are_not_used_again(start_proxy: StartProxy, backend: Backend) -> None:
    proxy = await start_proxy(backend, upstream_idle_s=0.05)
    await ask(proxy.port, request(chat()))
    await backend.until(lambda backend: backend.open == 0)
    await ask(proxy.port, request(chat()))
    assert backend.connections == 2
    assert proxy.count("reconnects") == 0


async def test_the_control_plane_decides_and_hears_how_it_ended(
    start_proxy: StartProxy, start_backend: StartBackend, control: Control
) -> None:
    first, second = await start_backend(), await start_backend()
    first.script(chat_stream(["a", "b"], usage_of=usage(30, 2, 16)))
    control.serve("m", first.url, second.url)
    proxy = await start_proxy(control=control)
    headers = {
        "x-headway-slo-ttft-ms": "250",
        "x-headway-priority": "-3",
        "x-headway-tenant": "t",
        "x-headway-session": "s",
        "x-request-id": "r1",
    }
    response = await ask(proxy.port, request(chat(stream=True, max_tokens=9), headers=headers))
    await control.until(lambda control: len(control.outcomes) == 1)
    question, outcome = control.questions[0], control.outcomes[0]
    assert (question.model, question.max_tokens, question.streams, question.attempt) == ("m", 9, True, 0)
    assert (question.slo_ttft_ms, question.priority, question.tenant, question.session) == (250, -3, "t", "s")
    assert question.request_id == "r1"
    assert response.headers["x-headway-worker"] == "w1"
    assert response.headers["x-headway-decision"] == f"{outcome.decision_id:016x}"
    assert response.headers["x-headway-matched-tokens"] == "32"
    assert response.headers["x-headway-policy"] == "scripted"
    assert "x-headway-fallback" not in response.headers
    assert outcome.end == pb.COMPLETE
    assert (outcome.prompt_tokens, outcome.cached_tokens, outcome.output_tokens) == (30, 16, 2)
    assert outcome.streamed
    assert 0 < outcome.ttft_s <= outcome.e2e_s
    assert [first_byte.decision_id for first_byte in control.first_bytes] == [outcome.decision_id]


def at_rank(control: Control, rank: int) -> Callable[[pb.Question], pb.Decision | None]:
    """Decides as `control` does, and for this rank."""

    def decide(question: pb.Question) -> pb.Decision | None:
        decision = control.round_robin(question)
        assert decision is not None
        decision.data_parallel_rank = rank
        return decision

    return decide


async def test_a_data_parallel_rank_is_passed_to_the_engine(
    start_proxy: StartProxy, backend: Backend, control: Control
) -> None:
    control.serve("m", backend.url)
    control.decide = at_rank(control, 3)
    proxy = await start_proxy(control=control)
    answer = await ask(proxy.port, request(chat(), headers={"X-Data-Parallel-Rank": "9"}))
    assert backend.requests[0].headers["x-data-parallel-rank"] == "3"
    assert answer.headers["x-headway-rank"] == "3"
    await control.until(lambda control: len(control.outcomes) == 1)
    assert control.outcomes[0].HasField("cached_tokens")


async def test_the_rank_is_said_whichever_way_an_answer_comes(
    start_proxy: StartProxy, backend: Backend, control: Control
) -> None:
    """Over requests whose head is known, with a stream's head before its events."""
    control.serve("m", backend.url)

    async def pause(index: int) -> None:
        await turns(10)

    control.decide = at_rank(control, 3)
    proxy = await start_proxy(control=control)
    steps = [chat_json("a"), chat_stream(["a", "b"]), chat_stream(["a", "b"], pause=pause)]
    for number in range(9):
        backend.script(steps[number % 3])
        answer = await ask(proxy.port, request(chat(stream=number % 3 > 0)))
        assert answer.status == 200
        assert answer.headers["x-headway-rank"] == "3", number
        assert backend.requests[-1].headers["x-data-parallel-rank"] == "3"


async def test_a_stream_without_the_control_plane_says_so_whichever_way_it_comes(
    start_proxy: StartProxy, backend: Backend, control: Control
) -> None:
    control.serve("m", backend.url)
    proxy = await start_proxy(control=control)
    await ask(proxy.port, request(chat()))
    await control.stop()
    await proxy.until(lambda app: not app.control.connected)

    async def pause(index: int) -> None:
        await turns(10)

    for number in range(6):
        backend.script(chat_stream(["a", "b"], pause=pause if number % 2 else None))
        answer = await ask(proxy.port, request(chat(stream=True)))
        assert answer.headers.get("x-headway-fallback") == "1", number
        assert "x-headway-decision" not in answer.headers


@pytest.mark.parametrize("decided", [True, False])
async def test_where_engines_read_no_rank_none_is_named_and_no_prediction_is_judged(
    start_proxy: StartProxy, backend: Backend, control: Control, decided: bool
) -> None:
    control.serve("m", backend.url)

    def decide(question: pb.Question) -> pb.Decision | None:
        decision = control.round_robin(question)
        assert decision is not None
        if decided:
            decision.data_parallel_rank = 1
        return decision

    control.decide = decide
    proxy = await start_proxy(control=control)
    answer = await ask(proxy.port, request({"model": "m", "input": "a"}, path="/v1/responses"))
    assert "x-data-parallel-rank" not in backend.requests[0].headers
    assert "x-headway-rank" not in answer.headers
    await control.until(lambda control: len(control.outcomes) == 1)
    assert control.outcomes[0].HasField("cached_tokens") is not decided


async def test_a_rank_that_a_caller_names_is_passed_on_where_none_was_decided(
    start_proxy: StartProxy, backend: Backend, control: Control
) -> None:
    control.serve("m", backend.url)
    proxy = await start_proxy(control=control)
    answer = await ask(proxy.port, request(chat(), headers={"X-Data-Parallel-Rank": "1"}))
    assert backend.requests[0].headers["x-data-parallel-rank"] == "1"
    assert "x-headway-rank" not in answer.headers


async def test_questions_of_one_tick_travel_in_few_messages(
    start_proxy: StartProxy, backend: Backend, control: Control
) -> None:
    control.serve("m", backend.url)
    proxy = await start_proxy(control=control)
    await asyncio.gather(*(ask(proxy.port, request(chat())) for _ in range(50)))
    await control.until(lambda control: len(control.outcomes) == 50)
    messages = [batch for batch in control.batches if batch.questions]
    assert len(control.questions) == 50
    assert len({question.question_id for question in control.questions}) == 50
    assert len(messages) < 50


async def test_the_question_carries_the_chain_that_agents_publish(
    start_proxy: StartProxy, backend: Backend, control: Control
) -> None:
    control.serve("m", backend.url, tokenizer=tokens.BUILTIN)
    proxy = await start_proxy(control=control)
    await proxy.until(lambda app: app.prompts.status(app.gateway.fleet.view.models) == {"m": "ready"})
    body = chat("word " * 200)
    await ask(proxy.port, request(body))
    await ask(proxy.port, request(chat("word " * 20_000)))  # in a thread
    question = control.questions[0]
    flat = tokens.load(tokens.BUILTIN).prompts("/v1/chat/completions", body)[0]
    assert question.chain_kind == pb.TOKENS
    assert question.input_tokens == len(flat) // 4
    assert question.chains[0].block_size == 16
    assert question.chains[0].hashes == blocks.chain(flat, 16, blocks.root_hash("m")).tobytes()
    longer = control.questions[1].chains[0].hashes
    shared = (len(question.chains[0].hashes) // 8 - 2) * 8
    assert longer[:shared] == question.chains[0].hashes[:shared]


async def test_an_adapter_and_a_cache_salt_change_the_chain(
    start_proxy: StartProxy, backend: Backend, control: Control
) -> None:
    control.serve("m", backend.url, tokenizer=tokens.BUILTIN, base="base")
    proxy = await start_proxy(control=control)
    await proxy.until(lambda app: app.prompts.status(app.gateway.fleet.view.models) == {"m": "ready"})
    body = chat("word " * 200, cache_salt="salt")
    await ask(proxy.port, request(body))
    flat = tokens.load(tokens.BUILTIN).prompts("/v1/chat/completions", body)[0]
    root = blocks.root_hash("base", lora="m", cache_salt="salt")
    assert control.questions[0].chains[0].hashes == blocks.chain(flat, 16, root).tobytes()


async def test_without_a_tokenizer_the_prompt_is_hashed_as_text_and_ready_says_so(
    start_proxy: StartProxy, backend: Backend, control: Control
) -> None:
    control.serve("m", backend.url)
    proxy = await start_proxy(control=control)
    await ask(proxy.port, request(chat("text " * 200)))
    question = control.questions[0]
    assert question.chain_kind == pb.TEXT
    assert len(question.chains[0].hashes) > 8 * 10
    assert proxy.count("chains", "text") == 1
    ready = await ask(proxy.port, request(path="/ready", method="GET"))
    assert ready.json["tokenizers"]["m"].startswith("text: ")


async def test_a_tokenizer_that_cannot_be_had_is_named_in_ready(
    start_proxy: StartProxy, backend: Backend, control: Control
) -> None:
    control.serve("m", backend.url, tokenizer="/no/such/directory")
    proxy = await start_proxy(control=control)
    await proxy.until(lambda app: "text" in app.prompts.status(app.gateway.fleet.view.models)["m"])
    await ask(proxy.port, request(chat("text " * 200)))
    assert control.questions[0].chain_kind == pb.TEXT


async def test_the_models_of_the_fleet_are_listed(start_proxy: StartProxy, backend: Backend, control: Control) -> None:
    control.serve("org/m", backend.url, base="org/base")
    proxy = await start_proxy(control=control)
    listed = (await ask(proxy.port, request(path="/v1/models", method="GET"))).json
    assert listed["object"] == "list"
    assert [(entry["id"], entry["parent"], entry["max_model_len"]) for entry in listed["data"]] == [("org/m", "org/base", 4096)]
    assert (await ask(proxy.port, request(path="/v1/models/org/m", method="GET"))).json == listed["data"][0]
    missing = await ask(proxy.port, request(path="/v1/models/other", method="GET"))
    assert (missing.status, missing.json["error"]["code"]) == (404, "model_not_found")


async def test_health_ready_and_metrics_answer_for_themselves(proxy: Proxy) -> None:
    assert (await ask(proxy.port, request(path="/health", method="GET"))).status == 200
    ready = await ask(proxy.port, request(path="/ready", method="GET"))
    assert (ready.status, ready.json["control"], ready.json["fleet"]["available"]) == (200, "fallback", 1)
    metrics = await ask(proxy.port, request(path="/metrics", method="GET"))
    assert b"headway_proxy_requests_in_flight 0.0" in metrics.body


async def test_an_admin_port_takes_them_off_the_main_one(start_proxy: StartProxy, backend: Backend, free_port: int) -> None:
    proxy = await start_proxy(backend, admin_port=free_port)
    for path in ("/health", "/ready", "/metrics"):
        assert (await ask(proxy.port, request(path=path, method="GET"))).status == 404
        assert (await ask(free_port, request(path=path, method="GET"))).status == 200
    assert (await ask(free_port, request(chat()))).status == 404


async def test_a_multipart_body_is_routed_by_its_model(start_proxy: StartProxy, backend: Backend, control: Control) -> None:
    control.serve("whisper", backend.url)
    proxy = await start_proxy(control=control)
    body = b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\nwhisper\r\n--b--\r\n'
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    response = await ask(proxy.port, request(body, "/v1/audio/transcriptions", headers=headers))
    assert response.status == 200
    assert control.questions[0].model == "whisper"
    assert backend.requests[0].body == body


async def test_http10_gets_an_unframed_stream_and_a_close(proxy: Proxy, backend: Backend) -> None:
    backend.script(chat_stream(["a", "b"]))
    response = await ask(proxy.port, request(chat(stream=True), version="1.0"))
    assert "transfer-encoding" not in response.headers
    assert response.headers["connection"] == "close"
    assert response.text == "ab"


async def test_pipelined_requests_are_answered_in_order(proxy: Proxy, backend: Backend) -> None:
    backend.script(*(chat_json(str(number)) for number in range(20)))
    client = await Client.connect(proxy.port)
    await client.send(b"".join(request(chat(str(number))) for number in range(20)))
    for number in range(20):
        assert (await client.read()).json["choices"][0]["message"]["content"] == str(number)
    client.close()
    assert backend.connections == 1


async def test_a_slow_reader_holds_the_engine_back(start_proxy: StartProxy, backend: Backend) -> None:
    """The engine writes far more than the proxy may buffer; the client then reads all of it."""
    proxy = await start_proxy(backend)
    event = b"data: " + json.dumps({"choices": [{"delta": {"content": "x" * 8000}}]}).encode() + b"\n\n"
    body = stream_bytes([event] * 2000 + [b"data: [DONE]\n\n"])
    sent = 0

    async def step(seen: object, wire: object) -> None:
        nonlocal sent
        for start in range(0, len(STREAM_HEAD + body), 65536):
            await wire.send((STREAM_HEAD + body)[start : start + 65536])  # type: ignore[attr-defined]
            sent = start

    backend.script(step)
    client = await Client.connect(proxy.port)
    client.writer.transport.pause_reading()
    await client.send(request(chat(stream=True)))
    await proxy.until(lambda app: any(connection.stalled_since for connection in app.server.connections))
    assert sent < len(body) - 1_000_000
    client.writer.transport.resume_reading()
    async with asyncio.timeout(20):
        await client.reader.readuntil(b"\r\n\r\n")
        assert await client.reader.readexactly(len(body)) == body
    client.close()


async def test_cors_is_answered_where_it_is_set(start_proxy: StartProxy, backend: Backend) -> None:
    proxy = await start_proxy(backend, cors_origin="https://app.example")
    preflight = await ask(proxy.port, request(method="OPTIONS"))
    assert preflight.status == 204
    assert preflight.headers["access-control-allow-origin"] == "https://app.example"
    assert "POST" in preflight.headers["access-control-allow-methods"]
    assert (await ask(proxy.port, request(chat()))).headers["access-control-allow-origin"] == "https://app.example"


async def test_a_prompt_that_breaks_its_tokenizer_is_routed_without_a_chain(
    start_proxy: StartProxy, backend: Backend, control: Control
) -> None:
    """Deep nesting where only the engine may object: the router must not."""
    control.serve("m", backend.url, tokenizer=tokens.BUILTIN)
    proxy = await start_proxy(control=control)
    await proxy.until(lambda app: app.prompts.status(app.gateway.fleet.view.models) == {"m": "ready"})
    for messages in ([{"role": "user"}], "text", [1], [{"role": "user", "content": {"a": 1}}], [None], {}):
        response = await ask(proxy.port, request({"model": "m", "messages": messages}))
        assert response.status == 200
    assert len(backend.requests) == 6
