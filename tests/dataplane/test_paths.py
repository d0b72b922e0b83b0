"""Which paths pass, and what a request may leave out: bodies without a model, engines' own switches, crooked paths."""

from __future__ import annotations

import json
import resource
import subprocess
import sys

import openai
import pytest

from dataplane.openai import MODEL_BYTES_MAX, Kind, classify
from dataplane.wishes import NAME_CHARS_MAX
from proto import routing_pb2 as pb
from tests.dataplane.client import Client, ask, chat, request
from tests.dataplane.conftest import Proxy, StartProxy
from tests.fakes.backend import Backend
from tests.fakes.control import Control

TWO = pb.FleetView(warm=True, models=[pb.ModelView(name="a", base="a"), pb.ModelView(name="b", base="b")])
WITHOUT_MODEL = [
    ("/v1/rerank", {"query": "a", "documents": ["b"]}),
    ("/rerank", {"query": "a", "documents": ["b"]}),
    ("/v1/score", {"text_1": "a", "text_2": "b"}),
    ("/pooling", {"input": "a"}),
    ("/classify", {"input": "a"}),
    ("/tokenize", {"prompt": "a"}),
    ("/v1/of/a/later/engine", {"input": "a"}),
]


@pytest.mark.parametrize(("path", "body"), WITHOUT_MODEL)
async def test_a_body_without_a_model_goes_to_the_only_one(
    start_proxy: StartProxy, backend: Backend, control: Control, path: str, body: dict[str, object]
) -> None:
    control.serve("m", backend.url)
    proxy = await start_proxy(control=control)
    assert (await ask(proxy.port, request(body, path))).status == 200
    assert backend.requests[0].json == body  # unchanged: the engine knows its own model
    assert control.questions[0].model == "m"


@pytest.mark.parametrize(("path", "body"), WITHOUT_MODEL)
async def test_where_there_are_several_models_it_must_name_one(proxy: Proxy, path: str, body: dict[str, object]) -> None:
    proxy.app.gateway.fleet.apply(TWO)
    response = await ask(proxy.port, request(body, path))
    assert (response.status, response.json["error"]["code"]) == (400, "model_missing")
    assert response.json["error"]["param"] == "model"


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/messages", "/v1/responses"])
async def test_openais_own_paths_must_name_one_always(proxy: Proxy, backend: Backend, path: str) -> None:
    response = await ask(proxy.port, request({"input": "a", "messages": [], "prompt": "a"}, path))
    assert response.status == 400
    assert "model" in json.dumps(response.json)
    assert not backend.requests


@pytest.mark.parametrize("path", ["/v1/rerank", "/v1/chat/completions"])
@pytest.mark.parametrize("model", ["", 7, ["m"], "x" * (MODEL_BYTES_MAX + 1)], ids=["empty", "number", "list", "long"])
async def test_a_model_that_is_none_is_refused_everywhere(proxy: Proxy, path: str, model: object) -> None:
    response = await ask(proxy.port, request({"model": model}, path))
    assert (response.status, response.json["error"]["code"]) == (400, "model_invalid")
    assert len(response.body) < 500


@pytest.mark.parametrize(
    "path",
    [
        "/v1/load_lora_adapter",
        "/v1/unload_lora_adapter",
        "/v1/%6coad_lora_adapter",
        "/v1/unload%5Flora%5fadapter?x=1",
        "/v1/load_lora_adapter/",
        "/%761/load_lora_adapter",
    ],
)
async def test_no_caller_changes_an_engine(proxy: Proxy, backend: Backend, path: str) -> None:
    response = await ask(proxy.port, request({"model": "m", "lora_name": "evil", "lora_path": "/"}, path))
    assert (response.status, response.json["error"]["code"]) == (403, "engine_path")
    assert not backend.requests


