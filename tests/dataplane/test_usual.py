"""The short way of usual requests against the general machine: the same bytes, counts, outcomes, whatever an engine does."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from pprint import pformat
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract.outcome import End
from contract.routing import Asked
from dataplane import connection, preparing, sse
from dataplane.control import Take
from dataplane.prompts import UNREAD, Prompt
from dataplane.relay import Relay
from dataplane.rows import Chains, RequestRow
from dataplane.usual import UsualExchange, whole_head
from tests.dataplane.client import Client, Response, Truncated, chat, request
from tests.dataplane.conftest import Proxy, StartBackend, StartProxy
from tests.fakes.backend import (
    LAST_CHUNK,
    STREAM_HEAD,
    Step,
    chat_json,
    chat_payload,
    chat_stream,
    chunk,
    closes,
    delta,
    event,
    json_bytes,
    raw,
    resets,
    status,
    stream_events,
)
from tests.fakes.control import Control
from tests.waiting import until

CHANGING = frozenset(("x-request-id", "traceparent", "x-headway-decision", "date"))
WARMING = 2
"""Requests until the head is known and a connection idles."""

USUAL = json_bytes(chat_payload("hello"))
CACHED = {"prompt_tokens": 9, "completion_tokens": 4, "total_tokens": 13, "prompt_tokens_details": {"cached_tokens": 8}}
EVENTS = stream_events(["a", "b"], usage_of=CACHED)


def in_chunks(bodies: Iterable[bytes]) -> bytes:
    """A whole stream."""
    return STREAM_HEAD + b"".join(map(chunk, bodies)) + LAST_CHUNK


def torn(data: bytes, size: int) -> Iterator[bytes]:
    return (data[at : at + size] for at in range(0, len(data), size))


WHOLE_STREAM = in_chunks(EVENTS)
STEPS: dict[str, Step] = {
    "usual": raw(USUAL),
    "its cached tokens": chat_json("x", usage_of=CACHED),
    "usage in other words": chat_json("x", usage_of={"input_tokens": 3, "output_tokens": 2, "cache_read_input_tokens": 1}),
    "no usage": raw(json_bytes({"choices": [{"message": {"content": "x"}, "finish_reason": "stop"}]})),
    "usage of another type": chat_json("x", usage_of={"prompt_tokens": "many", "completion_tokens": 1}),
    "unfinished": raw(json_bytes({"choices": [{"message": {"content": "x"}, "finish_reason": None}], "usage": CACHED})),
    "two choices": raw(json_bytes(chat_payload("x") | {"choices": chat_payload("x")["choices"] * 2})),  # type: ignore[operator]
    "no choices": raw(json_bytes({"data": [], "usage": CACHED})),
    "an error inside": raw(json_bytes({"error": {"message": "x", "code": 400}})),
    "aborted": chat_json("x", finish="abort"),
    "aborted without text": chat_json("", finish="abort"),
    "no JSON": raw(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 3\r\n\r\n{x}"),
    "an array": raw(json_bytes([1])),
    "text": raw(b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: 3\r\n\r\nabc"),
    "encoded": raw(json_bytes(chat_payload("x"), extra=b"content-encoding: br\r\n")),
    "its own request id": raw(json_bytes(chat_payload("x"), extra=b"X-Request-Id: engine\r\n")),
    "hop by hop": raw(json_bytes(chat_payload("x"), extra=b"Connection: keep-alive\r\nKeep-Alive: timeout=5\r\n")),
    "closing": raw(json_bytes(chat_payload("x"), extra=b"connection: close\r\n"), close=True),
    "HTTP/1.0": raw(USUAL.replace(b"HTTP/1.1", b"HTTP/1.0"), close=True),
    "byte by byte": raw(USUAL, bytewise=True),
    "too much": raw(USUAL + b"HTTP/1.1 200 OK\r\n"),
    "100 first": raw(b"HTTP/1.1 100 Continue\r\n\r\n" + USUAL),
    "cut short": closes(USUAL[:-4]),
    "no length": closes(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n" + USUAL.split(b"\r\n\r\n", 1)[1]),
    "chunked": raw(
        b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n" + chunk(b"{}") + LAST_CHUNK
    ),
    "no HTTP": closes(b"SSH-2.0-OpenSSH\r\n\r\n"),
    "two lengths": closes(USUAL.replace(b"content-length", b"content-length: 7\r\ncontent-length", 1)),
    "empty": closes(),
    "reset": resets(),
    "400": status(400),
    "404": status(404),
    "429": status(429),
    "500": status(500),
    "503": status(503),
    "204": raw(b"HTTP/1.1 204 No Content\r\n\r\n"),
    "a stream": chat_stream(["a", "b", "c"]),
    "a stream with usage": chat_stream(["a", "b"], usage_of=CACHED),
    "a long stream": chat_stream(["word"] * 30, usage_of=CACHED),
    "a stream that is aborted": chat_stream(["a", "b"], finish="abort"),
    "a stream that is aborted before it began": chat_stream([], finish="abort"),
    "a stream whose end comes with its last event": raw(
        STREAM_HEAD + chunk(event(delta("a"))) + chunk(event(delta("b", finish="stop"))) + chunk(event("[DONE]")) + LAST_CHUNK
    ),
    "a stream of a connection that closes": raw(
        STREAM_HEAD.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n")
        + chunk(event(delta("a", finish="stop")) + event("[DONE]"))
        + LAST_CHUNK,
        close=True,
    ),
    "a stream cut short": closes(STREAM_HEAD + chunk(event(delta("a")))),
    "a length of none": raw(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 0\r\n\r\n"),
    "304": raw(b"HTTP/1.1 304 Not Modified\r\ncontent-length: 7\r\netag: x\r\n\r\n"),
    "204 with a length": raw(b"HTTP/1.1 204 No Content\r\ncontent-length: 7\r\n\r\n"),
    "headers twice": raw(json_bytes(chat_payload("x"), extra=b"x-a: 1\r\nX-A: 2\r\nset-cookie: a\r\nset-cookie: b\r\n")),
    "values in capitals": raw(USUAL.replace(b"application/json", b"APPLICATION/JSON").replace(b"content-t", b"CONTENT-T")),
    "a length with zeros": raw(USUAL.replace(b"content-length: ", b"content-length: 000")),
    "two answers": raw(USUAL + USUAL),
    "102 and 103 first": raw(b"HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n" + USUAL),
    "closed with the last byte": raw(USUAL, close=True),
    "a stream after 100": raw(b"HTTP/1.1 100 Continue\r\n\r\n" + WHOLE_STREAM),
    "a stream with trailers": raw(WHOLE_STREAM[:-2] + b"x-checksum: 1\r\nx-b: 2\r\n\r\n"),
    "a stream with extensions": raw(WHOLE_STREAM.replace(b"\r\ndata", b';a=b;c="d"\r\ndata')),
    "a stream in capitals": raw(
        b"".join(b"%X\r\n%b\r\n" % (len(each), each) for each in EVENTS).join((STREAM_HEAD, LAST_CHUNK))
    ),
    "a stream with zeros": raw(
        b"".join(b"000%x\r\n%b\r\n" % (len(each), each) for each in EVENTS).join((STREAM_HEAD, LAST_CHUNK))
    ),
    "a stream without a space": raw(in_chunks(each.replace(b"data: ", b"data:") for each in EVENTS)),
    "a stream of CRLF": raw(in_chunks(each.replace(b"\n", b"\r\n") for each in EVENTS)),
    "a stream with comments": raw(in_chunks(b": ping\n\n:\n" + each for each in EVENTS)),
    "a stream of comments first": raw(in_chunks([b": ping\n\n", b":\n\n", *EVENTS])),
    "a stream with names": raw(in_chunks(b"id: 7\nevent: delta\nretry: 5\n" + each for each in EVENTS)),
    "a stream byte by byte": raw(WHOLE_STREAM, bytewise=True),
    "a stream of a chunk a byte": raw(in_chunks(bytes((byte,)) for byte in b"".join(EVENTS))),
    "a stream in one chunk": raw(in_chunks([b"".join(EVENTS)])),
    "a stream torn at odd places": raw(in_chunks(torn(b"".join(EVENTS), 61))),
    "a stream of known length": raw(
        STREAM_HEAD.replace(b"transfer-encoding: chunked", b"content-length: %d" % len(b"".join(EVENTS))) + b"".join(EVENTS)
    ),
    "a stream that ends with its connection": closes(
        STREAM_HEAD.replace(b"transfer-encoding: chunked\r\n", b"") + b"".join(EVENTS)
    ),
    "a stream closed with the last byte": raw(WHOLE_STREAM, close=True),
    "a stream and more behind it": raw(WHOLE_STREAM + USUAL),
    "two streams": raw(WHOLE_STREAM + WHOLE_STREAM),
    "a stream with an error": raw(
        STREAM_HEAD + chunk(event(delta("a"))) + chunk(event({"error": {"message": "x"}})) + LAST_CHUNK
    ),
}


async def observe(proxy: Proxy, control: Control, streams: bool) -> dict[str, Any]:
    """All that a caller, the metrics and the control plane see of two requests on one connection, behind two that warm it."""
    seen: list[Any] = []
    client = await Client.connect(proxy.port)
    for number in range(WARMING + 2):
        await client.send(request(chat(f"question {number}", stream=streams)))
        try:
            response = await client.read()
        except Truncated as truncated:
            seen.append(("truncated", shown(truncated.response)))
            client = await Client.connect(proxy.port)
        else:
            seen.append(shown(response))
            if response.headers.get("connection") == "close":
                client = await Client.connect(proxy.port)
    client.close()
    await proxy.until(lambda app: not app.gateway.exchanges)
    await control.until(lambda control: len(control.outcomes) == proxy_attempts(proxy))
    metrics = proxy.app.gateway.metrics
    counted = {
        name: getattr(metrics, name).values for name in ("requests", "attempts", "retries", "decisions", "chains", "sheds")
    }
    return {"seen": seen, "counted": counted, "outcomes": sorted(map(ended, control.outcomes)), "asked": asked(control)}


def proxy_attempts(proxy: Proxy) -> int:
    return int(sum(proxy.app.gateway.metrics.attempts.values.values()))


def shown(response: Response) -> Any:
    kept = {name: value for name, value in response.headers.items() if name not in CHANGING}
    return response.status, kept, sorted(response.names), response.body


def ended(outcome: Any) -> Any:
    usage = (outcome.output_tokens, outcome.prompt_tokens, outcome.cached_tokens, outcome.HasField("cached_tokens"))
    return (outcome.decision_id, outcome.end, outcome.http_status, outcome.streamed, outcome.model, outcome.url, *usage)


def asked(control: Control) -> Any:
    return [(each.model, each.input_tokens, each.chain_kind, each.streams, list(each.exclude)) for each in control.questions]


@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize("name", STEPS)
async def test_both_ways_do_the_same(
    name: str, streams: bool, start_proxy: StartProxy, start_backend: StartBackend, short_dir: Path
) -> None:
    found = []
    for short in (True, False):
        bad, good = await start_backend(), await start_backend()
        for backend in (bad, good):
            backend.script(*[raw(USUAL)] * (WARMING // 2), STEPS[name])
        control = await Control.start(f"unix:{short_dir}/c{short}.sock")
        control.serve("m", bad.url, good.url)
        proxy = await start_proxy(control=control)
        proxy.app.server.short_ways = short
        found.append(pformat(await observe(proxy, control, streams)))
        await proxy.app.stop()
        await control.stop()
        found[-1] = found[-1].replace(bad.url, "first engine").replace(good.url, "second engine")
    assert found[0] == found[1]


@pytest.mark.parametrize("streams", [False, True])
async def test_both_ways_say_that_the_fallback_decided(
    streams: bool, start_proxy: StartProxy, start_backend: StartBackend
) -> None:
    backend, found, proxy = await start_backend(), [], None

    async def apart(index: int) -> None:
        """The first event comes once the head is read."""
        assert proxy is not None
        exchanges = proxy.app.gateway.exchanges
        if index == 0:
            await until(lambda: any(each._relay.head is not None for each in exchanges))  # type: ignore[attr-defined]

    backend.script(chat_stream(["a", "b"], pause=apart) if streams else raw(USUAL))
    for short in (True, False):
        proxy = await start_proxy(backend)
        proxy.app.server.short_ways = short
        client, seen = await Client.connect(proxy.port), []
        for _ in range(WARMING + 2):
            await client.send(request(chat(stream=streams)))
            seen.append(shown(await client.read()))
        client.close()
        found.append(seen)
    assert found[0] == found[1]
    assert all(headers["x-headway-fallback"] == "1" for _, headers, _, _ in found[0])


async def test_the_usual_request_takes_the_short_way(
    start_proxy: StartProxy, start_backend: StartBackend, control: Control, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the tests above would compare the general machine with itself."""
    backend = await start_backend()
    backend.script(raw(USUAL))
    control.serve("m", backend.url)
    proxy = await start_proxy(control=control)
    taken: list[bool] = []
    whole = UsualExchange._answer_whole  # the real one runs; nothing that a caller or an operator sees tells the ways apart

    def answer_whole(exchange: UsualExchange, data: bytes) -> bool:
        taken.append(whole(exchange, data))
        return taken[-1]

    monkeypatch.setattr(UsualExchange, "_answer_whole", answer_whole)
    client = await Client.connect(proxy.port)
    for _ in range(4):
        await client.send(request(chat()))
        assert (await client.read()).status == 200
    client.close()
    assert taken == [True, True, True]  # the first one's head was the parser's to read


