"""Usual chats read in one typed go: the same as field by field."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contract import tokens
from contract.tokens.prompt import SHAPING
from dataplane.chat import CHAT_PATH, Chat, read_chat
from dataplane.openai import Ask, read_json

TOKENIZER = tokens.load(tokens.BUILTIN)
USUAL = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 5, "temperature": 0.5}

ROLES = st.sampled_from(["user", "assistant", "system", "tool", "developer", ""])
TEXTS = st.sampled_from(["x", "", "x-anthropic-billing-header: 1\nx", "\ud800", "<|eot_id|>"]) | st.text(max_size=20)
MESSAGES = st.lists(
    st.fixed_dictionaries({}, optional={"role": ROLES, "content": TEXTS, "name": TEXTS})
    | st.just({"role": "user", "content": []}),
    max_size=3,
)
ANY = st.none() | st.booleans() | st.integers(-1, 2**33) | st.sampled_from([0.5, "", "m", "x" * 600]) | st.just([])
BODIES = st.fixed_dictionaries(
    {"model": st.just("m") | ANY, "messages": MESSAGES | ANY},
    optional=dict.fromkeys((*Chat.__struct_fields__[2:], *sorted(SHAPING), "unknown"), ANY),
)


def test_no_field_of_a_usual_chat_but_its_messages_shapes_the_prompt() -> None:
    assert SHAPING.isdisjoint(Chat.__struct_fields__)


@given(
    body=BODIES.map(lambda fields: json.dumps(fields).encode())
    | st.binary(max_size=20)
    | st.sampled_from(
        [b'{"model":"m","messages":[{"role":"user","content":"' + end for end in (b"\xff", b'\xed\xa0\x80"}]}', b"")]
    )
)
@settings(deadline=None, max_examples=500)
def test_it_says_what_the_body_says_or_nothing(body: bytes) -> None:
    read = read_chat(body, CHAT_PATH)
    if read is None:
        return
    ask, chat = read
    fields = json.loads(body)
    assert ask == read_json(body, CHAT_PATH)
    assert chat.messages == fields["messages"]
    assert SHAPING.isdisjoint(fields)
    prompt = TOKENIZER.of_texts(chat.messages)
    try:
        assert prompt is None or [prompt] == TOKENIZER.prompts(CHAT_PATH, fields)
    except (tokens.PromptError, tokens.NotTokenizable):
        pytest.fail("a prompt was made of what is none")


@pytest.mark.parametrize(
    "more", [{}, {"stream": True}, {"stream": None, "seed": 1}, {"max_completion_tokens": 7}, {"cache_salt": "s", "user": "u"}]
)
def test_usual_ones_are_read(more: dict[str, Any]) -> None:
    read = read_chat(json.dumps(USUAL | more).encode(), CHAT_PATH)
    assert read is not None
    assert read[0] == Ask("m", more.get("stream") is True, more.get("max_completion_tokens", 5), more.get("cache_salt", ""))
    assert TOKENIZER.of_texts(read[1].messages) == TOKENIZER.chat(USUAL)


@pytest.mark.parametrize("field", [*sorted(SHAPING), "anything"])
def test_a_field_that_may_shape_the_prompt_makes_it_another(field: str) -> None:
    assert read_chat(json.dumps(USUAL | {field: None}).encode(), CHAT_PATH) is None


def test_another_path_is_another() -> None:
    assert read_chat(msgspec.json.encode(USUAL), "/v1/completions") is None
