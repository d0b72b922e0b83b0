"""Prompts become token ids as the engine makes them: bodies of every kind, the engine's own counts, mistakes."""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from contract import tokens
from contract.tokens import loading

VLLM = Path(__file__).parents[1] / "fixtures" / "tokens_vllm"
CAPTURED = [json.loads(line) for line in (VLLM / "captured.jsonl").read_text().splitlines()]

HELLO: dict[str, Any] = {"messages": [{"role": "user", "content": "Hello"}]}
WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {"name": "get_weather", "description": "Weather", "parameters": {"type": "object", "properties": {}}},
}


@pytest.fixture(scope="module")
def builtin() -> tokens.PromptTokenizer:
    return tokens.load(tokens.BUILTIN)


@pytest.fixture(scope="module")
def vllm() -> tokens.PromptTokenizer:
    return tokens.load(str(VLLM))


def ids(packed: bytes) -> list[int]:
    return memoryview(packed).cast("I").tolist()


@pytest.mark.parametrize("case", CAPTURED, ids=[case["name"] for case in CAPTURED])
def test_a_real_vllm_counted_the_same_tokens(vllm: tokens.PromptTokenizer, case: dict[str, Any]) -> None:
    prompts = vllm.prompts(case["path"], case["body"])
    if case["tokens"] is not None:
        assert ids(prompts[0]) == case["tokens"]
    if case["prompt_tokens"] is not None:
        assert sum(map(len, prompts)) == 4 * case["prompt_tokens"]


def test_the_shipped_tokenizer_has_8192_tokens_and_reverses_its_own_encoding(builtin: tokens.PromptTokenizer) -> None:
    text = "Grüße, 世界 🌍\n\tdef f():"
    assert builtin.decode(ids(builtin.encode(text, add_special_tokens=False))) == text
    assert builtin.decode([8191])
    assert builtin.decode([8192]) == ""


def test_fastokens_is_proven_equal_on_the_shipped_vocabulary(builtin: tokens.PromptTokenizer) -> None:
    assert builtin.fast


def test_a_chat_is_rendered_with_a_generation_prompt_and_no_second_bos(builtin: tokens.PromptTokenizer) -> None:
    header = "<|start_header_id|>{}<|end_header_id|>\n\n"
    text = f"<|begin_of_text|>{header.format('user')}Hello<|eot_id|>{header.format('assistant')}"
    assert builtin.render(HELLO) == text
    assert builtin.chat(HELLO) == builtin.encode(text, add_special_tokens=False)
    assert ids(builtin.chat(HELLO)).count(0) == 1
    assert ids(builtin.chat({**HELLO, "add_special_tokens": True})).count(0) == 2


def test_without_a_generation_prompt_the_chat_ends_with_its_last_message(builtin: tokens.PromptTokenizer) -> None:
    assert builtin.render({**HELLO, "add_generation_prompt": False}).endswith("Hello<|eot_id|>")


def test_continue_final_message_leaves_the_last_message_open(builtin: tokens.PromptTokenizer) -> None:
    body = {
        "messages": [*HELLO["messages"], {"role": "assistant", "content": "Once upon"}],
        "add_generation_prompt": False,
        "continue_final_message": True,
    }
    assert builtin.render(body).endswith("\n\nOnce upon")
    with pytest.raises(tokens.PromptError, match="Cannot set both") as raised:
        builtin.chat({**body, "add_generation_prompt": True})
    assert raised.value.param == "continue_final_message"


def test_tools_calls_and_results_are_in_the_prompt(builtin: tokens.PromptTokenizer) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Köln"}'}}
    body = {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Weather?"},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "1", "content": [{"type": "text", "text": "rain"}]},
        ],
        "tools": [WEATHER],
    }
    text = builtin.render(body)
    assert json.dumps(WEATHER) in text
    assert '<tool_call>{"name": "get_weather", "arguments": {"city": "Köln"}}</tool_call>' in text
    assert "tool<|end_header_id|>\n\nrain<|eot_id|>" in text
    assert text.index("Be brief.") < text.index("get_weather") < text.index("Weather?")