@pytest.mark.parametrize(
    "path", ["/v1/../reset_prefix_cache", "/v1/..", "/v1/%2e%2E/sleep", "/v1//x", "/v1/./x", "/v1/a%2F..%2Fb", "/v1/..\\x"]
)
async def test_a_path_that_may_lead_elsewhere_is_no_path(proxy: Proxy, backend: Backend, path: str) -> None:
    response = await ask(proxy.port, request(chat(), path))
    assert (response.status, response.json["error"]["code"]) == (404, "unknown_url")
    assert not backend.requests


@pytest.mark.parametrize("path", ["/v1/a.b/c-d_e", "/v1/x/..y", "/v1/responses/resp_1/cancel", "/v1/100%25"])
def test_other_paths_pass(path: str) -> None:
    assert classify("POST", path) is Kind.ROUTED


async def test_a_models_name_may_have_slashes_however_they_are_written(proxy: Proxy) -> None:
    proxy.app.gateway.fleet.apply(pb.FleetView(warm=True, models=[pb.ModelView(name="org/model", base="org/model")]))
    async with openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{proxy.port}/v1", api_key="none", max_retries=0) as client:
        assert (await client.models.retrieve("org/model")).id == "org/model"
        with pytest.raises(openai.NotFoundError, match="org/other"):
            await client.models.retrieve("org/other")
    assert (await ask(proxy.port, request(path="/v1/models/org/model", method="GET"))).json["id"] == "org/model"


@pytest.mark.parametrize(
    ("lines", "version"),
    [
        ("Transfer-Encoding: gzip, chunked", "1.1"),
        ("Transfer-Encoding: identity, chunked", "1.1"),
        ("Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked", "1.1"),
        ("Transfer-Encoding: chunked", "1.0"),
    ],
)
async def test_a_transfer_coding_that_is_not_understood_ends_the_connection(
    proxy: Proxy, backend: Backend, lines: str, version: str
) -> None:
    client = await Client.connect(proxy.port)
    await client.send(
        f"POST /v1/completions HTTP/{version}\r\nHost: x\r\n{lines}\r\n\r\n".encode() + b"2\r\n{}\r\n0\r\n\r\nGET /health"
    )
    response = await client.read()
    assert (response.status, response.json["error"]["code"]) == (400, "invalid_http")
    assert await client.at_end()
    assert not backend.requests
    client.close()


async def test_a_browser_may_send_its_key_and_read_our_headers(start_proxy: StartProxy, backend: Backend) -> None:
    proxy = await start_proxy(backend, cors_origin="https://app.example")
    preflight = await ask(proxy.port, request(method="OPTIONS", headers={"Origin": "https://app.example"}))
    allowed = preflight.headers["access-control-allow-headers"].split(", ")
    assert "authorization" in allowed  # the star does not stand for it
    answer = await ask(proxy.port, request(chat()))
    assert answer.headers["access-control-expose-headers"] == "*"
    refused = await ask(proxy.port, request({}))
    assert refused.headers["access-control-allow-origin"] == "https://app.example"  # else a browser shows no error


async def test_a_request_s_name_is_bounded_where_it_is_kept(
    start_proxy: StartProxy, backend: Backend, control: Control
) -> None:
    control.serve("m", backend.url)
    proxy = await start_proxy(control=control)
    long = "x" * (NAME_CHARS_MAX + 1)
    response = await ask(proxy.port, request(chat(), headers={"X-Request-Id": long}))
    assert response.headers["x-request-id"] == long  # towards the caller and the engine it stays whole
    assert backend.requests[0].headers["x-request-id"] == long
    (question,) = control.questions
    assert question.request_id == long[:NAME_CHARS_MAX]


def test_a_process_takes_as_many_open_files_as_it_may_have() -> None:
    """Two sockets a stream: the usual soft limit would end at 500 streams."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    script = (
        "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (64, resource.getrlimit(resource.RLIMIT_NOFILE)[1]));"
        "from runtime.service import FILES_MAX, allow_files;"
        "print(allow_files(), resource.getrlimit(resource.RLIMIT_NOFILE)[0], FILES_MAX)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    said, soft, bound = map(int, done.stdout.split())
    assert said == soft == (bound if hard == resource.RLIM_INFINITY else min(hard, bound))
