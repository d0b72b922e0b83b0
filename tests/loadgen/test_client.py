from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable

import pytest

from dataplane import wishes
from loadgen.client import IDLE_CONNECTION_S_MAX, SESSION_CHARS_MAX, Client, Exchange, Target, served_model
from loadgen.errors import LoadError
from loadgen.workload import TimedRequest
from runtime.clock import ManualClock, SystemClock
from tests.fakes.sse_server import (
    DONE,
    LAST_CHUNK,
    Handler,
    Reply,
    Request,
    SseServer,
    chat_text,
    chunk,
    complete,
    error_object,
    event,
    json_reply,
    stream_head,
)
from tests.waiting import turns

ASK = TimedRequest(0, 0.0, "/v1/chat/completions", b'{"max_tokens": 3}', 0, 3, "r-0", "s-1")


async def send(server: SseServer, *, timeout_s: float = 10.0, clock: SystemClock | ManualClock | None = None) -> Exchange:
    clock = clock or SystemClock()
    client = Client(Target.parse(server.url), clock=clock, timeout_s=timeout_s)
    try:
        return await send_by(client, clock)
    finally:
        client.close()


async def send_by(client: Client, clock: SystemClock | ManualClock) -> Exchange:
    exchange = Exchange(clock.now())
    await client.send(ASK, exchange)
    return exchange


def scripted(*pieces: bytes, keep: bool = False) -> Handler:
    """Writes the pieces; then keeps or closes the connection."""

    async def handler(request: Request, reply: Reply) -> bool:
        for piece in pieces:
            await reply.write(piece)
        return keep

    return handler


async def test_a_complete_stream_is_ok_with_its_tokens_usage_and_the_routers_headers() -> None:
    async def handler(request: Request, reply: Reply) -> bool:
        return await complete(request, reply, headers={"X-Headway-Worker": "w1", "server": "x"}, cached=32)

    async with SseServer(handler) as server:
        exchange = await send(server)
    assert (exchange.end, exchange.status, exchange.answer.events) == ("ok", 200, 3)
    assert exchange.headers == {"x-headway-worker": "w1"}
    assert exchange.answer.usage is not None
    assert exchange.answer.usage.cached_tokens == 32
    assert exchange.answer.first is not None
    assert exchange.sent <= exchange.answer.first <= exchange.ended
    (request,) = server.requests
    assert request.headers["x-request-id"] == "r-0"
    assert request.headers["x-headway-session"] == "s-1"


@pytest.mark.parametrize("name", ["", "s\r\nx-injected: 1", "ü", "x" * (SESSION_CHARS_MAX + 1)])
async def test_a_recording_s_name_that_is_no_header_value_stays_at_home(name: str) -> None:
    clock = SystemClock()
    async with SseServer(complete) as server:
        client = Client(Target.parse(server.url), clock=clock, timeout_s=10.0)
        exchange = Exchange(clock.now())
        await client.send(dataclasses.replace(ASK, session=name), exchange)
        client.close()
    assert exchange.end == "ok"
    (request,) = server.requests
    assert "x-headway-session" not in request.headers
    assert "x-injected" not in request.headers


def test_what_is_sent_is_what_the_data_plane_takes() -> None:
    assert SESSION_CHARS_MAX == wishes.NAME_CHARS_MAX


TEXT = chunk(event(chat_text("a")))


@pytest.mark.parametrize(
    ("pieces", "end"),
    [
        ((stream_head(), TEXT), "truncated"),  # closed within the message
        ((stream_head(), TEXT, LAST_CHUNK), "truncated"),  # ended, without [DONE]
        ((stream_head(),), "truncated"),
        ((stream_head(), TEXT, chunk(event(error_object("died"))), chunk(event(DONE)), LAST_CHUNK), "error_event"),
        ((stream_head(), chunk(event(chat_text("", "abort"))), chunk(event(DONE)), LAST_CHUNK), "aborted"),
        ((stream_head(), b"zz\r\nnot a chunk"), "malformed"),
        ((b"SMTP ready\r\n\r\n",), "malformed"),
        ((json_reply(503, error_object("full", "overloaded", 503), {"retry-after": "2"}),), "shed"),
        ((json_reply(404, error_object("no such model", "NotFoundError", 404)),), "http_404"),
        ((json_reply(500, error_object("bug")),), "http_500"),
        ((json_reply(200, {"choices": []}),), "malformed"),
        ((), "connection_lost"),
    ],
)
async def test_each_way_to_fail_has_its_own_name(pieces: tuple[bytes, ...], end: str) -> None:
    async with SseServer(scripted(*pieces)) as server:
        exchange = await send(server)
    assert exchange.end == end
    assert exchange.error


async def test_a_stream_that_ends_with_its_connection_is_complete_if_it_says_done() -> None:
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n"
    async with SseServer(scripted(head, event(chat_text("a", "stop")), event(DONE))) as server:
        assert (await send(server)).end == "ok"
    async with SseServer(scripted(head, event(chat_text("a")))) as server:
        assert (await send(server)).end == "truncated"


async def test_nobody_listening_is_connect_failed(free_port: int) -> None:
    server = SseServer(complete, port=free_port)
    exchange = await send(server)
    assert (exchange.end, exchange.status) == ("connect_failed", 0)
    assert exchange.ended >= exchange.sent


