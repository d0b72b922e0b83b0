"""GET over a kept connection, against a server that is a test's hand on the wire."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import uvloop

from runtime import tls
from tests.fakes.certificates import Authority
from tests.fakes.scripted_http import OK, Server
from worker_agent.kept_connection import BadHttp, KeptConnection, NoConnection


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    one = Server()
    yield one
    await one.stop()


def kept(url: str, *, idle_s_max: float = 60.0, body_max: int = 1000, context: ssl.SSLContext | None = None) -> KeptConnection:
    return KeptConnection(
        url, headers={"Authorization": "Bearer k"}, context=context, connect_s=5.0, idle_s_max=idle_s_max, body_max=body_max
    )


async def test_requests_share_a_connection_and_say_who_asks_for_what(server: Server) -> None:
    url = await server.start()
    one = kept(url + "/base/")
    assert [await one.get("/metrics", 5.0) for _ in range(3)] == [(200, b"hello")] * 3
    assert server.connections == 1
    assert server.requests[0].startswith(b"GET /base/metrics HTTP/1.1\r\n")
    for line in (b"Host: " + url[7:].encode(), b"Authorization: Bearer k", b"Accept-Encoding: identity"):
        assert line in server.requests[2].split(b"\r\n")
    one.close()


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (OK, (200, b"hello")),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n", (200, b"hello")),
        (b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n", (503, b"")),
        (b"HTTP/1.1 100 Continue\r\n\r\n" + OK, (200, b"hello")),
        (b"HTTP/1.1 307 There\r\nLocation: /metrics/\r\nContent-Length: 0\r\n\r\n", (307, b"")),
    ],
)
async def test_an_answer_is_the_same_however_it_is_cut(server: Server, answer: bytes, expected: tuple[int, bytes]) -> None:
    async def byte_by_byte(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await reader.readuntil(b"\r\n\r\n")
            for at in range(len(answer)):
                writer.write(answer[at : at + 1])
                await writer.drain()

    url = await server.start()
    for talk in (server.answer(answer), byte_by_byte):
        server.talk = talk
        one = kept(url)
        assert await one.get("/", 5.0) == expected
        assert await one.get("/", 5.0) == expected
        one.close()
    assert server.connections == 2


async def test_a_body_may_end_with_its_connection(server: Server) -> None:
    server.talk = server.answer(b"HTTP/1.1 200 OK\r\n\r\nhello", then_close=True)
    one = kept(await server.start())
    assert await one.get("/", 5.0) == (200, b"hello")
    assert await one.get("/", 5.0) == (200, b"hello")
    assert server.connections == 2


async def test_a_kept_connection_that_was_closed_meanwhile_is_made_anew(server: Server) -> None:
    server.talk = server.answer(OK, then_close=True)
    one = kept(await server.start())
    for _ in range(3):
        assert await one.get("/", 5.0) == (200, b"hello")
    assert server.connections == 3


async def test_an_old_connection_is_not_asked_again(server: Server) -> None:
    one = kept(await server.start(), idle_s_max=0.0)
    for _ in range(2):
        assert await one.get("/", 5.0) == (200, b"hello")
    assert server.connections == 2
    one.close()


async def test_a_connection_that_breaks_twice_is_an_error(server: Server) -> None:
    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhe")

    server.talk = hang_up
    one = kept(await server.start())
    with pytest.raises(ConnectionError):
        await one.get("/", 5.0)
    assert server.connections == 2


async def test_nobody_there_is_no_connection(server: Server) -> None:
    url = await server.start()
    await server.stop()
    with pytest.raises(NoConnection):
        await kept(url).get("/", 5.0)
    await server.start()


async def test_silence_has_a_bound_and_the_next_request_another_connection(server: Server) -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    server.talk = silent
    one = kept(await server.start())
    with pytest.raises(TimeoutError):
        await one.get("/", 0.05)
    server.talk = server.answer(OK)
    assert await one.get("/", 5.0) == (200, b"hello")
    assert server.connections == 2
    one.close()


async def test_two_at_once_do_not_share_a_connection(server: Server) -> None:
    one = kept(await server.start())
    assert await asyncio.gather(one.get("/", 5.0), one.get("/", 5.0)) == [(200, b"hello")] * 2
    assert server.connections == 2
    assert await one.get("/", 5.0) == (200, b"hello")
    assert server.connections == 2
    one.close()


@pytest.mark.parametrize("answer", [b"SSH-2.0-OpenSSH\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 2000\r\n\r\n" + bytes(2000)])
async def test_what_is_no_answer_is_an_error_at_once(server: Server, answer: bytes) -> None:
    server.talk = server.answer(answer)
    with pytest.raises(BadHttp):
        await kept(await server.start()).get("/", 5.0)
    assert server.connections == 1


def test_it_runs_on_the_loop_that_agents_have() -> None:
    async def ask() -> tuple[int, bytes]:
        server = Server()
        one = kept(await server.start())
        await one.get("/", 5.0)
        answer = await one.get("/", 5.0)
        assert server.connections == 1
        one.close()
        await server.stop()
        return answer

    assert uvloop.run(ask()) == (200, b"hello")


async def test_https_is_asked_of_who_can_prove_its_name(server: Server, tmp_path: Path) -> None:
    authority, stranger = Authority(tmp_path), Authority(tmp_path, "stranger")
    pair = authority.issue("engine")
    url = await server.start(tls.server_context(pair.cert, pair.key))
    one = kept(url, context=tls.client_context(authority.ca))
    assert [await one.get("/", 5.0) for _ in range(2)] == [(200, b"hello")] * 2
    assert server.connections == 1
    one.close()
    with pytest.raises(NoConnection, match="certificate"):
        await kept(url, context=tls.client_context(stranger.ca)).get("/", 5.0)
