"""Token ids that the router computes are the ids the engine computes, for every shape of request, asked of a real vLLM."""

from __future__ import annotations

import json
import urllib.request
from array import array
from collections.abc import Iterator
from typing import Any

import aiohttp
import pytest

from contract import tokens
from tests.vllm.chats import TOOLS
from tests.vllm.engines import TOKENIZER, Engine, some_engines

SYSTEM = {"role": "system", "content": "You are a careful assistant."}
USER = {"role": "user", "content": "What is the weather in Lisbon — and in 東京? <tag> 1234567"}
CALL = {
    "role": "assistant",
    "content": None,
    "tool_calls": [
        {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"place": "Lisbon", "days": 3}'}}
    ],
}
RESULT = {"role": "tool", "tool_call_id": "call_1", "content": "21 degrees, sunny"}
PARTS = {"role": "user", "content": [{"type": "text", "text": "First part."}, {"type": "text", "text": "Second part."}]}

CHATS: dict[str, dict[str, Any]] = {
    "one question": {"messages": [USER]},
    "system prompt": {"messages": [SYSTEM, USER]},
    "tools": {"messages": [SYSTEM, USER], "tools": TOOLS},
    "tool call and result": {"messages": [SYSTEM, USER, CALL, RESULT], "tools": TOOLS},
    "several parts": {"messages": [SYSTEM, PARTS]},
    "no generation prompt": {"messages": [SYSTEM, USER], "add_generation_prompt": False},
    "continued answer": {
        "messages": [SYSTEM, USER, {"role": "assistant", "content": "It is"}],
        "add_generation_prompt": False,
        "continue_final_message": True,
    },
    "special tokens in the text": {"messages": [{"role": "user", "content": "say <|im_end|> and <s> and <|eot_id|> please"}]},
    "added special tokens": {"messages": [SYSTEM, USER], "add_special_tokens": True},
    "white space": {"messages": [{"role": "user", "content": "  \n\t leading, trailing \n\n"}]},
    "long": {"messages": [SYSTEM, {"role": "user", "content": "All work and no play makes a dull test. " * 120}]},
}


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with some_engines(1) as engines:
        yield engines[0]


@pytest.fixture(scope="module")
def model(engine: Engine) -> dict[str, Any]:
    with urllib.request.urlopen(engine.url + "/v1/models", timeout=10) as reply:
        return dict(json.load(reply)["data"][0])


async def engine_ids(engine: Engine, body: dict[str, Any]) -> list[int]:
    async with aiohttp.ClientSession() as session, session.post(engine.url + "/tokenize", json=body) as reply:
        answer = await reply.json()
        assert reply.status == 200, answer
        return list(answer["tokens"])


def ids(packed: bytes) -> list[int]:
    return list(array("I", packed))


@pytest.mark.parametrize("name", CHATS)
async def test_a_chat_has_the_engines_token_ids(engine: Engine, model: dict[str, Any], name: str) -> None:
    tokenizer = tokens.load(str(TOKENIZER))
    body = {"model": model["id"], **CHATS[name]}
    assert ids(tokenizer.chat(body)) == await engine_ids(engine, body)


@pytest.mark.parametrize("prompt", ["Hello", "  spaces  ", "naïve café 東京 🙂", "def f(x):\n    return x\n" * 40, "<s>hi</s>"])
async def test_a_completion_has_the_engines_token_ids(engine: Engine, model: dict[str, Any], prompt: str) -> None:
    tokenizer = tokens.load(str(TOKENIZER))
    (packed,) = tokenizer.completion(prompt)
    assert ids(packed) == await engine_ids(engine, {"model": model["id"], "prompt": prompt})


async def test_a_batch_of_prompts_has_the_engines_token_count(engine: Engine, model: dict[str, Any]) -> None:
    tokenizer = tokens.load(str(TOKENIZER))
    for prompt in (["one", "two and three"], [5, 6, 7, 8], [[5, 6, 7], [8, 9]]):
        body = {"model": model["id"], "prompt": prompt, "max_tokens": 1}
        async with aiohttp.ClientSession() as session, session.post(engine.url + "/v1/completions", json=body) as reply:
            answer = await reply.json()
            assert reply.status == 200, answer
        assert sum(len(ids(packed)) for packed in tokenizer.completion(prompt)) == answer["usage"]["prompt_tokens"]


async def test_a_responses_request_has_the_engines_token_count(engine: Engine, model: dict[str, Any]) -> None:
    tokenizer = tokens.load(str(TOKENIZER))
    body = {"model": model["id"], "input": "What is a headway?", "instructions": "Be brief.", "max_output_tokens": 1}
    async with aiohttp.ClientSession() as session, session.post(engine.url + "/v1/responses", json=body) as reply:
        answer = await reply.json()
        assert reply.status == 200, answer
    assert len(ids(tokenizer.responses(body))) == answer["usage"]["input_tokens"]


async def test_an_anthropic_request_has_the_engines_token_count(engine: Engine, model: dict[str, Any]) -> None:
    tokenizer = tokens.load(str(TOKENIZER))
    body = {
        "model": model["id"],
        "max_tokens": 1,
        "system": "Be brief.",
        "messages": [{"role": "user", "content": [{"type": "text", "text": "What is a headway?"}]}],
    }
    async with aiohttp.ClientSession() as session, session.post(engine.url + "/v1/messages", json=body) as reply:
        answer = await reply.json()
        assert reply.status == 200, answer
    assert len(ids(tokenizer.messages(body))) == answer["usage"]["input_tokens"]
