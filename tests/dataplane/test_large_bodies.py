"""A body's size is not its head's: requests of every size on one connection."""

from __future__ import annotations

import json
from threading import Event

from contract import blocks, tokens
from dataplane.app import TOKENIZE_THREADS
from dataplane.preparing import READ_INLINE_BYTES_MAX
from tests.dataplane.client import Client, ask, request
from tests.dataplane.conftest import Proxy, StartProxy
from tests.fakes.backend import Backend, chat_payload, json_bytes, raw
from tests.fakes.control import Control

CHAT = "/v1/chat/completions"
LONG = "您好，世界。" * (READ_INLINE_BYTES_MAX // 12)


async def test_a_body_beyond_the_heads_limit_is_fine_however_it_arrives(proxy: Proxy, backend: Backend) -> None:
    for kilobytes in (1, 70, 130, 300):
        backend.script(raw(json_bytes(chat_payload("fine"))))
        body = json.dumps({"model": "m", "messages": [{"role": "user", "content": "x" * 1024 * kilobytes}]}).encode()
        response = await ask(proxy.port, request(body))
        assert response.status == 200, (kilobytes, response.raw[:300])


async def test_a_large_body_of_escapes_is_routed_by_its_tokens_and_passed_on_as_it_came(
    start_proxy: StartProxy, backend: Backend, control: Control
) -> None:
    control.serve("m", backend.url, tokenizer=tokens.BUILTIN)
    proxy = await start_proxy(control=control)
    await proxy.until(lambda app: app.prompts.status(app.gateway.fleet.view.models) == {"m": "ready"})
    fields = {"model": "m", "messages": [{"role": "user", "content": LONG}], "max_tokens": 7}
    body = json.dumps(fields).encode()
    assert body.isascii()
    assert len(body) > READ_INLINE_BYTES_MAX
    assert (await ask(proxy.port, request(body))).status == 200
    question = control.questions[0]
    flat = tokens.load(tokens.BUILTIN).prompts(CHAT, fields)[0]
    assert question.max_tokens == 7
    assert question.input_tokens == len(flat) // 4
    assert question.chains[0].hashes == blocks.chain(flat, 16, blocks.root_hash("m")).tobytes()
    assert backend.requests[0].body == body


async def test_a_mistake_in_a_large_body_is_said_as_in_a_small_one(proxy: Proxy) -> None:
    large = json.dumps({"model": "m", "messages": [{"role": "user", "content": LONG}]}).encode()
    connection = await Client.connect(proxy.port)
    for body, code in (
        (large[:-1], "invalid_json"),
        (large + b"x", "invalid_json"),
        (b"[" + large + b"]", "not_an_object"),
        (large.replace(b'"m"', b"17", 1), "model_invalid"),
        (large.replace(b"model", b"modem", 1), "model_missing"),
        (large[:-20] + b"\xff" + large[-20:], "invalid_utf8"),
    ):
        await connection.send(request(body))
        response = await connection.read()
        assert (response.status, response.json["error"]["code"]) == (400, code)
    await connection.send(request(large + b" x"))
    assert f"(byte {len(large) + 2})" in (await connection.read()).json["error"]["message"]
    connection.close()


async def test_a_client_that_leaves_while_its_body_is_read_is_asked_nothing_about(
    start_proxy: StartProxy, backend: Backend, control: Control
) -> None:
    control.serve("m", backend.url)
    proxy = await start_proxy(control=control)
    gateway, go_on = proxy.app.gateway, Event()
    busy = [gateway.executor.submit(go_on.wait, 10) for _ in range(TOKENIZE_THREADS)]
    connection = await Client.connect(proxy.port)
    await connection.send(request(json.dumps({"model": "m", "messages": [{"role": "user", "content": LONG}]}).encode()))
    await proxy.until(lambda app: len(app.gateway.exchanges) == 1)
    connection.close()
    await proxy.until(lambda app: not app.gateway.exchanges)
    go_on.set()
    assert all(future.result() for future in busy)
    assert (await ask(proxy.port, request(json.dumps({"model": "m", "messages": []}).encode()))).status == 200
    assert len(control.questions) == 1
    assert len(backend.requests) == 1
