"""What clients may send, and what they may not: each gets one clear answer."""

from __future__ import annotations

import asyncio

import pytest

from tests.dataplane.client import Client, ask, chat, request
from tests.dataplane.conftest import Proxy, StartProxy
from tests.fakes.backend import Backend

HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: p\r\nContent-Type: application/json\r\n"
BODY = b'{"model":"m","messages":[]}'


async def error_of(port: int, data: bytes, *, bytewise: bool = False, closes: bool = False) -> tuple[int, dict[str, object]]:
    client = await Client.connect(port)
    await client.send(data, bytewise=bytewise)
    response = await client.read()
    if closes:
        assert response.headers["connection"] == "close"
        assert await client.at_end()
    client.close()
    error = response.json["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return response.status, error


@pytest.mark.parametrize("bytewise", [False, True])
@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "empty_body"),
        (b'{"model": "m"', "invalid_json"),
        (b"[]", "not_an_object"),
        (b'{"model": "\xff"}', "invalid_utf8"),
        (b'{"messages": []}', "model_missing"),
    ],
)
async def test_a_malformed_body_is_a_typed_400(proxy: Proxy, backend: Backend, body: bytes, code: str, bytewise: bool) -> None:
    status, error = await error_of(proxy.port, request(body), bytewise=bytewise)
    assert (status, error["type"], error["code"]) == (400, "invalid_request_error", code)
    assert not backend.requests


async def test_an_unknown_model_is_404(proxy: Proxy) -> None:
    status, error = await error_of(proxy.port, request(chat(model="nope")))
    assert (status, error["type"], error["code"], error["param"]) == (404, "NotFoundError", "model_not_found", "model")
    assert "`nope`" in str(error["message"])


SMUGGLING = [
    HEAD + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    HEAD + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
    HEAD + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
    HEAD + b"Content-Length: +5\r\n\r\nhello",
    HEAD + b"Content-Length: 5, 5\r\n\r\nhello",
    HEAD + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    HEAD + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    HEAD + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
    HEAD + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n",
    HEAD + b"Transfer-Encoding: chunked\r\n\r\n0x5\r\nhello\r\n0\r\n\r\n",
    HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhelloX\r\n0\r\n\r\n",
    HEAD + b"Transfer-Encoding: chunked\r\n\r\n-1\r\n\r\n",
    HEAD + b"Host: q\r\nContent-Length: 0\r\n\r\n",
    HEAD + b"X: a\r\n folded\r\nContent-Length: 0\r\n\r\n",
    HEAD + b"X: a\0b\r\nContent-Length: 0\r\n\r\n",
    HEAD + b"X: a\rContent-Length: 0\r\n\r\n",
    b"POST /v1/completions HTTP/1.1\r\nContent-Length: 0\r\n\r\n",
    b"G@T /health HTTP/1.1\r\nHost: p\r\n\r\n",
    b"GET /health HTTP/3.7\r\nHost: p\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
]


@pytest.mark.parametrize("bytewise", [False, True])
@pytest.mark.parametrize("data", SMUGGLING)
async def test_a_request_that_could_be_read_in_two_ways_is_refused_and_the_connection_ends(
    proxy: Proxy, backend: Backend, data: bytes, bytewise: bool
) -> None:
    status, _ = await error_of(proxy.port, data, bytewise=bytewise, closes=True)
    assert status in (400, 505)
    assert not backend.requests


async def test_a_chunked_body_reaches_the_engine_whole(proxy: Proxy, backend: Backend) -> None:
    body = b"".join(b"%x\r\n%b\r\n" % (1, BODY[index : index + 1]) for index in range(len(BODY)))
    for bytewise in (False, True):
        response = await ask(
            proxy.port, HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + body + b"0\r\nX-Trailer: 1\r\n\r\n", bytewise=bytewise
        )
        assert response.status == 200
    assert [seen.body for seen in backend.requests] == [BODY, BODY]
    assert all("transfer-encoding" not in seen.headers for seen in backend.requests)


