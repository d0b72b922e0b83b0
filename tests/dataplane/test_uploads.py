"""Long forms: passed on while they come, read no faster than the engine takes them, never sent on twice."""

from __future__ import annotations

import asyncio

import pytest

from dataplane.body import KEPT_BYTES_MAX, BodyStream
from dataplane.openai import MULTIPART_SCAN_BYTES_MAX
from proto import routing_pb2 as pb
from tests.dataplane.client import Client, chat, request
from tests.dataplane.conftest import Proxy, StartBackend, StartProxy
from tests.fakes.backend import Backend, json_bytes, status
from tests.fakes.upload import UploadServer

FORM = {"Content-Type": "multipart/form-data; boundary=b"}
MODEL = b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\nm\r\n'
FILE = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n'
END = b"\r\n--b--\r\n"
PATH = "/v1/audio/transcriptions"


def form(size: int, *, model: bytes = MODEL) -> bytes:
    return model + FILE + bytes(range(256)) * (size // 256) + END


def head(body: bytes, *lines: str) -> bytes:
    fields = "".join(f"{line}\r\n" for line in ("Host: p", f"Content-Type: {FORM['Content-Type']}", *lines))
    return f"POST {PATH} HTTP/1.1\r\n{fields}\r\n".encode()


@pytest.fixture
async def engine() -> UploadServer:
    """Says how much of a body has come, and answers when told."""
    return await UploadServer.start()


async def test_the_engine_has_the_beginning_before_the_client_has_sent_the_end(
    start_proxy: StartProxy, engine: UploadServer
) -> None:
    proxy = await start_proxy(engine)  # type: ignore[arg-type]
    body = form(300_000)
    client = await Client.connect(proxy.port)
    await client.send(head(body, f"Content-Length: {len(body)}") + body[:150_000])
    await engine.until(lambda seen: len(seen.body) >= 100_000)
    await client.send(body[150_000:])
    response = await client.read()
    assert response.status == 200
    assert bytes(engine.body) == body
    assert "connection" not in response.headers
    await client.send(request(chat()))  # the connection goes on
    assert (await client.read()).status == 200
    client.close()
    await engine.stop()


async def test_a_chunked_upload_stays_chunked(start_proxy: StartProxy, engine: UploadServer) -> None:
    proxy = await start_proxy(engine)  # type: ignore[arg-type]
    body = form(200_000)
    client = await Client.connect(proxy.port)
    await client.send(head(body, "Transfer-Encoding: chunked"))
    for start in range(0, len(body), 50_000):
        part = body[start : start + 50_000]
        await client.send(b"%x\r\n%b\r\n" % (len(part), part))
    await client.send(b"0\r\n\r\n")
    assert (await client.read()).status == 200
    assert bytes(engine.body) == body
    client.close()
    await engine.stop()


async def test_an_engine_that_does_not_read_holds_the_client_back(start_proxy: StartProxy, engine: UploadServer) -> None:
    proxy = await start_proxy(engine, body_bytes_max=64 << 20)  # type: ignore[arg-type]
    engine.reads.clear()
    body = form(48 << 20)
    client = await Client.connect(proxy.port)
    sending = asyncio.create_task(client.send(head(body, f"Content-Length: {len(body)}") + body))
    (connection,) = proxy.app.server.connections
    await proxy.until(lambda _: connection._stream is not None and connection._stream._paused)
    assert not sending.done()
    engine.reads.set()
    await sending
    assert (await client.read()).status == 200
    assert len(engine.body) == len(body)
    client.close()
    await engine.stop()


async def test_an_answer_before_the_end_of_the_body_is_passed_on_and_ends_the_connection(
    start_proxy: StartProxy, engine: UploadServer
) -> None:
    proxy = await start_proxy(engine)  # type: ignore[arg-type]
    engine.answer_after = 1000
    engine.answer = json_bytes({"error": "too long"}, 413)
    body = form(4 << 20)
    client = await Client.connect(proxy.port)
    await client.send(head(body, f"Content-Length: {len(body)}") + body[:200_000])
    response = await client.read()
    assert (response.status, response.headers["connection"]) == (413, "close")
    client.close()
    await engine.stop()


async def test_a_failure_while_the_beginning_is_kept_goes_elsewhere(
    start_proxy: StartProxy, start_backend: StartBackend
) -> None:
    first, second = await start_backend(), await start_backend()
    first.script(status(503))
    proxy = await start_proxy(first, second)
    body = form(200_000)
    client = await Client.connect(proxy.port)
    for expected in (1, 2):  # whichever is asked first
        await client.send(head(body, f"Content-Length: {len(body)}") + body)
        assert (await client.read()).status == 200
        if first.requests:
            break
        assert expected == 1
    assert first.requests[0].body == second.requests[-1].body == body
    client.close()


async def test_a_client_that_leaves_amid_its_upload_is_forgotten(start_proxy: StartProxy, engine: UploadServer) -> None:
    proxy = await start_proxy(engine)  # type: ignore[arg-type]
    body = form(300_000)
    client = await Client.connect(proxy.port)
    await client.send(head(body, f"Content-Length: {len(body)}") + body[:150_000])
    await engine.until(lambda seen: len(seen.body) > 0)
    client.reset()
    await engine.until(lambda seen: seen.left == 1)
    await proxy.until(lambda app: app.gateway.concurrency.in_flight == 0)
    await engine.stop()


async def test_a_body_that_stops_coming_is_refused_in_time(start_proxy: StartProxy, engine: UploadServer) -> None:
    proxy = await start_proxy(engine, body_timeout_s=0.2, keep_alive_s=0.4)  # type: ignore[arg-type]
    body = form(300_000)
    client = await Client.connect(proxy.port)
    await client.send(head(body, f"Content-Length: {len(body)}") + body[:150_000])
    assert (await client.read()).status == 408
    client.close()
    await engine.stop()


async def test_broken_framing_amid_an_upload_is_refused(start_proxy: StartProxy, engine: UploadServer) -> None:
    proxy = await start_proxy(engine)  # type: ignore[arg-type]
    body = form(100_000)
    client = await Client.connect(proxy.port)
    await client.send(head(body, "Transfer-Encoding: chunked") + b"%x\r\n%b\r\n" % (len(body), body))
    await engine.until(lambda seen: len(seen.body) > 0)
    await client.send(b"not a size\r\n")
    assert (await client.read()).status == 400
    await engine.until(lambda seen: seen.left == 1)
    client.close()
    await engine.stop()


async def test_a_model_behind_the_file_is_found_once_all_is_here(proxy: Proxy, backend: Backend) -> None:
    body = FILE + b"\0" * 200_000 + b"\r\n" + MODEL + b"--b--\r\n"
    client = await Client.connect(proxy.port)
    await client.send(head(body, f"Content-Length: {len(body)}") + body)
    assert (await client.read()).status == 200
    assert backend.requests[0].body == body
    client.close()


async def test_a_form_without_a_model_goes_to_the_only_one(proxy: Proxy, backend: Backend) -> None:
    body = form(1024, model=b"")
    client = await Client.connect(proxy.port)
    await client.send(head(body, f"Content-Length: {len(body)}") + body)
    assert (await client.read()).status == 200
    client.close()


async def test_a_form_without_a_model_is_refused_where_there_are_several(proxy: Proxy) -> None:
    view = pb.FleetView(warm=True, models=[pb.ModelView(name="a", base="a"), pb.ModelView(name="b", base="b")])
    proxy.app.gateway.fleet.apply(view)
    body = form(1024, model=b"")
    client = await Client.connect(proxy.port)
    await client.send(head(body, f"Content-Length: {len(body)}") + body)
    response = await client.read()
    assert (response.status, response.json["error"]["code"]) == (400, "model_missing")
    client.close()


def test_a_body_is_replayable_until_more_than_the_bound_has_gone_to_an_engine() -> None:
    calls: list[str] = []
    stream = BodyStream(3 * KEPT_BYTES_MAX, pause=lambda: calls.append("pause"), resume=lambda: calls.append("resume"))
    part = b"x" * (KEPT_BYTES_MAX // 2)
    stream.feed(part)
    assert calls == []
    stream.feed(part)
    assert calls == ["pause"]  # nobody takes it
    first: list[bytes] = []
    stream.attach(first.append)
    assert calls == ["pause", "resume"]
    stream.detach()
    second: list[bytes] = []
    stream.attach(second.append)
    assert b"".join(first) == b"".join(second) == part + part
    assert stream.replayable
    stream.feed(b"y")
    assert not stream.replayable
    assert second[-1] == b"y"


def test_short_forms_are_not_streamed() -> None:
    assert len(form(1024)) < MULTIPART_SCAN_BYTES_MAX