@pytest.mark.parametrize("chars", [10, preparing.QUICK_BYTES_MAX, 40_000])
async def test_a_prompt_of_any_size_is_read(
    chars: int, start_proxy: StartProxy, start_backend: StartBackend, control: Control
) -> None:
    """Small bodies are decoded once, for what is asked and for the prompt; of larger ones the prompt is decoded later."""
    backend = await start_backend()
    backend.script(raw(USUAL))
    control.serve("m", backend.url)
    proxy = await start_proxy(control=control)
    client = await Client.connect(proxy.port)
    for _ in range(3):
        await client.send(request(chat(messages=[{"role": "user", "content": "x" * chars}], max_tokens=7)))
        assert (await client.read()).status == 200
    client.close()
    assert len({(question.input_tokens, len(question.chains[0].hashes)) for question in control.questions}) == 1
    assert control.questions[-1].input_tokens >= chars // 4
    assert control.questions[-1].max_tokens == 7


@pytest.mark.parametrize("short", [True, False])
async def test_a_connection_that_was_told_to_wait_for_a_slow_reader_goes_on_for_the_next_request(
    short: bool, start_proxy: StartProxy, start_backend: StartBackend, control: Control, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where an answer is more than its socket takes: the transport says so amid the write, and takes it back later. When a
    kernel's buffer is full is not for a test to choose, so the connection's own `write` says it."""
    made, paused = connection.ClientConnection.connection_made, []

    def connection_made(client: connection.ClientConnection, transport: asyncio.BaseTransport) -> None:
        made(client, transport)
        write = client.write

        def write_and_pause(data: bytes) -> None:
            write(data)
            client.pause_writing()
            paused.append(client)
            asyncio.get_running_loop().call_soon(client.resume_writing)

        client.write = write_and_pause

    # A reader that is slow at this very write: real sockets do not let a test choose when.
    monkeypatch.setattr(connection.ClientConnection, "connection_made", connection_made)
    backend = await start_backend()
    backend.script(raw(USUAL))
    control.serve("m", backend.url)
    proxy = await start_proxy(control=control)
    proxy.app.server.short_ways = short
    client = await Client.connect(proxy.port)
    for _ in range(5):
        await client.send(request(chat()))
        assert (await client.read()).status == 200
    client.close()
    assert len(paused) == 5
    assert {seen.connection for seen in backend.requests} == {backend.requests[0].connection}


async def test_a_question_is_asked_when_its_prompt_is_read_not_when_its_request_came(
    start_proxy: StartProxy, start_backend: StartBackend, control: Control, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its deadline is the control plane's, not the tokenizer's, which is made to take long: a real prompt would take as long as
    the machine makes it."""
    backend = await start_backend()
    control.serve("m", backend.url)
    proxy = await start_proxy(control=control)
    clock, loop, late_s = proxy.app.gateway.clock, asyncio.get_running_loop(), []
    ask, ask_usual = proxy.app.control.ask, proxy.app.control.ask_usual

    def asked(question: Asked, take: Take, now: float) -> int:
        late_s.append(clock.now() - now)
        return ask(question, take, now)

    def asked_usual(wanted: RequestRow, chains: Chains, take: Take, now: float) -> int:
        late_s.append(clock.now() - now)
        return ask_usual(wanted, chains, take, now)

    def prepare(gateway: Any, request: Any, ask: Any, done: Callable[[Prompt], None], fields: Any = None) -> None:
        loop.call_later(0.2, done, UNREAD)

    # The real one is asked, and watched; reading a prompt takes as long as it never would here.
    monkeypatch.setattr(proxy.app.control, "ask", asked)
    monkeypatch.setattr(proxy.app.control, "ask_usual", asked_usual)
    monkeypatch.setattr(preparing, "prepare", prepare)
    client = await Client.connect(proxy.port)
    for _ in range(3):
        await client.send(request(chat("x" * preparing.QUICK_BYTES_MAX)))
        assert (await client.read()).status == 200
    client.close()
    assert len(late_s) == 3
    assert max(late_s) < 0.1


_PARTS = st.fixed_dictionaries(
    {},
    optional={
        "choices": st.one_of(
            st.none(),
            st.lists(
                st.fixed_dictionaries(
                    {},
                    optional={
                        "finish_reason": st.sampled_from([None, "stop", "length", "abort", 3]),
                        "message": st.sampled_from([None, {}, {"content": ""}, {"content": "x"}]),
                        "text": st.sampled_from(["", "x"]),
                    },
                ),
                max_size=2,
            ),
        ),
        "usage": st.one_of(
            st.none(),
            st.dictionaries(
                st.sampled_from(
                    ["prompt_tokens", "completion_tokens", "input_tokens", "output_tokens", "cache_read_input_tokens"]
                ),
                st.sampled_from([None, 0, 5, 2**40, "5"]),
            ),
            st.just(CACHED),
            st.just(CACHED | {"prompt_tokens_details": {"cached_tokens": None}}),
        ),
        "type": st.sampled_from([None, "error", "message", "response.completed"]),
        "error": st.sampled_from([None, {}, "x"]),
    },
)


@given(_PARTS)
def test_what_is_read_the_short_way_is_content_complete_and_of_the_same_tokens(parts: dict[str, Any]) -> None:
    body = json.dumps(parts).encode()
    tokens = sse.read_usual(body)
    if tokens is None:
        return
    says, ending = sse.read_whole(body)
    if ending == sse.Ending():
        return  # nothing could be read there
    assert says is sse.Says.CONTENT
    assert not ending.error
    assert not ending.aborted
    cached = -1 if ending.cached_tokens is None else ending.cached_tokens
    assert tokens == (ending.prompt_tokens, ending.output_tokens, cached)


@given(
    st.sampled_from([USUAL, USUAL[:-1], USUAL + b"x", USUAL.replace(b"200", b"500"), b""]),
    st.integers(0, 200),
    st.binary(max_size=3),
)
def test_a_head_is_whole_only_where_the_general_machine_finds_it_so(data: bytes, at: int, more: bytes) -> None:
    data = data[:at] + more + data[at:]
    found = whole_head(data)
    if found is None:
        return
    relay = Relay(hold_bytes_max=1 << 20)
    assert relay.feed(data) == b""
    assert relay.ready
    assert relay.head is not None
    assert relay.reusable
    assert (relay.head.passed_on, relay.release()) == (found[2], data[found[1] :])
    assert relay.verdict().end in (End.COMPLETE, End.ENGINE_ABORTED, End.ENGINE_ERROR)