async def test_a_ten_megabyte_body_passes(proxy: Proxy, backend: Backend) -> None:
    response = await ask(proxy.port, request(chat("x" * 10_000_000)))
    assert response.status == 200
    assert len(backend.requests[0].body) > 10_000_000


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_beyond_the_limit_is_413_even_while_the_client_is_sending(
    start_proxy: StartProxy, backend: Backend, chunked: bool
) -> None:
    proxy = await start_proxy(backend, body_bytes_max=100_000)
    size = 400_000
    data = (
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n" % size if chunked else HEAD + b"Content-Length: %d\r\n\r\n" % size
    ) + b"x" * size
    status, error = await error_of(proxy.port, data, closes=True)
    assert (status, error["code"]) == (413, "body_too_large")
    assert not backend.requests


@pytest.mark.parametrize("bytewise", [False, True])
async def test_a_head_beyond_the_limit_is_431(start_proxy: StartProxy, backend: Backend, bytewise: bool) -> None:
    proxy = await start_proxy(backend, head_bytes_max=2000)
    for data in (HEAD + b"X-Big: " + b"x" * 3000 + b"\r\nContent-Length: 0\r\n\r\n", HEAD + b"X-Endless: " + b"x" * 3000):
        status, error = await error_of(proxy.port, data, bytewise=bytewise, closes=True)
        assert (status, error["code"]) == (431, "head_too_large")


async def test_a_head_that_drips_is_cut_off(start_proxy: StartProxy, backend: Backend) -> None:
    proxy = await start_proxy(backend, head_timeout_s=0.1)
    status, error = await error_of(proxy.port, HEAD, closes=True)
    assert (status, error["code"]) == (408, "head_timeout")


async def test_a_body_that_drips_is_cut_off(start_proxy: StartProxy, backend: Backend) -> None:
    proxy = await start_proxy(backend, body_timeout_s=0.1)
    status, error = await error_of(proxy.port, HEAD + b"Content-Length: 10\r\n\r\n{", closes=True)
    assert (status, error["code"]) == (408, "body_timeout")


async def test_an_idle_connection_is_closed_without_a_word(start_proxy: StartProxy, backend: Backend) -> None:
    proxy = await start_proxy(backend, keep_alive_s=0.1)
    client = await Client.connect(proxy.port)
    assert await client.at_end()
    client.close()


async def test_expect_100_continue_is_answered_before_the_body_comes(proxy: Proxy, backend: Backend) -> None:
    client = await Client.connect(proxy.port)
    await client.send(HEAD + b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(BODY))
    async with asyncio.timeout(5):
        assert await client.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    await client.send(BODY)
    assert (await client.read()).status == 200
    client.close()
    assert "expect" not in backend.requests[0].headers


async def test_who_speaks_http_1_0_gets_one_answer_whatever_it_expects(proxy: Proxy, backend: Backend) -> None:
    """It knows no answer that another one follows."""
    response = await ask(proxy.port, request(chat(), headers={"Expect": "100-continue"}, version="1.0"))
    assert response.raw.startswith(b"HTTP/1.1 200 ")
    assert (response.status, len(backend.requests)) == (200, 1)


@pytest.mark.parametrize("target", ["http://proxy/v1/chat/completions?a=b", "HTTPS://proxy:8000/v1/chat/completions?a=b"])
async def test_a_target_with_its_host_is_one_without(proxy: Proxy, backend: Backend, target: str) -> None:
    client = await Client.connect(proxy.port)
    for _ in range(2):  # the second time its head is known
        await client.send(request(chat(), target))
        assert (await client.read()).status == 200
    assert {seen.target for seen in backend.requests} == {"/v1/chat/completions?a=b"}
    for other, status in (("http://proxy", 404), ("ftp://proxy/v1/chat/completions", 404)):
        await client.send(request(chat(), other))
        assert (await client.read()).status == status
    client.close()


