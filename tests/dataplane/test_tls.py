"""TLS with real certificates: the HTTP port, https engines, and certificates renewed under connections."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path

import pytest

from runtime import tls
from tests.dataplane.client import Client, ask, chat, request
from tests.dataplane.conftest import Proxy, StartProxy
from tests.fakes.backend import STREAM_HEAD, Backend, chat_stream, closes
from tests.fakes.certificates import Authority, Pair
from tests.fakes.upload import UploadServer
from tests.waiting import until


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


async def connect(proxy: Proxy, ca: str, **more: ssl.TLSVersion) -> Client:
    context = ssl.create_default_context(cafile=ca)  # its own minimum is lowered where a test says so
    for name, value in more.items():
        setattr(context, name, value)
    return Client(*await asyncio.open_connection("127.0.0.1", proxy.port, ssl=context))


def serial(client: Client) -> str:
    return str(client.writer.get_extra_info("peercert")["serialNumber"])


def with_tls(pair: Pair) -> dict[str, str]:
    return {"tls_cert": pair.cert, "tls_key": pair.key}


async def test_requests_and_streams_over_tls(start_proxy: StartProxy, backend: Backend, authority: Authority) -> None:
    proxy = await start_proxy(backend, **with_tls(authority.issue("proxy")))
    client = await connect(proxy, authority.ca)
    await client.send(request(chat()))
    assert (await client.read()).status == 200
    backend.script(chat_stream(["a" * 100_000, "b"]))
    await client.send(request(chat(stream=True)))
    assert (await client.read()).text == "a" * 100_000 + "b"
    client.close()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
async def test_old_protocols_and_plain_http_are_refused_and_others_served(
    start_proxy: StartProxy, backend: Backend, authority: Authority
) -> None:
    proxy = await start_proxy(backend, **with_tls(authority.issue("proxy")))
    with pytest.raises(OSError):
        await connect(proxy, authority.ca, minimum_version=ssl.TLSVersion.TLSv1, maximum_version=ssl.TLSVersion.TLSv1_1)
    plain = await Client.connect(proxy.port)
    await plain.send(request(chat()))
    assert await plain.at_end()
    plain.close()
    client = await connect(proxy, authority.ca, maximum_version=ssl.TLSVersion.TLSv1_2)
    await client.send(request(chat()))
    assert (await client.read()).status == 200
    client.close()


async def test_a_refused_request_is_told_why_over_tls(start_proxy: StartProxy, backend: Backend, authority: Authority) -> None:
    proxy = await start_proxy(backend, **with_tls(authority.issue("proxy")))
    client = await connect(proxy, authority.ca)
    await client.send(b"GET / HTTP/1.1\r\nbroken\r\n\r\n")
    assert (await client.read()).status == 400
    client.close()


async def test_a_client_that_leaves_over_tls_closes_the_engines_side(
    start_proxy: StartProxy, backend: Backend, authority: Authority
) -> None:
    gone = asyncio.Event()

    async def pause(index: int) -> None:
        if index == 2:
            await gone.wait()

    backend.script(chat_stream(["a", "b"], pause=pause))
    proxy = await start_proxy(backend, **with_tls(authority.issue("proxy")))
    client = await connect(proxy, authority.ca)
    await client.send(request(chat(stream=True)))
    await client.read(head_only=True)
    client.reset()
    await proxy.until(lambda app: app.gateway.concurrency.in_flight == 0)
    gone.set()


async def test_a_renewed_certificate_is_served_and_a_broken_one_is_not(
    start_proxy: StartProxy, backend: Backend, authority: Authority
) -> None:
    pair = authority.issue("proxy")
    proxy = await start_proxy(backend, **with_tls(pair))
    first = await connect(proxy, authority.ca)
    authority.issue("proxy")
    proxy.app.reload()
    second = await connect(proxy, authority.ca)
    assert serial(first) != serial(second)
    rewrite(pair.key, authority.issue("other").key)
    proxy.app.reload()
    third = await connect(proxy, authority.ca)
    assert serial(third) == serial(second)
    for client in (first, second, third):  # the old connection goes on, too
        await client.send(request(chat()))
        assert (await client.read()).status == 200
        client.close()


async def test_a_certificate_that_is_replaced_is_found_by_itself(
    start_proxy: StartProxy, backend: Backend, authority: Authority
) -> None:
    proxy = await start_proxy(backend, **with_tls(authority.issue("proxy")))
    first = await connect(proxy, authority.ca)
    authority.issue("proxy")

    async def is_renewed() -> bool:
        client = await connect(proxy, authority.ca)
        client.close()
        return serial(client) != serial(first)

    await until(is_renewed, "the renewed one is served")
    first.close()


async def test_an_https_engine_is_verified_against_the_authority(start_proxy: StartProxy, authority: Authority) -> None:
    pair = authority.issue("engine")
    context = tls.server_context(pair.cert, pair.key)
    engine = await UploadServer.start(tls=context)
    proxy = await start_proxy(engine, upstream_ca=authority.ca)  # type: ignore[arg-type]
    assert (await ask(proxy.port, request(chat()))).status == 200
    assert (await ask(proxy.port, request(chat()))).status == 200
    stranger = await start_proxy(engine)  # type: ignore[arg-type]
    refused = await ask(stranger.port, request(chat()))
    assert refused.status == 502
    assert "certificate" in refused.json["error"]["message"].lower()
    await engine.stop()


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/v1/messages", {"type": "error", "error": {"type": "api_error"}}),
        ("/v1/responses", {"type": "error", "code": "upstream_failed", "sequence_number": 4}),
    ],
)
async def test_a_broken_stream_ends_in_the_events_of_its_path(
    proxy: Proxy, backend: Backend, path: str, expected: dict[str, object]
) -> None:
    """As these paths' clients read it: an `event: error` line, and their own object."""
    import json

    data = b'event: x\ndata: {"type":"content_block_delta","sequence_number":3,"delta":{"text":"a"}}\n\n'
    backend.script(closes(STREAM_HEAD + b"%x\r\n%b\r\n" % (len(data), data)))
    response = await ask(proxy.port, request({"model": "m", "input": "x", "messages": [], "stream": True}, path))
    last = response.body.split(b"\n\n")[-2].strip().split(b"\n")
    assert last[0] == b"event: error"
    found = json.loads(last[1].removeprefix(b"data: "))
    for name, value in expected.items():
        if isinstance(value, dict):
            assert value.items() <= found[name].items()
        else:
            assert found[name] == value


def test_a_pair_that_does_not_fit_is_one_error(authority: Authority) -> None:
    one, other = authority.issue("one"), authority.issue("other")
    with pytest.raises(tls.TlsError, match="cannot use the certificate"):
        tls.server_context(one.cert, other.key)
    with pytest.raises(tls.TlsError, match="absent"):
        tls.server_context("/absent", one.key)


def rewrite(path: str, source: str) -> None:
    Path(path).write_bytes(Path(source).read_bytes())
