"""Callers' keys over real sockets: who is let in, with what limits, and what the engine and the control plane see of it."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest

from dataplane.keys import hash_of
from tests.dataplane.client import Client, Response, ask, chat, request
from tests.dataplane.conftest import AddKey, Proxy, StartBackend, StartProxy
from tests.fakes.backend import Backend, Seen, Wire, chat_json, chat_stream, hangs, usage
from tests.fakes.control import Control


def rewrite(path: Path, text: str) -> None:
    path.write_text(text)


def bearer(token: str, **more: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}", **more}


async def post(proxy: Proxy, token: str, body: dict[str, Any] | None = None, path: str = "/v1/chat/completions") -> Response:
    return await ask(proxy.port, request(body or chat(), path, headers=bearer(token)))


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer nope"}, {"x-api-key": "nope"}, {"Authorization": "Basic a"}])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages"])
async def test_without_a_key_nobody_gets_in(
    start_proxy: StartProxy, backend: Backend, keys_file: Path, add_key: AddKey, headers: dict[str, str], path: str
) -> None:
    add_key()
    proxy = await start_proxy(backend, keys_file=str(keys_file))
    response = await ask(proxy.port, request(chat(), path, headers=headers))
    assert response.status == 401
    assert response.headers["www-authenticate"] == "Bearer"
    error = response.json["error"]
    if path == "/v1/messages":
        assert (response.json["type"], error["type"]) == ("error", "authentication_error")
    else:
        assert error["code"] in ("invalid_api_key", "missing_api_key")
    assert not backend.requests


@pytest.mark.parametrize("header", ["Authorization", "x-api-key"])
async def test_a_key_lets_in_and_stays_here(
    start_proxy: StartProxy, backend: Backend, keys_file: Path, add_key: AddKey, header: str
) -> None:
    token = add_key()
    proxy = await start_proxy(backend, keys_file=str(keys_file))
    value = f"Bearer {token}" if header == "Authorization" else token
    assert (await ask(proxy.port, request(chat(), headers={header: value}))).status == 200
    assert "authorization" not in backend.requests[0].headers
    assert "x-api-key" not in backend.requests[0].headers


async def test_engines_see_their_own_keys(
    start_proxy: StartProxy, backend: Backend, keys_file: Path, add_key: AddKey, tmp_path: Path
) -> None:
    token = add_key()
    upstream = tmp_path / "upstream.json"
    upstream.write_text('{"static-1": "engine-key", "*": "other"}')
    proxy = await start_proxy(backend, keys_file=str(keys_file), upstream_keys_file=str(upstream))
    await post(proxy, token)
    assert backend.requests[0].headers["authorization"] == "Bearer engine-key"
    rewrite(upstream, f'{{"{backend.url}": "renewed"}}')
    proxy.app.reload()
    await post(proxy, token)
    assert backend.requests[1].headers["authorization"] == "Bearer renewed"


async def test_without_keys_an_upstream_key_replaces_what_the_caller_sent(start_proxy: StartProxy, backend: Backend) -> None:
    proxy = await start_proxy(backend, upstream_key="all")
    await post(proxy, "mine")
    assert backend.requests[0].headers["authorization"] == "Bearer all"


async def test_the_key_says_the_tenant_and_the_most_urgent_class(
    start_proxy: StartProxy, backend: Backend, control: Control, keys_file: Path, add_key: AddKey
) -> None:
    plain, gateway = add_key("a", tenant="acme"), add_key("b", tenant="acme", may_set_tenant=True, priority_max=5)
    control.serve("m", backend.url)
    proxy = await start_proxy(control=control, keys_file=str(keys_file))
    for token, expected in ((plain, ("acme", 0)), (gateway, ("mine", 5))):
        await ask(proxy.port, request(chat(), headers=bearer(token, **{"x-headway-tenant": "mine", "x-headway-priority": "9"})))
        question = control.questions[-1]
        assert (question.tenant, question.priority) == expected


async def test_a_key_reaches_its_models_only(
    start_proxy: StartProxy, backend: Backend, keys_file: Path, add_key: AddKey
) -> None:
    token = add_key(models=("m",))
    proxy = await start_proxy(backend, keys_file=str(keys_file), endpoint=(f"m={backend.url}", f"n={backend.url}"))
    assert (await post(proxy, token)).status == 200
    refused = await post(proxy, token, chat(model="n"))
    assert (refused.status, refused.json["error"]["code"]) == (403, "model_not_allowed")
    listed = await ask(proxy.port, request(path="/v1/models", method="GET", headers=bearer(token)))
    assert [model["id"] for model in listed.json["data"]] == ["m"]


async def test_the_main_port_tells_strangers_its_health_only(
    start_proxy: StartProxy, backend: Backend, keys_file: Path, add_key: AddKey
) -> None:
    token = add_key()
    proxy = await start_proxy(backend, keys_file=str(keys_file))
    for path, status in (("/health", 200), ("/metrics", 401), ("/ready", 401), ("/v1/models", 401)):
        assert (await ask(proxy.port, request(path=path, method="GET"))).status == status
        assert (await ask(proxy.port, request(path=path, method="GET", headers=bearer(token)))).status == 200


async def test_the_admin_port_needs_no_key(
    start_proxy: StartProxy, backend: Backend, keys_file: Path, add_key: AddKey, free_port: int
) -> None:
    token = add_key()
    proxy = await start_proxy(backend, keys_file=str(keys_file), admin_port=free_port)
    assert (await ask(free_port, request(path="/metrics", method="GET"))).status == 200
    assert (await ask(proxy.port, request(path="/metrics", method="GET", headers=bearer(token)))).status == 404


async def test_a_changed_file_is_read_and_a_broken_one_is_not_believed(
    start_proxy: StartProxy, backend: Backend, keys_file: Path, add_key: AddKey
) -> None:
    first = add_key("a")
    proxy = await start_proxy(backend, keys_file=str(keys_file))
    access = proxy.app.gateway.access
    assert access is not None
    second = add_key("b")
    await proxy.until(lambda _: len(access) == 2)  # by itself, within a second
    assert (await post(proxy, second)).status == 200
    rewrite(keys_file, "what\n")
    proxy.app.reload()
    assert (await post(proxy, first)).status == 200
    rewrite(keys_file, "")
    proxy.app.reload()
    assert (await post(proxy, first)).status == 401


async def test_a_revoked_key_ends_no_request_under_way(
    start_proxy: StartProxy, backend: Backend, keys_file: Path, add_key: AddKey
) -> None:
    token, go_on = add_key(concurrent_max=1), asyncio.Event()

    async def pause(index: int) -> None:
        if index == 2:
            await go_on.wait()

    backend.script(chat_stream(["a", "b"], pause=pause))
    proxy = await start_proxy(backend, keys_file=str(keys_file))
    client = await Client.connect(proxy.port)
    await client.send(request(chat(stream=True), headers=bearer(token)))
    await backend.until(lambda backend: len(backend.requests) == 1)
    rewrite(keys_file, "")
    proxy.app.reload()
    go_on.set()
    assert (await client.read()).text == "ab"
    client.close()


async def test_requests_per_minute_run_out_with_a_time(
    start_proxy: StartProxy, backend: Backend, keys_file: Path, add_key: AddKey
) -> None:
    token = add_key(requests_per_minute=2)
    proxy = await start_proxy(backend, keys_file=str(keys_file))
    first = await post(proxy, token)
    assert (first.headers["x-ratelimit-limit-requests"], first.headers["x-ratelimit-remaining-requests"]) == ("2", "1")
    assert (await post(proxy, token)).status == 200
    third = await post(proxy, token)
    assert (third.status, third.json["error"]["code"]) == (429, "rate_limit_exceeded")
    assert 1 <= int(third.headers["retry-after"]) <= 30
    assert third.headers["x-ratelimit-remaining-requests"] == "0"
    assert proxy.count("denied", "rate_limit_exceeded") == 1


async def test_tokens_are_reserved_and_corrected_by_what_was_used(
    start_proxy: StartProxy, backend: Backend, keys_file: Path, add_key: AddKey
) -> None:
    token = add_key(tokens_per_minute=1000)
    backend.script(chat_json("x", usage_of=usage(30, 20, 0)))
    proxy = await start_proxy(backend, keys_file=str(keys_file))
    first = await post(proxy, token, chat(max_tokens=900))
    assert first.status == 200
    assert int(first.headers["x-ratelimit-remaining-tokens"]) < 100  # reserved
    second = await post(proxy, token, chat(max_tokens=900))  # 950 are left: 50 were used
    assert second.status == 200
    large = await post(proxy, token, chat(max_tokens=2000))
    assert (large.status, large.json["error"]["type"]) == (429, "tokens")
    assert "retry-after" not in large.headers


async def test_a_request_that_no_engine_served_gives_its_tokens_back(
    start_proxy: StartProxy, keys_file: Path, add_key: AddKey
) -> None:
    token = add_key(tokens_per_minute=1000)
    proxy = await start_proxy(keys_file=str(keys_file), endpoint=("m=http://127.0.0.1:1",))
    for _ in range(3):
        assert (await post(proxy, token, chat(max_tokens=900))).status == 502


async def test_whoever_leaves_before_the_answer_pays_for_the_prompt(
    start_proxy: StartProxy, backend: Backend, keys_file: Path, add_key: AddKey
) -> None:
    token = add_key(tokens_per_minute=1000)
    backend.script(hangs(), chat_json("x", usage_of=usage(0, 0, 0)))
    proxy = await start_proxy(backend, keys_file=str(keys_file))
    client = await Client.connect(proxy.port)
    await client.send(request(chat("x" * 2000, max_tokens=1), headers=bearer(token)))
    await backend.until(lambda backend: len(backend.requests) == 1)
    client.reset()
    await proxy.until(lambda app: app.gateway.concurrency.in_flight == 0)
    answered = await post(proxy, token, chat(max_tokens=1))
    assert int(answered.headers["x-ratelimit-remaining-tokens"]) < 600
    assert proxy.count("tenant_tokens", "acme", "prompt") >= 400
    client.close()


async def test_requests_at_once_are_bounded_and_counted_down(
    start_proxy: StartProxy, backend: Backend, keys_file: Path, add_key: AddKey
) -> None:
    token = add_key(concurrent_max=1)
    backend.script(hangs(), chat_json("x"))
    proxy = await start_proxy(backend, keys_file=str(keys_file))
    client = await Client.connect(proxy.port)
    await client.send(request(chat(), headers=bearer(token)))
    await backend.until(lambda backend: len(backend.requests) == 1)
    refused = await post(proxy, token)
    assert (refused.status, refused.json["error"]["code"]) == (429, "concurrent_requests")
    client.reset()
    await proxy.until(lambda app: app.gateway.concurrency.in_flight == 0)
    assert (await post(proxy, token)).status == 200


async def test_limits_are_divided_by_the_processes(
    start_proxy: StartProxy, backend: Backend, keys_file: Path, add_key: AddKey
) -> None:
    token = add_key(requests_per_minute=40)
    proxy = await start_proxy(backend, keys_file=str(keys_file), processes=4)
    assert (await post(proxy, token)).headers["x-ratelimit-limit-requests"] == "10"


async def test_no_secret_reaches_logs_metrics_or_explanations(
    start_proxy: StartProxy,
    start_backend: StartBackend,
    control: Control,
    keys_file: Path,
    add_key: AddKey,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Every way a request can end, with keys: none of them says a key to anybody but the engine whose key it is."""
    caplog.set_level("DEBUG")
    good, poor = add_key("a"), add_key("b", requests_per_minute=5, models=("m",))
    wrong, engine_key = "hw-wrong-but-secret", "engine-secret-key"
    upstream = tmp_path / "upstream.json"
    upstream.write_text(f'{{"*": "{engine_key}"}}')
    backend = await start_backend()
    seen: list[str] = []

    async def tells_all(request_seen: Seen, wire: Wire) -> None:
        seen.append(str(request_seen.headers))
        await wire.send(b"\0 not HTTP\r\n\r\n")
        wire.close()

    backend.script(chat_json("x"), tells_all, hangs(), chat_stream(["a"]))
    control.serve("m", backend.url, "http://127.0.0.1:1")
    proxy = await start_proxy(
        control=control, keys_file=str(keys_file), upstream_keys_file=str(upstream), first_byte_timeout_s=0.1, attempts_max=1
    )
    answers = [
        await ask(proxy.port, request(body, path, method=method, headers=bearer(token, **more)))
        for token in (good, poor, wrong)
        for body, path, method, more in (
            (chat(), "/v1/chat/completions", "POST", {}),
            (chat(), "/v1/chat/completions", "POST", {}),
            (chat(stream=True), "/v1/chat/completions", "POST", {}),
            (chat(model="absent"), "/v1/chat/completions", "POST", {}),
            (b"{", "/v1/messages", "POST", {}),
            (b"", "/v1/nothing", "GET", {}),
            (b"", "/v1/completions", "GET", {}),
            (b"x", "/v1/chat/completions", "POST", {"Content-Encoding": "gzip"}),
            (b"x", "/v1/chat/completions", "POST", {"Expect": "nothing"}),
        )
    ]
    rewrite(keys_file, f"{good} in plain\n")
    rewrite(upstream, f"{engine_key} in plain")
    proxy.app.reload()
    page = (await ask(proxy.port, request(path="/metrics", method="GET", headers=bearer(good)))).body.decode()
    fields = str([getattr(record, "f", "") for record in caplog.records])
    said = (
        caplog.text
        + fields
        + page
        + str(control.questions)
        + str(control.outcomes)
        + "".join(str(answer.raw) for answer in answers)
    )
    assert {answer.status for answer in answers} >= {200, 400, 401, 403, 404, 405, 417, 429, 502}
    for secret in (good, poor, wrong, engine_key, hash_of(good.encode())[7:]):
        assert secret not in said
    assert engine_key in "".join(seen)
    assert good not in "".join(seen)


