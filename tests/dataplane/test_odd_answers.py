"""Answers of engines that are right, but not as vLLM writes them; and broken ones that could be taken for whole."""

from __future__ import annotations

import asyncio

import pytest

from proto import routing_pb2 as pb
from tests.dataplane.client import Client, Truncated, ask, chat, request
from tests.dataplane.conftest import StartBackend, StartProxy
from tests.fakes.backend import (
    LAST_CHUNK,
    STREAM_HEAD,
    Backend,
    Seen,
    Wire,
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
    stream_events,
)
from tests.fakes.control import Control


def lines_of(raw: bytes, name: bytes) -> list[bytes]:
    """All header lines of that name, in the head of a response."""
    head = raw.partition(b"\r\n\r\n")[0]
    return [line for line in head.split(b"\r\n") if line.lower().startswith(name + b":")]


@pytest.mark.parametrize("stream", [False, True])
async def test_origins_are_the_routers_to_allow(
    stream: bool, start_proxy: StartProxy, backend: Backend, control: Control
) -> None:
    """vLLM allows every origin by itself; browsers refuse an answer with two such lines."""
    cors = b"Access-Control-Allow-Origin: *\r\naccess-control-allow-credentials: true\r\naccess-control-expose-headers: x-a\r\n"
    whole = json_bytes(chat_payload("x"), extra=cors)
    events = b"".join(map(chunk, stream_events(["a"]))) + LAST_CHUNK
    backend.script(raw(STREAM_HEAD.replace(b"\r\n\r\n", b"\r\n" + cors + b"\r\n") + events if stream else whole))
    control.serve("m", backend.url)
    proxy = await start_proxy(control=control, cors_origin="https://a.example")
    client = await Client.connect(proxy.port)
    for _ in range(3):
        await client.send(request(chat(stream=stream), headers={"Origin": "https://a.example"}))
        response = await client.read()
        assert lines_of(response.raw, b"access-control-allow-origin") == [b"access-control-allow-origin: https://a.example"]
        assert lines_of(response.raw, b"access-control-allow-credentials") == []
        assert lines_of(response.raw, b"access-control-expose-headers") == [b"access-control-expose-headers: *"]
    client.close()


async def test_what_an_engine_names_as_of_this_connection_goes_no_further(start_proxy: StartProxy, backend: Backend) -> None:
    backend.script(raw(json_bytes(chat_payload("x"), extra=b"X-Hop: 1\r\nConnection: x-hop, keep-alive\r\nx-kept: 2\r\n")))
    proxy = await start_proxy(backend)
    response = await ask(proxy.port, request(chat()))
    assert (response.status, response.headers.get("x-hop"), response.headers["x-kept"]) == (200, None, "2")


async def test_what_a_caller_names_as_of_this_connection_goes_no_further_in_however_many_lines(
    start_proxy: StartProxy, backend: Backend
) -> None:
    proxy = await start_proxy(backend)
    data = request(chat()).replace(b"\r\n\r\n", b"\r\nConnection: keep-alive\r\nconnection: X-Hop\r\nx-hop: 1\r\n\r\n", 1)
    assert (await ask(proxy.port, data)).status == 200
    assert "x-hop" not in backend.requests[0].headers


def sized(body: bytes, missing: int) -> bytes:
    """Of a stream with a Content-Length, all but the last bytes."""
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: %d\r\n\r\n" % len(body)
    return head + body[: len(body) - missing]


async def test_a_stream_of_known_length_that_breaks_off_is_never_filled_up(start_proxy: StartProxy, backend: Backend) -> None:
    """An error event in place of the missing bytes would be cut where the length says, and taken for the stream's own end."""
    body = b"".join(stream_events(["a", "b"]))
    backend.script(closes(sized(body, 20)))
    proxy = await start_proxy(backend)
    with pytest.raises(Truncated) as truncated:
        await ask(proxy.port, request(chat(stream=True)))
    assert truncated.value.response.body == body[:-20]


@pytest.mark.parametrize("apart", [False, True])
async def test_nothing_follows_a_stream_of_known_length(apart: bool, start_proxy: StartProxy, backend: Backend) -> None:
    """It ends as HTTP where its length says, finished or not: bytes behind it would be the next answer's."""
    body = event(delta("a")) + event(delta("b"))
    first_read = asyncio.Event()

    async def step(seen: Seen, wire: Wire) -> None:
        await wire.send(sized(body, 10 if apart else 0))
        if apart:
            await first_read.wait()
            await wire.send(body[-10:])

    backend.script(step)
    proxy = await start_proxy(backend)
    client = await Client.connect(proxy.port)
    await client.send(request(chat(stream=True), close=True))
    async with asyncio.timeout(10):
        got = await client.reader.readuntil(b"\n\n")
        first_read.set()
        got += await client.reader.read()
    assert got.partition(b"\r\n\r\n")[2] == body
    client.close()


