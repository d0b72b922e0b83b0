"""What is asked again and again goes a short way, and ends in the same three words as the long one."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.fakes.scripted_http import OK, Server
from worker_agent.engine_client import BadStatus, EngineClient, Refused


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    one = Server()
    yield one
    await one.stop()


async def test_pages_and_health_share_a_connection(server: Server) -> None:
    async with EngineClient(await server.start(), api_key="secret") as client:
        assert await client.metrics() == b"hello"
        assert await client.healthy()
        assert await client.metrics() == b"hello"
    assert server.connections == 1
    assert all(b"Authorization: Bearer secret" in request.split(b"\r\n") for request in server.requests)


async def test_who_is_sent_elsewhere_goes_there(server: Server) -> None:
    """Starlette sends /metrics to /metrics/ where an application is mounted there."""
    there = b"HTTP/1.1 307 There\r\nLocation: /metrics/\r\nContent-Length: 0\r\n\r\n"
    server.answers = {b"/metrics": there, b"/metrics/": OK}
    async with EngineClient(await server.start()) as client:
        assert await client.metrics() == b"hello"


async def test_a_user_in_the_url_is_the_long_ways(server: Server) -> None:
    url = await server.start()
    async with EngineClient(url.replace("//", "//me:secret@")) as client:
        assert await client.metrics() == b"hello"
    assert b"Authorization: Basic bWU6c2VjcmV0" in server.requests[0].split(b"\r\n")


@pytest.mark.parametrize(("status", "healthy"), [(500, False), (503, False), (404, True)])
async def test_other_statuses_are_said(server: Server, status: int, healthy: bool) -> None:
    server.talk = server.answer(b"HTTP/1.1 %d So\r\nContent-Length: 0\r\n\r\n" % status)
    async with EngineClient(await server.start()) as client:
        with pytest.raises(BadStatus, match=str(status)):
            await client.metrics()
        assert await client.healthy() is healthy


async def test_nobody_there_is_refused(server: Server) -> None:
    url = await server.start()
    await server.stop()
    async with EngineClient(url) as client:
        for ask in (client.metrics, client.healthy, client.models):
            with pytest.raises(Refused):
                await ask()
    await server.start()