def test_a_new_file_is_the_owners_only(tmp_path: Path) -> None:
    from headway.__main__ import dispatch

    path = tmp_path / "keys"
    assert dispatch(["keys", "new", "--tenant", "x", "--keys-file", str(path)]) == 0
    assert os.stat(path).st_mode & 0o077 == 0


async def test_what_a_tenant_has_used_is_counted_under_the_name_of_its_key(
    start_proxy: StartProxy, backend: Backend, keys_file: Path, add_key: AddKey
) -> None:
    first, second = add_key("a", tenant="acme"), add_key("b", tenant="acme", may_set_tenant=True)
    proxy = await start_proxy(backend, keys_file=str(keys_file))
    backend.script(chat_stream(["a", "b"], usage_of=usage(30, 2, 0)))
    await post(proxy, first, chat(stream=True))
    backend.script(chat_stream(["a"], usage_of=usage(20, 1, 0)))
    await ask(proxy.port, request(chat(stream=True), headers=bearer(second, **{"x-headway-tenant": "mine"})))
    await post(proxy, first, chat(model="nobody-serves-it"))
    page = (await ask(proxy.port, request(path="/metrics", method="GET", headers=bearer(first)))).body.decode()
    for line in (
        'headway_proxy_tenant_requests_total{tenant="acme"} 3.0',
        'headway_proxy_tenant_tokens_total{kind="prompt",tenant="acme"} 50.0',
        'headway_proxy_tenant_tokens_total{kind="output",tenant="acme"} 3.0',
    ):
        assert line in page
    assert "mine" not in page  # what callers call themselves is no label: there is no end of them
