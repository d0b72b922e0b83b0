"""What callers wish for in `x-headway-` headers: taken as said, or refused by name; never dropped in silence."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataplane import wishes
from dataplane.errors import ApiError
from dataplane.wishes import NAME_CHARS_MAX, PRIORITY_MAX, PRIORITY_MIN, SLO_TTFT_MS_MAX
from tests.dataplane.client import Client, ask, chat, request
from tests.dataplane.conftest import StartBackend, StartProxy
from tests.fakes.backend import Backend, status
from tests.fakes.control import Control

SLO, PRIORITY, TENANT, SESSION = (f"x-headway-{name}" for name in ("slo-ttft-ms", "priority", "tenant", "session"))
LONG = "x" * (NAME_CHARS_MAX + 1)

GOOD = [
    (SLO, "800", {"slo_ttft_ms": 800.0}),
    (SLO, " 0.5 ", {"slo_ttft_ms": 0.5}),
    (SLO, "1.5e3", {"slo_ttft_ms": 1500.0}),
    (SLO, str(SLO_TTFT_MS_MAX), {"slo_ttft_ms": float(SLO_TTFT_MS_MAX)}),
    (PRIORITY, "-3", {"priority": -3}),
    (PRIORITY, "+7", {"priority": 7}),
    (PRIORITY, str(PRIORITY_MIN), {"priority": PRIORITY_MIN}),
    (TENANT, "search", {"tenant": "search"}),
    (SESSION, LONG[1:], {"session": LONG[1:]}),
    *((name, "", {}) for name in (SLO, PRIORITY, TENANT, SESSION)),
    ("x-headway-of-a-later-build", "?", {}),
]
BAD = [
    *(
        (SLO, text)
        for text in ("abc", "-5", "0", "0.0", "nan", "inf", "1e400", "86400001", "1_000", "0x10", "800ms", "1,5", "9" * 400)
    ),
    *((PRIORITY, text) for text in ("high", "1.5", "1e3", "1_0", str(PRIORITY_MAX + 1), str(PRIORITY_MIN - 1), "9" * 400)),
    (TENANT, LONG),
    (SESSION, LONG),
]


@pytest.mark.parametrize(("name", "text", "wished"), GOOD)
def test_a_wish_is_read(name: str, text: str, wished: dict[str, object]) -> None:
    assert wishes.read([(b"content-type", b"a/b"), (name.encode(), text.encode())]) == wished


@pytest.mark.parametrize(("name", "text"), BAD)
def test_what_cannot_be_read_is_refused_by_its_name(name: str, text: str) -> None:
    found = wishes.read([(name.encode(), text.encode())])
    assert isinstance(found, ApiError)
    assert (found.status, found.code, found.param) == (400, "header_invalid", name)
    assert name in found.message


@given(st.sampled_from((SLO, PRIORITY, TENANT, SESSION)), st.binary(max_size=300))
def test_any_bytes_are_read_within_bounds_or_refused(name: str, value: bytes) -> None:
    found = wishes.read([(name.encode(), value)])
    if isinstance(found, ApiError):
        assert found.param == name
        return
    assert 0 < found.get("slo_ttft_ms", 1) <= SLO_TTFT_MS_MAX  # type: ignore[operator]
    assert PRIORITY_MIN <= found.get("priority", 0) <= PRIORITY_MAX  # type: ignore[operator]
    assert all(0 < len(text) <= NAME_CHARS_MAX for text in found.values() if isinstance(text, str))


@pytest.mark.parametrize(("name", "text"), [(SLO, "soon"), (PRIORITY, "high"), (TENANT, LONG), (SESSION, LONG)])
async def test_the_caller_is_told_and_no_worker_is_troubled(
    start_proxy: StartProxy, backend: Backend, control: Control, name: str, text: str
) -> None:
    control.serve("m", backend.url)
    proxy = await start_proxy(control=control)
    client = await Client.connect(proxy.port)
    await client.send(request(chat(), headers={name: text}))
    refused = await client.read()
    assert (refused.status, refused.json["error"]["param"]) == (400, name)
    assert (refused.json["error"]["type"], refused.json["error"]["code"]) == ("invalid_request_error", "header_invalid")
    await client.send(request(chat()))  # on the same connection
    assert (await client.read()).status == 200
    client.close()
    assert len(control.questions) == len(backend.requests) == 1


async def test_what_is_wished_of_the_router_is_not_told_to_engines(
    start_proxy: StartProxy, start_backend: StartBackend, control: Control
) -> None:
    """Nor at a second attempt, whose question says it again."""
    refusing, serving = await start_backend(), await start_backend()
    refusing.script(status(503))
    control.serve("m", refusing.url, serving.url)
    proxy = await start_proxy(control=control)
    wished = {SLO: "800", PRIORITY: "2", TENANT: "acme", SESSION: "s"}
    for _ in range(2):
        assert (await ask(proxy.port, request(chat(), headers={**wished, "X-Other": "1"}))).status == 200
    assert {(question.tenant, question.priority, question.session) for question in control.questions} == {("acme", 2, "s")}
    for seen in (*refusing.requests, *serving.requests):
        assert seen.headers["x-other"] == "1"
        assert not [name for name in seen.headers if name.startswith("x-headway-")]
    assert refusing.requests


async def test_other_apis_are_told_in_their_own_words(start_proxy: StartProxy, backend: Backend) -> None:
    proxy = await start_proxy(backend)
    refused = await ask(proxy.port, request(chat(max_tokens=1), "/v1/messages", headers={SLO: "soon"}))
    assert (refused.status, refused.json["type"], refused.json["error"]["type"]) == (400, "error", "invalid_request_error")
