"""What callers may try: bodies that say a thing twice, numbers that are none, words for our log."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from contract import tokens
from dataplane.connection import ClientConnection
from dataplane.errors import ApiError
from dataplane.openai import read_json
from tests.dataplane.client import Client, Response, ask, chat, request
from tests.dataplane.conftest import AddKey, Proxy, StartProxy
from tests.dataplane.test_access import bearer
from tests.fakes.backend import Backend
from tests.fakes.control import Control

CHAT = "/v1/chat/completions"
PATH = "/v1/audio/transcriptions"


@pytest.mark.parametrize("number", ["1e400", "-1e999", "1" * 400, "1" * 5000])
@pytest.mark.parametrize("field", ["max_tokens", "stream", "temperature", "seed"])
async def test_a_number_that_no_float_holds_has_one_answer_whichever_way_it_is_read(
    field: str, number: str, start_proxy: StartProxy, backend: Backend
) -> None:
    """The engine's, or a refusal that says what is wrong: it is an object all the same."""
    proxy = await start_proxy(backend)
    body = json.dumps(chat()).replace('"model"', f'"{field}": {number}, "model"').encode()
    seen = []
    client = await Client.connect(proxy.port)
    for _ in range(3):
        await client.send(request(body))
        response = await client.read()
        seen.append((response.status, response.json.get("error", {}).get("code")))
    client.close()
    assert seen in ([(200, None)] * 3, [(400, "invalid_json")] * 3)
    assert len(backend.requests) == 3 * (seen[0][0] == 200)


@pytest.mark.parametrize("body", [b"[1e400]", b"[]", b"7", b'"{}"', b" \n [{}]", b"null"])
def test_what_is_no_object_is_still_said_to_be_none(body: bytes) -> None:
    refusal = read_json(body, CHAT)
    assert isinstance(refusal, ApiError)
    assert refusal.code in ("not_an_object", "invalid_json")


async def test_a_callers_words_are_neither_logged_nor_kept(
    start_proxy: StartProxy, backend: Backend, control: Control, caplog: pytest.LogCaptureFixture
) -> None:
    control.serve("m", backend.url, tokenizer=tokens.BUILTIN)
    proxy = await start_proxy(control=control)
    await proxy.until(lambda app: app.prompts.status(app.gateway.fleet.view.models) == {"m": "ready"})
    caplog.set_level(logging.INFO)
    for number in range(40):
        part = {"type": f"secret-{number}", "text": "x"}
        bodies = [
            (chat(messages=[{"role": "user", "content": [part]}]), CHAT),
            ({"model": "m", "input": [part]}, "/v1/responses"),
            ({"model": "m", "messages": [{"role": "user", "content": [part]}]}, "/v1/messages"),
        ]
        for body, path in bodies:
            assert (await ask(proxy.port, request(body, path))).status == 200
    assert "secret" not in caplog.text
    assert not any("secret" in one for one in proxy.app.prompts._said)
    assert len(proxy.app.prompts._said) < 10


def part(disposition: bytes, value: bytes) -> bytes:
    return b"--b\r\n" + disposition + b"\r\n\r\n" + value + b"\r\n"


NAMED = b'Content-Disposition: form-data; name="model"'
FILE = part(b'Content-Disposition: form-data; name="file"; filename="a.wav"', b"\0" * 1000)
LONG = part(b'Content-Disposition: form-data; name="file"; filename="a.wav"', b"\0" * 300_000)
"""What is passed on while it comes, where it may be."""


async def upload(proxy: Proxy, token: str, *parts: bytes) -> Response:
    headers = bearer(token, **{"Content-Type": "multipart/form-data; boundary=b"})
    return await ask(proxy.port, request(b"".join(parts) + b"--b--\r\n", PATH, headers=headers))


