"""What happens around an upload that is under way: its engine breaks and another takes it from the beginning, or has answered
before it read all of it. Neither holds up or breaks what comes after it."""

from __future__ import annotations

import asyncio

import pytest

from tests.dataplane.client import Client, request
from tests.dataplane.conftest import Proxy, StartProxy
from tests.dataplane.test_uploads import form, head
from tests.fakes.connections import Connections
from tests.fakes.control import Control
from tests.fakes.upload import OK, UploadServer
from tests.waiting import until

STEP = 40 * 1024
"""A read brings it whole, and what follows it."""


class Deaf:
    """An engine that reads a head and no more of its request, and answers when told; or resets, where that was told first."""

    def __init__(self) -> None:
        self.answers = asyncio.Event()
        self.asked = asyncio.Event()
        self.resets = asyncio.Event()
        self._connections = Connections(self._serve)
        self.url = ""

    async def listen(self) -> None:
        self.url = f"http://127.0.0.1:{await self._connections.listen()}"

    async def stop(self) -> None:
        await self._connections.stop()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        self.asked.set()
        await self.answers.wait()
        if not self.resets.is_set():
            writer.write(OK)
        await self.resets.wait()
        writer.transport.abort()


@pytest.fixture
async def deaf() -> Deaf:
    engine = Deaf()
    await engine.listen()
    return engine


def unsent(proxy: Proxy) -> int:
    """Bytes of the upload that its engine's socket has not taken."""
    (exchange,) = proxy.app.gateway.exchanges
    connection = exchange._attempt.connection  # type: ignore[attr-defined]
    return int(connection.transport.get_write_buffer_size()) if connection is not None else -1


def part(size: int) -> bytes:
    return b"%x\r\n%b\r\n" % (size, bytes(size))


async def test_an_engine_that_answers_without_reading_does_not_silence_its_caller(start_proxy: StartProxy, deaf: Deaf) -> None:
    proxy = await start_proxy(deaf)  # type: ignore[arg-type]
    client = await Client.connect(proxy.port)
    beginning = form(200_000).removesuffix(b"\r\n--b--\r\n")
    await client.send(head(beginning, "Transfer-Encoding: chunked") + b"%x\r\n%b\r\n" % (len(beginning), beginning))
    await asyncio.wait_for(deaf.asked.wait(), 10)
    (connection,) = proxy.app.server.connections
    while unsent(proxy) == 0:  # until its socket takes no more
        seen = connection._body_bytes
        await client.send(part(STEP))
        await proxy.until(lambda _, seen=seen: connection._body_bytes == seen + STEP)  # type: ignore[misc]
    await client.send(part(STEP) + b"0\r\n\r\n")
    await proxy.until(lambda _: connection._stream is None)
    deaf.answers.set()
    assert (await client.read()).status == 200
    await client.send(request(method="GET", path="/health"))
    assert (await client.read()).status == 200
    assert not proxy.app.gateway.pool.idle  # what is still to be sent there stands in the way of the next request
    client.close()
    deaf.resets.set()
    await deaf.stop()


async def test_what_comes_while_another_engine_is_sought_is_kept_for_it(
    start_proxy: StartProxy, deaf: Deaf, control: Control
) -> None:
    good = await UploadServer.start()
    control.serve("m", deaf.url, good.url)
    decide = control.round_robin
    control.decide = lambda question: None if question.exclude else decide(question)
    proxy = await start_proxy(control=control, decision_timeout_ms=5000)
    body = form(400_000)
    client = await Client.connect(proxy.port)
    await client.send(head(body, f"Content-Length: {len(body)}") + body[:150_000])
    await asyncio.wait_for(deaf.asked.wait(), 10)
    deaf.resets.set()
    deaf.answers.set()
    await control.until(lambda control: len(control.questions) == 2)
    (connection,) = proxy.app.server.connections
    await client.send(body[150_000:300_000])
    await until(lambda: connection._body_bytes >= 300_000 or connection._stream is None)
    await control.answer_late()
    await client.send(body[300_000:])
    assert (await client.read()).status == 200
    assert bytes(good.body) == body
    client.close()
    await good.stop()
    await deaf.stop()


async def test_a_failed_engine_leaves_no_caller_unread(start_proxy: StartProxy, deaf: Deaf) -> None:
    """Held back for its engine's sake, the caller is read again once the request is over, whatever ended it."""
    proxy = await start_proxy(deaf, attempts_max=1)  # type: ignore[arg-type]
    client = await Client.connect(proxy.port)
    beginning = form(200_000).removesuffix(b"\r\n--b--\r\n")
    await client.send(head(beginning, "Transfer-Encoding: chunked") + b"%x\r\n%b\r\n" % (len(beginning), beginning))
    await asyncio.wait_for(deaf.asked.wait(), 10)
    (connection,) = proxy.app.server.connections
    while unsent(proxy) == 0:
        seen = connection._body_bytes
        await client.send(part(STEP))
        await proxy.until(lambda _, seen=seen: connection._body_bytes == seen + STEP)  # type: ignore[misc]
    await client.send(part(STEP) + b"0\r\n\r\n")
    await proxy.until(lambda _: connection._stream is None)
    (exchange,) = proxy.app.gateway.exchanges
    exchange._attempt.connection.transport.abort()  # type: ignore[attr-defined]
    assert (await client.read()).status == 502
    await client.send(request(method="GET", path="/health"))
    assert (await client.read()).status == 200
    client.close()
    deaf.answers.set()
    deaf.resets.set()
    await deaf.stop()