def test_a_special_token_in_a_users_text_is_that_token_as_in_vllm(builtin: tokens.PromptTokenizer) -> None:
    body = {"messages": [{"role": "user", "content": "a<|eot_id|>b"}]}
    assert ids(builtin.chat(body)).count(4) == 2


def test_parts_of_a_message_are_joined_by_line_ends_for_a_template_that_wants_text(builtin: tokens.PromptTokenizer) -> None:
    parts = [{"type": "text", "text": "one"}, "two", {"type": "text", "text": ""}, {"type": "refusal", "refusal": "three"}]
    assert builtin.render({"messages": [{"role": "user", "content": parts}]}) == builtin.render(
        {"messages": [{"role": "user", "content": "one\ntwo\nthree"}]}
    )


def test_completions_take_texts_and_token_ids_alone_and_in_batches(builtin: tokens.PromptTokenizer) -> None:
    one, two = builtin.encode("one"), builtin.encode("two")
    assert ids(one)[0] == 0
    assert builtin.completion("one") == [one]
    assert builtin.completion(["one", "two"]) == [one, two]
    assert [ids(prompt) for prompt in builtin.completion([5, 6, 7])] == [[5, 6, 7]]
    assert [ids(prompt) for prompt in builtin.completion([[5], [6, 7]])] == [[5], [6, 7]]
    assert builtin.prompts("/v1/completions", {"prompt": "one", "add_special_tokens": False}) == [one[4:]]


def test_embeddings_and_tokenize_take_what_their_apis_take(builtin: tokens.PromptTokenizer) -> None:
    assert builtin.prompts("/v1/embeddings", {"input": ["one", "two"]}) == builtin.completion(["one", "two"])
    assert builtin.prompts("/tokenize", {"prompt": "one"}) == builtin.completion("one")
    assert builtin.prompts("/tokenize", HELLO) == [builtin.chat(HELLO)]
    assert builtin.prompts("/v1/embeddings", HELLO) == [builtin.chat({**HELLO, "add_generation_prompt": False})]


def test_the_same_conversation_gives_the_same_tokens_by_all_three_apis(builtin: tokens.PromptTokenizer) -> None:
    chat = {"messages": [{"role": "system", "content": "Be brief."}, *HELLO["messages"]]}
    anthropic = {"system": [{"type": "text", "text": "Be brief."}], "messages": [{"role": "user", "content": "Hello"}]}
    responses = {"instructions": "Be brief.", "input": "Hello"}
    assert builtin.prompts("/v1/messages", anthropic) == [builtin.chat(chat)]
    assert builtin.prompts("/v1/responses", responses) == [builtin.encode(builtin.render(chat), add_special_tokens=True)]


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/chat/completions", {}, "messages"),
        ("/v1/chat/completions", {"messages": "hi"}, "messages"),
        ("/v1/chat/completions", {"messages": []}, "messages"),
        ("/v1/chat/completions", {"messages": ["hi"]}, "messages[0]"),
        ("/v1/chat/completions", {"messages": [{"content": "hi"}]}, "messages[0].role"),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": 7}]}, "messages[0].content"),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": [7]}]}, "messages[0].content[0]"),
        ("/v1/chat/completions", {"messages": [{"role": "assistant", "tool_calls": [{}]}]}, "messages[0].tool_calls[0]"),
        ("/v1/chat/completions", {**HELLO, "tools": {}}, "tools"),
        ("/v1/chat/completions", {**HELLO, "tools": [{}]}, "tools[0]"),
        ("/v1/chat/completions", {**HELLO, "chat_template_kwargs": 1}, "chat_template_kwargs"),
        ("/v1/completions", {}, "prompt"),
        ("/v1/completions", {"prompt": ""}, "prompt"),
        ("/v1/completions", {"prompt": {"a": 1}}, "prompt"),
        ("/v1/completions", {"prompt": [1, "a"]}, "prompt"),
        ("/v1/completions", {"prompt": [-1]}, "prompt"),
        ("/v1/completions", {"prompt": [1 << 32]}, "prompt"),
        ("/v1/completions", {"prompt": "\ud800"}, None),
        ("/v1/embeddings", {"input": None}, "input"),
        ("/v1/responses", {}, "input"),
        ("/v1/responses", {"input": ["hi"]}, "input[0]"),
        ("/v1/messages", {"system": "x"}, "messages"),
        ("/v1/messages", {"messages": [{"role": "user"}]}, "messages[0].content"),
        ("/v1/chat/completions", [], None),
    ],
)
def test_a_mistake_in_the_body_is_named(builtin: tokens.PromptTokenizer, path: str, body: Any, param: str | None) -> None:
    with pytest.raises(tokens.PromptError) as raised:
        builtin.prompts(path, body)
    assert raised.value.param == param
    assert raised.value.message


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (
            "/v1/chat/completions",
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
        ),
        ("/v1/chat/completions", {**HELLO, "chat_template": "{{ messages }}"}),
        ("/v1/chat/completions", {**HELLO, "chat_template_kwargs": {"chat_template": "x"}}),
        ("/v1/chat/completions", {**HELLO, "truncate_prompt_tokens": 5}),
        ("/v1/completions", {"prompt_embeds": "AAAA"}),
        ("/v1/responses", {"input": "x", "previous_response_id": "resp_1"}),
        ("/v1/responses", {"input": [{"type": "computer_call_output"}]}),
        ("/v1/messages", {"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]}),
        ("/v1/messages", {"messages": [{"role": "system", "content": "x"}]}),
        ("/v1/audio/transcriptions", {}),
    ],
)
def test_what_only_the_engine_can_know_is_said_to_be_so(builtin: tokens.PromptTokenizer, path: str, body: Any) -> None:
    with pytest.raises(tokens.NotTokenizable) as raised:
        builtin.prompts(path, body)
    assert raised.value.reason