@pytest.mark.parametrize("file", [FILE, LONG], ids=["short", "long"])
@pytest.mark.parametrize(
    "second",
    [
        NAMED,
        b"content-disposition:form-data;name=model",
        b'Content-Type: text/plain\r\nContent-Disposition: form-data; name="model"; x=y',
        b"Content-Disposition: form-data; name*=utf-8''%6dodel",
        b'CONTENT-DISPOSITION: form-data; filename="a"; Name = "model"',
    ],
)
async def test_a_form_that_names_a_second_model_is_not_its_keys_way_around(
    second: bytes,
    file: bytes,
    start_proxy: StartProxy,
    backend: Backend,
    keys_file: Path,
    add_key: AddKey,
) -> None:
    """An engine takes the last one."""
    token, free = add_key("a", models=("m",)), add_key("b")
    proxy = await start_proxy(backend, keys_file=str(keys_file), endpoint=(f"m={backend.url}", f"n={backend.url}"))
    for parts in ((part(NAMED, b"m"), file, part(second, b"n")), (part(second, b"n"), part(NAMED, b"m"), file)):
        refused = await upload(proxy, token, *parts)
        assert (refused.status, refused.json["error"]["param"]) in ((400, "model"), (403, "model"))
    assert not backend.requests
    assert (await upload(proxy, token, part(NAMED, b"m"), file)).status == 200
    assert (await upload(proxy, free, part(NAMED, b"m"), file)).status == 200


@pytest.mark.parametrize("file", [FILE, LONG], ids=["short", "long"])
async def test_a_keys_model_may_stand_behind_the_file(
    file: bytes,
    start_proxy: StartProxy,
    backend: Backend,
    keys_file: Path,
    add_key: AddKey,
) -> None:
    token = add_key("a", models=("m",))
    proxy = await start_proxy(backend, keys_file=str(keys_file), endpoint=(f"m={backend.url}", f"n={backend.url}"))
    assert (await upload(proxy, token, file, part(NAMED, b"m"))).status == 200
    refused = await upload(proxy, token, file, part(NAMED, b"n"))
    assert (refused.status, refused.json["error"]["code"]) == (403, "model_not_allowed")


async def test_a_fault_at_one_connections_deadline_is_not_the_end_of_all_deadlines(
    start_proxy: StartProxy, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No such fault is known, so one is made: what it must not do is seen at the other connection."""
    proxy = await start_proxy(backend, head_timeout_s=0.2)
    faulty, late = await Client.connect(proxy.port), await Client.connect(proxy.port)
    await proxy.until(lambda app: len(app.server.connections) == 2)
    port = faulty.writer.get_extra_info("sockname")[1]
    check = ClientConnection.check

    def checked(connection: ClientConnection, now: float) -> None:
        assert connection.transport is not None
        assert connection.transport.get_extra_info("peername")[1] != port
        check(connection, now)

    monkeypatch.setattr(ClientConnection, "check", checked)
    assert await faulty.at_end()
    await late.send(b"POST /v1/chat/completions HTTP/1.1\r\nhost")
    assert (await late.read()).status == 408
    faulty.close()
    late.close()


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer nope"}], ids=["no key", "a wrong one"])
@pytest.mark.parametrize("content_type", ["application/json", "multipart/form-data; boundary=b"])
@pytest.mark.parametrize("chunked", [False, True])
async def test_a_stranger_is_not_listened_to_for_long(
    chunked: bool,
    content_type: str,
    headers: dict[str, str],
    start_proxy: StartProxy,
    backend: Backend,
    keys_file: Path,
    add_key: AddKey,
) -> None:
    """Bodies are kept whole before they are routed: whoever has no key shall not fill this process's memory."""
    token = add_key()
    proxy = await start_proxy(backend, keys_file=str(keys_file))
    body = part(NAMED, b"m") + LONG + b"--b--\r\n" if "multipart" in content_type else json.dumps(chat("x" * 300_000)).encode()
    coding = {"Transfer-Encoding": "chunked"} if chunked else {"Content-Length": str(len(body))}
    framed = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body) if chunked else body

    def lines(more: dict[str, str]) -> bytes:
        fields = {"Host": "p", "Content-Type": content_type, **coding, **more}
        return "".join(f"{name}: {value}\r\n" for name, value in fields.items()).encode()

    target = PATH if "multipart" in content_type else CHAT
    client = await Client.connect(proxy.port)
    await client.send(f"POST {target} HTTP/1.1\r\n".encode() + lines(headers) + b"\r\n" + framed[:100_000])
    response = await client.read()  # the rest has not been sent
    assert (response.status, response.headers["connection"]) == (401, "close")
    assert response.headers["www-authenticate"] == "Bearer"
    assert sum(proxy.app.gateway.metrics.denied.values.values()) == 1
    client.close()
    known = await ask(proxy.port, f"POST {target} HTTP/1.1\r\n".encode() + lines(bearer(token)) + b"\r\n" + framed)
    assert known.status == 200
    assert len(backend.requests) == 1
