"""What comes behind a request's chunked body: fields that nobody asked for. They are bounded, and none of them is a header."""

from __future__ import annotations

import json

import pytest

from tests.dataplane.client import Client, Truncated, ask, chat
from tests.dataplane.conftest import Proxy, StartProxy
from tests.fakes.backend import Backend
from tests.fakes.control import Control
from tests.waiting import turns

BODY = json.dumps(chat()).encode()
CHUNKED = (
    b"POST /v1/chat/completions HTTP/1.1\r\nhost: p\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n"
    + b"%x\r\n%b\r\n0\r\n" % (len(BODY), BODY)
)


@pytest.mark.parametrize("bytewise", [False, True])
async def test_a_field_behind_the_body_is_no_header(
    bytewise: bool, start_proxy: StartProxy, backend: Backend, control: Control
) -> None:
    control.serve("m", backend.url)
    proxy = await start_proxy(control=control)
    late = b"x-checksum: 1\r\nx-headway-tenant: evil\r\nauthorization: Bearer x\r\nhost: other\r\ncontent-encoding: gzip\r\n"
    response = await ask(proxy.port, CHUNKED + late + b"\r\n", bytewise=bytewise)
    assert response.status == 200
    seen = backend.requests[0].headers
    assert not {"x-checksum", "authorization", "x-headway-tenant", "content-encoding"} & set(seen)
    assert control.questions[0].tenant == ""


async def test_they_have_a_bound(proxy: Proxy, backend: Backend) -> None:
    client = await Client.connect(proxy.port)
    await client.send(CHUNKED)
    line = b"x-%05d: " + b"y" * 8000 + b"\r\n"
    try:
        for number in range(100):
            await client.send(line % number)
        response = await client.read()
    except (ConnectionError, Truncated) as error:
        raise AssertionError("not told why") from error
    assert (response.status, response.json["error"]["code"]) == (431, "head_too_large")
    assert not backend.requests
    client.close()


@pytest.mark.parametrize("size", [70_000, 200_000])
async def test_a_target_counts_as_its_head_does(size: int, proxy: Proxy, backend: Backend) -> None:
    head = b"POST /v1/%b HTTP/1.1\r\nhost: p\r\ncontent-length: 2\r\n\r\n{}" % (b"x" * size)
    response = await ask(proxy.port, head)
    assert (response.status, response.json["error"]["code"]) == (431, "head_too_large")
    assert not backend.requests


async def test_a_field_that_never_ends_has_the_same_bound(proxy: Proxy) -> None:
    client = await Client.connect(proxy.port)
    await client.send(CHUNKED + b"x-a: ")
    for _ in range(30):
        await client.send(b"y" * 8000)
    response = await client.read()
    assert (response.status, response.json["error"]["code"]) == (431, "head_too_large")
    client.close()


async def test_a_body_of_many_chunks_is_none(proxy: Proxy, backend: Backend) -> None:
    """Sizes that come by themselves, chunks that are longer than a head may be: only what is behind the last one is counted."""
    text = "z" * 300_000
    body = json.dumps(chat(text)).encode()
    client = await Client.connect(proxy.port)
    await client.send(CHUNKED.partition(b"\r\n\r\n")[0] + b"\r\n\r\n")
    for part in (body[:1], body[1:200_000], body[200_000:]):
        await client.send(b"%x\r\n" % len(part))
        for at in range(0, len(part), 50_000):
            await client.send(part[at : at + 50_000])
            await turns(3)
        await client.send(b"\r\n")
    await client.send(b"0\r\nx-a: 1\r\n\r\n")
    assert (await client.read()).status == 200
    assert backend.requests[0].body == body
    client.close()