def test_a_model_without_a_chat_template_still_completes(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes((VLLM / "tokenizer.json").read_bytes())
    tokenizer = tokens.load(str(tmp_path))
    assert tokenizer.completion("import os")
    with pytest.raises(tokens.NotTokenizable):
        tokenizer.chat(HELLO)


def test_a_tool_template_is_used_where_there_are_tools(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes((VLLM / "tokenizer.json").read_bytes())
    config = {"chat_template": [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "tools"}]}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = tokens.load(str(tmp_path))
    assert tokenizer.render(HELLO) == "plain"
    assert tokenizer.render({**HELLO, "tools": [WEATHER]}) == "tools"


@pytest.mark.parametrize("content", ["", "{}", "no json"])
def test_a_directory_with_a_bad_tokenizer_says_what_was_tried(tmp_path: Path, content: str) -> None:
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(tokens.TokenizerUnavailable, match=str(tmp_path)):
        tokens.load(str(tmp_path))


def test_an_unknown_name_says_what_was_tried() -> None:
    with pytest.raises(tokens.TokenizerUnavailable, match="no-such/model"):
        tokens.load("no-such/model")


def test_a_template_that_does_not_compile_is_said_at_load(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes((VLLM / "tokenizer.json").read_bytes())
    (tmp_path / "chat_template.jinja").write_text("{% for %}")
    with pytest.raises(tokens.TokenizerUnavailable, match="template"):
        tokens.load(str(tmp_path))


def test_many_threads_get_what_one_gets(builtin: tokens.PromptTokenizer) -> None:
    bodies = [{"messages": [{"role": "user", "content": f"{n} bottles of beer on the wall, " * 50}]} for n in range(60)]
    alone = [builtin.chat(body) for body in bodies]
    slow = loading.load(tokens.BUILTIN, fast=False)
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(builtin.chat, bodies * 5)) == alone * 5
        assert list(pool.map(slow.chat, bodies * 5)) == alone * 5


def test_importing_the_package_loads_no_tokenizer_library() -> None:
    code = "import sys, contract.tokens; print([m for m in ('tokenizers', 'jinja2', 'transformers') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_the_shipped_tokenizer_works_without_transformers() -> None:
    code = (
        "import sys; from contract import tokens; t = tokens.load(tokens.BUILTIN);"
        "t.chat({'messages': [{'role': 'user', 'content': 'x'}]}); print('transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "False"


def test_small_bodies_are_cheap_and_large_ones_are_not(builtin: tokens.PromptTokenizer) -> None:
    assert builtin.is_cheap(2_000)
    assert not builtin.is_cheap(500_000)