async def test_a_silent_server_is_timed_out_and_its_connection_closed() -> None:
    closed = asyncio.Event()

    async def silent(request: Request, reply: Reply) -> bool:
        await reply.write(stream_head())
        try:
            while True:
                await reply.write(chunk(b": still here\n\n"))
                await turns()
        finally:
            closed.set()

    async with SseServer(silent) as server:
        exchange = await send(server, timeout_s=0.05)
        await asyncio.wait_for(closed.wait(), 10)
    assert exchange.end == "timed_out"


async def test_connections_are_kept_one_exchange_after_the_other() -> None:
    async with SseServer(complete) as server:
        clock = SystemClock()
        client = Client(Target.parse(server.url), clock=clock, timeout_s=10)
        ends = [(await send_by(client, clock)).end for _ in range(5)]
        client.close()
    assert ends == ["ok"] * 5
    assert server.connections == 1


async def test_a_kept_connection_that_idled_too_long_is_not_used_again() -> None:
    async with SseServer(complete) as server:
        clock = ManualClock()
        client = Client(Target.parse(server.url), clock=clock, timeout_s=10)
        await send_by(client, clock)
        clock.advance(IDLE_CONNECTION_S_MAX + 0.1)
        await send_by(client, clock)
        client.close()
    assert server.connections == 2


async def test_a_kept_connection_that_closes_on_the_next_request_is_replaced_once_and_counted() -> None:
    served = 0

    async def every_second_is_dropped(request: Request, reply: Reply) -> bool:
        nonlocal served
        served += 1
        return served != 2 and await complete(request, reply)

    async with SseServer(every_second_is_dropped) as server:
        clock = SystemClock()
        client = Client(Target.parse(server.url), clock=clock, timeout_s=10)
        first, second = await send_by(client, clock), await send_by(client, clock)
        client.close()
    assert (first.end, first.reconnects) == ("ok", 0)
    assert (second.end, second.reconnects) == ("ok", 1)


async def test_a_cancelled_request_closes_its_connection_and_says_so() -> None:
    gone = asyncio.Event()

    async def endless(request: Request, reply: Reply) -> bool:
        await reply.write(stream_head())
        try:
            while True:
                await reply.event(chat_text("a"))
                await turns()
        finally:
            gone.set()

    async with SseServer(endless) as server:
        clock = SystemClock()
        client = Client(Target.parse(server.url), clock=clock, timeout_s=10)
        exchange = Exchange(clock.now())
        task = asyncio.create_task(client.send(ASK, exchange))
        await server.arrived.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.wait_for(gone.wait(), 10)
    assert exchange.end == "interrupted"


async def test_a_thousand_streams_at_once_all_end_well() -> None:
    async def slow_start(request: Request, reply: Reply) -> bool:
        if len(server.requests) < 1000:
            await everyone.wait()
        everyone.set()
        return await complete(request, reply)

    everyone = asyncio.Event()
    async with SseServer(slow_start) as server:
        clock = SystemClock()
        client = Client(Target.parse(server.url), clock=clock, timeout_s=60)
        exchanges = await asyncio.gather(*(send_by(client, clock) for _ in range(1000)))
        client.close()
    assert [exchange.end for exchange in exchanges] == ["ok"] * 1000
    assert {exchange.answer.events for exchange in exchanges} == {3}


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://x", "http://", "http://x:99999"])
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(LoadError):
        Target.parse(url)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://h:1/", ("h", 1, False, "")),
        ("https://h/v1", ("h", 443, True, "")),
        ("http://[::1]:8000/api/v1/", ("::1", 8000, False, "/api")),
    ],
)
def test_an_address_may_have_a_path_and_end_in_v1(url: str, expected: tuple[str, int, bool, str]) -> None:
    target = Target.parse(url)
    assert (target.host, target.port, target.tls, target.base) == expected


def serving(body: bytes) -> Callable[[Request, Reply], Awaitable[bool]]:
    return scripted(body, keep=True)


async def model(server: SseServer, name: str) -> tuple[str, int]:
    client = Client(Target.parse(server.url), clock=SystemClock(), timeout_s=5)
    try:
        found = await served_model(client, name)
    finally:
        client.close()
    return found.name, found.context_tokens_max


async def test_auto_is_the_first_model_that_is_no_adapter() -> None:
    cards = [{"id": "lora", "parent": "base"}, {"id": "base", "max_model_len": 4096, "parent": None}, {"id": "other"}]
    async with SseServer(serving(json_reply(200, {"data": cards}))) as server:
        assert await model(server, "auto") == ("base", 4096)
        assert await model(server, "lora") == ("lora", 0)
        with pytest.raises(LoadError, match="no model 'x' is served there; there are lora, base, other"):
            await model(server, "x")


@pytest.mark.parametrize("body", [json_reply(200, {"data": []}), json_reply(502, {}), json_reply(200, [1])])
async def test_a_server_without_models_is_refused(body: bytes) -> None:
    async with SseServer(serving(body)) as server:
        with pytest.raises(LoadError, match="no model is served"):
            await model(server, "auto")


async def test_a_server_that_is_not_there_is_named(free_port: int) -> None:
    with pytest.raises(LoadError, match=f"127.0.0.1:{free_port} does not answer"):
        await model(SseServer(complete, port=free_port), "auto")
