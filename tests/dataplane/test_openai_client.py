"""The `openai` package, as most callers use it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import openai
import pytest

from tests.dataplane.conftest import Proxy
from tests.fakes.backend import (
    STREAM_HEAD,
    Backend,
    chat_json,
    chat_stream,
    chunk,
    closes,
    delta,
    event,
    json_bytes,
    raw,
    usage,
)


@pytest.fixture
async def client(proxy: Proxy) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{proxy.port}/v1", api_key="k", max_retries=0) as client:
        yield client


async def test_it_streams_a_chat_and_reads_the_usage(client: openai.AsyncOpenAI, backend: Backend) -> None:
    backend.script(chat_stream(["Hel", "lo"], usage_of=usage(12, 2, 8)))
    stream = await client.chat.completions.create(
        model="m", messages=[{"role": "user", "content": "hi"}], stream=True, stream_options={"include_usage": True}
    )
    text, found = "", None
    async for part in stream:
        text += "".join(choice.delta.content or "" for choice in part.choices)
        found = part.usage or found
    assert text == "Hello"
    assert found is not None
    assert found.prompt_tokens_details is not None
    assert found.prompt_tokens_details.cached_tokens == 8


async def test_it_reads_a_whole_answer(client: openai.AsyncOpenAI, backend: Backend) -> None:
    backend.script(chat_json("Hello"))
    answer = await client.chat.completions.create(model="m", messages=[{"role": "user", "content": "hi"}])
    assert answer.choices[0].message.content == "Hello"


async def test_it_lists_models_and_embeds(client: openai.AsyncOpenAI, backend: Backend) -> None:
    assert [model.id async for model in client.models.list()] == ["m"]
    vectors = {"object": "list", "model": "m", "data": [{"object": "embedding", "index": 0, "embedding": [0.5]}]}
    backend.script(raw(json_bytes({**vectors, "usage": {"prompt_tokens": 1, "total_tokens": 1}})))
    answer = await client.embeddings.create(model="m", input="x", encoding_format="float")
    assert answer.data[0].embedding == [0.5]


async def test_an_unknown_model_is_its_not_found_error(client: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        await client.chat.completions.create(model="nope", messages=[])
    assert caught.value.code == "model_not_found"
    assert caught.value.param == "model"


async def test_a_malformed_body_is_its_bad_request_error(client: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        await client.post("/chat/completions", cast_to=object, content=b'{"model": ')
    assert caught.value.code == "invalid_json"


async def test_a_broken_stream_is_its_api_error(client: openai.AsyncOpenAI, backend: Backend) -> None:
    backend.script(closes(STREAM_HEAD + chunk(event(delta("part")))))
    stream = await client.chat.completions.create(model="m", messages=[], stream=True)
    with pytest.raises(openai.APIError) as caught:
        async for _ in stream:
            pass
    assert caught.value.code == "upstream_failed"


async def test_an_unreachable_fleet_is_its_server_error(client: openai.AsyncOpenAI, backend: Backend) -> None:
    await backend.stop()
    with pytest.raises(openai.InternalServerError):
        await client.chat.completions.create(model="m", messages=[])