async def test_any_other_expectation_is_417(proxy: Proxy) -> None:
    status, _ = await error_of(proxy.port, HEAD + b"Expect: tea\r\nContent-Length: 0\r\n\r\n", closes=True)
    assert status == 417


async def test_a_too_large_body_announced_with_expect_is_refused_before_it_is_sent(
    start_proxy: StartProxy, backend: Backend
) -> None:
    proxy = await start_proxy(backend, body_bytes_max=1000)
    status, error = await error_of(proxy.port, HEAD + b"Expect: 100-continue\r\nContent-Length: 5000\r\n\r\n")
    assert (status, error["code"]) == (413, "body_too_large")


async def test_head_gets_a_head(proxy: Proxy) -> None:
    client = await Client.connect(proxy.port)
    for path in ("/health", "/v1/models", "/nothing"):
        await client.send(request(path=path, method="HEAD"))
        response = await client.read(head_only=True)
        assert response.raw.endswith(b"\r\n\r\n")
    client.close()


async def test_a_wrong_method_names_the_right_one(proxy: Proxy) -> None:
    response = await ask(proxy.port, request(method="GET"))
    assert response.status == 405
    assert response.headers["allow"] == "POST"
    assert (await ask(proxy.port, request(path="/none", method="GET"))).json["error"]["code"] == "unknown_url"


async def test_an_offer_to_upgrade_is_declined_and_the_body_kept(proxy: Proxy, backend: Backend) -> None:
    offer = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n"
    data = HEAD + offer + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY
    for bytewise in (False, True):
        client = await Client.connect(proxy.port)
        for _ in range(2):
            await client.send(data, bytewise=bytewise)
            assert (await client.read()).status == 200
        client.close()
    assert [seen.body for seen in backend.requests] == [BODY] * 4
    assert all("upgrade" not in seen.headers and "http2-settings" not in seen.headers for seen in backend.requests)


async def test_connect_is_refused(proxy: Proxy) -> None:
    status, _ = await error_of(proxy.port, b"CONNECT example.com:443 HTTP/1.1\r\nHost: example.com\r\n\r\n", closes=True)
    assert status == 405


async def test_a_bad_pipelined_request_does_not_hurt_the_one_before_it(proxy: Proxy) -> None:
    client = await Client.connect(proxy.port)
    await client.send(request(chat()) + b"nonsense\r\n\r\n")
    assert (await client.read()).status == 200
    assert (await client.read()).status == 400
    assert await client.at_end()
    client.close()


async def test_bytes_behind_a_request_that_closes_are_ignored(proxy: Proxy, backend: Backend) -> None:
    client = await Client.connect(proxy.port)
    await client.send(request(chat(), close=True) + request(chat()))
    assert (await client.read()).status == 200
    assert await client.at_end()
    client.close()
    assert len(backend.requests) == 1


async def test_a_flood_of_pipelined_requests_is_read_only_as_far_as_the_bound(proxy: Proxy, backend: Backend) -> None:
    client = await Client.connect(proxy.port)
    count = 3000
    one = request(path="/v1/models/" + "x" * 200, method="GET")
    sender = asyncio.create_task(client.send(request(chat()) + one * count))
    assert (await client.read()).status == 200
    for _ in range(count):
        assert (await client.read()).status == 404
    await sender
    client.close()


async def test_more_requests_than_the_bound_are_refused_with_a_time_to_come_back(
    start_proxy: StartProxy, backend: Backend
) -> None:
    proxy = await start_proxy(backend, requests_max=1)
    first = await Client.connect(proxy.port)
    release = asyncio.Event()

    async def step(seen: object, wire: object) -> None:
        await release.wait()
        await wire.send(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")  # type: ignore[attr-defined]

    backend.script(step)
    await first.send(request(chat()))
    await backend.until(lambda backend: len(backend.requests) == 1)
    refused = await ask(proxy.port, request(chat()))
    assert (refused.status, refused.json["error"]["code"]) == (503, "router_full")
    assert int(refused.headers["retry-after"]) >= 1
    release.set()
    assert (await first.read()).status == 200
    first.close()
