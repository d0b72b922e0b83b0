"""Whatever JSON a caller sends, it is tokens, the caller's mistake, or said to be unknowable: never another exception."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contract import tokens

TOKENIZER = tokens.load(tokens.BUILTIN)

ROLES = ["user", "assistant", "system", "tool", "developer"]
KINDS = ["text", "function", "message", "reasoning", "function_call", "function_call_output", "tool_use", "tool_result"]
KINDS += ["thinking", "input_text", "output_text", "refusal", "namespace", "image", "image_url"]
TEXTS = ["", "x", "{}", "incomplete", "<|eot_id|>", "\ud800"]

LEAVES = st.none() | st.booleans() | st.integers(-2, 2**33) | st.sampled_from([0.5, *TEXTS, *ROLES, *KINDS])


def objects(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Messages, parts, items, calls and tools: the right fields, with right and wrong values."""
    text, kind = st.sampled_from(TEXTS) | LEAVES, st.sampled_from(KINDS) | LEAVES
    return st.fixed_dictionaries(
        {"type": kind, "role": st.sampled_from(ROLES) | LEAVES},
        optional={
            **dict.fromkeys(("content", "function", "tool_calls", "tools", "input", "output", "summary", "parameters"), inner),
            **dict.fromkeys(
                ("text", "thinking", "reasoning", "refusal", "name", "arguments", "id", "status", "namespace"), text
            ),
        },
    )


VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | objects(inner) | st.lists(objects(inner), max_size=3), max_leaves=10
)
LISTS = st.lists(objects(VALUES), max_size=3) | VALUES
BODIES = st.fixed_dictionaries(
    {},
    optional={
        **dict.fromkeys(("messages", "input", "tools"), LISTS),
        **dict.fromkeys(("prompt", "system", "instructions", "documents", "reasoning", "reasoning_effort"), VALUES),
        **dict.fromkeys(("output_config", "chat_template_kwargs"), VALUES),
        **dict.fromkeys(("continue_final_message", "add_generation_prompt"), st.booleans()),
    },
)
PATHS = ["/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages", "/v1/embeddings", "/tokenize"]


@pytest.mark.parametrize("path", PATHS)
@given(body=BODIES)
@settings(deadline=None, max_examples=50)
def test_any_json_is_tokens_or_a_known_refusal(path: str, body: dict[str, Any]) -> None:
    usual = TOKENIZER.usual(path, body)
    try:
        prompts = TOKENIZER.prompts(path, body)
    except (tokens.PromptError, tokens.NotTokenizable):
        prompts = []
        assert usual is None
    assert usual is None or prompts == [usual]
    assert all(len(prompt) % 4 == 0 for prompt in prompts)
    assert tokens.text_of(path, body)


PLAIN = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(ROLES), "content": st.sampled_from([*TEXTS, "x-anthropic-billing-header: 1\nx"]) | st.text()},
        optional={"name": st.text()},
    ),
    max_size=4,
)


@given(messages=PLAIN, more=st.dictionaries(st.sampled_from(["tools", "max_tokens", "stream"]), st.none(), max_size=2))
@settings(deadline=None)
def test_the_usual_chat_is_what_any_chat_is(messages: list[dict[str, str]], more: dict[str, None]) -> None:
    body = {"messages": messages, **more}
    usual = TOKENIZER.usual("/v1/chat/completions", body)
    try:
        (prompt,) = TOKENIZER.prompts("/v1/chat/completions", body)
    except (tokens.PromptError, tokens.NotTokenizable):
        assert usual is None
        return
    plain = all(set(m) == {"role", "content"} and m["role"] in ROLES[:2] for m in messages)
    assert usual == prompt if plain and "tools" not in more else usual in (None, prompt)