UNTIL_CLOSED = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n"


async def test_a_body_that_ends_with_its_connection_has_not_ended_with_a_reset(
    start_proxy: StartProxy, start_backend: StartBackend, control: Control
) -> None:
    bad, good = await start_backend(), await start_backend()
    bad.script(resets(UNTIL_CLOSED + b'{"choices":[{"message":{"content":"hal'))
    control.serve("m", bad.url, good.url)
    proxy = await start_proxy(control=control)
    response = await ask(proxy.port, request(chat()))
    assert response.json["choices"][0]["message"]["content"] == "hello"
    assert response.headers["x-headway-attempts"] == "2"
    await control.until(lambda control: len(control.outcomes) == 2)
    assert control.outcomes[0].end == pb.RESET


AUDIO = b"HTTP/1.1 200 OK\r\ncontent-type: audio/mpeg\r\n"


@pytest.mark.parametrize(
    ("version", "head", "part"),
    [("1.0", b"transfer-encoding: chunked\r\n\r\n", chunk(b"x" * 100)), ("1.1", b"\r\n", b"x" * 100)],
    ids=["HTTP/1.0", "no length"],
)
@pytest.mark.parametrize("ends", ["the engine", "the router"])
async def test_a_body_that_only_its_connection_ends_does_not_end_in_order_where_it_broke(
    ends: str, version: str, head: bytes, part: bytes, start_proxy: StartProxy, backend: Backend
) -> None:
    go_on = asyncio.Event()

    async def step(seen: Seen, wire: Wire) -> None:
        await wire.send(AUDIO + head + part)
        await go_on.wait()
        wire.reset()

    backend.script(step)
    proxy = await start_proxy(backend, drain_timeout_s=0.05)
    client = await Client.connect(proxy.port)
    await client.send(request({"model": "m", "input": "x"}, "/v1/audio/speech", version=version))
    async with asyncio.timeout(10):
        await client.reader.readuntil(b"x" * 100)
        if ends == "the engine":
            go_on.set()
        else:
            await proxy.app.stop()
        with pytest.raises(ConnectionResetError):
            await client.reader.read()
    go_on.set()
    client.close()


@pytest.mark.parametrize("tokens", [10**30, 2**64 - 1, 2**32, -1, -(10**30)])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("packs", [False, True])
async def test_counts_that_are_none_are_not_told(
    packs: bool, stream: bool, tokens: int, start_proxy: StartProxy, backend: Backend, control: Control
) -> None:
    """They would end the message that they are in, and all that was to be said with it."""
    counts = {"prompt_tokens": tokens, "completion_tokens": tokens, "prompt_tokens_details": {"cached_tokens": tokens}}
    backend.script(chat_stream(["a"], usage_of=counts) if stream else chat_json("a", usage_of=counts))
    control.serve("m", backend.url)
    control.packs = packs
    proxy = await start_proxy(control=control)
    client = await Client.connect(proxy.port)
    for number in range(1, 5):
        await client.send(request(chat(stream=stream)))
        response = await client.read()
        assert (response.status, response.headers.get("x-headway-fallback")) == (200, None)
        await control.until(lambda control, number=number: len(control.outcomes) == number)  # type: ignore[misc]
        outcome = control.outcomes[-1]
        assert (outcome.end, outcome.HasField("prompt_tokens"), outcome.HasField("cached_tokens")) == (
            pb.COMPLETE,
            False,
            False,
        )
        assert 0 <= outcome.output_tokens < 10
    assert len(control.hellos) == 1
    client.close()


async def test_a_length_that_is_said_twice_is_passed_on_once(start_proxy: StartProxy, backend: Backend) -> None:
    """Many clients refuse the second, and with it an answer that is fine."""
    whole = json_bytes(chat_payload("hello"))
    length = next(line for line in whole.split(b"\r\n") if line.startswith(b"content-length"))
    backend.script(raw(whole.replace(length, length + b"\r\n" + length.title())))
    proxy = await start_proxy(backend)
    response = await ask(proxy.port, request(chat()))
    assert response.json == chat_payload("hello")
    assert response.names.count("content-length") == 1


@pytest.mark.parametrize("status", [b"000", b"099"])
async def test_a_status_that_is_none_is_no_answer_to_wait_behind(
    start_proxy: StartProxy, start_backend: StartBackend, status: bytes
) -> None:
    """Statuses below 200 announce another answer, but those of two digits are no statuses."""
    odd, good = await start_backend(), await start_backend()
    for backend in (odd, good):
        backend.script(raw(json_bytes(chat_payload("hello")).replace(b"200", status)))
    good.script(raw(json_bytes(chat_payload("hello"))))
    proxy = await start_proxy(odd, good)
    for _ in range(2):
        assert (await ask(proxy.port, request(chat()))).status == 200
    assert len(odd.requests) == 1
