"""The text that stands for a prompt where no tokenizer can be had, and block chains with a memory."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contract import blocks
from contract.tokens import text_of
from contract.tokens.chains import STRIDE_BLOCKS, ChainCache

CHAT = "/v1/chat/completions"
MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi\nthere"}]


def test_the_next_turn_extends_the_text_of_the_last() -> None:
    before = text_of(CHAT, {"messages": MESSAGES, "tools": [{"a": 1}], "temperature": 0.5})
    after = text_of(
        CHAT, {"tools": [{"a": 1}], "max_tokens": 5, "messages": [*MESSAGES, {"role": "assistant", "content": "x"}]}
    )
    assert after.startswith(before)


@pytest.mark.parametrize(
    "other",
    [
        {"tools": [{"type": "function"}]},
        {"documents": [{"text": "x"}]},
        {"chat_template_kwargs": {"enable_thinking": False}},
        {"reasoning_effort": "low"},
        {"messages": [{"role": "system", "content": "Be long."}, MESSAGES[1]]},
        {"messages": [MESSAGES[0], {**MESSAGES[1], "name": "x"}]},
        {"add_generation_prompt": False},
    ],
)
def test_whatever_shapes_the_prompt_is_in_its_text(other: dict[str, Any]) -> None:
    assert text_of(CHAT, {"messages": MESSAGES, **other}) != text_of(CHAT, {"messages": MESSAGES})


def test_what_does_not_shape_the_prompt_is_not_in_its_text() -> None:
    sampling = {"temperature": 0.1, "max_tokens": 7, "stream": True, "user": "u", "model": "m", "tool_choice": "auto"}
    assert text_of(CHAT, {"messages": MESSAGES, **sampling}) == text_of(CHAT, {"messages": MESSAGES})


def test_prompts_of_other_apis_are_told_apart() -> None:
    assert text_of("/v1/completions", {"prompt": "a"}) != text_of("/v1/embeddings", {"input": "a"})
    assert text_of("/v1/completions", {"prompt": [1, 2, 3]}).endswith(b"1 2 3")
    grown = text_of("/v1/completions", {"prompt": "once upon a time"})
    assert grown.startswith(text_of("/v1/completions", {"prompt": "once upon"}))


def test_common_beginnings_stay_common() -> None:
    one = text_of("/v1/messages", {"system": "s" * 100, "messages": [{"role": "user", "content": "a"}]})
    other = text_of("/v1/messages", {"system": "s" * 100, "messages": [{"role": "user", "content": "b"}]})
    assert one[:150] == other[:150]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@given(body=st.dictionaries(st.sampled_from(["messages", "prompt", "input", "tools", "system"]), json_values))
@settings(deadline=None)
def test_any_json_body_has_a_text(body: dict[str, Any]) -> None:
    assert text_of(CHAT, body) == text_of(CHAT, dict(reversed(body.items())))


def test_half_a_surrogate_pair_has_a_text_too() -> None:
    assert text_of("/v1/completions", {"prompt": "\ud800"})


@given(
    data=st.lists(st.integers(0, 3), max_size=40).map(lambda runs: b"".join(bytes([run]) * 1024 for run in runs)),
    block_size=st.sampled_from([1, 2, 3, 16]),
    parent=st.integers(0, 2**64 - 1),
)
@settings(deadline=None)
def test_a_chain_with_a_memory_is_the_chain(data: bytes, block_size: int, parent: int) -> None:
    for _ in range(2):
        whole = blocks.chain(data, block_size, parent)
        assert SHARED.chain(data, block_size, parent) == whole
        assert SHARED.packed(data, block_size, parent) == whole.tobytes()
        for count in (0, 1, 3, len(data) // (4 * block_size)):
            cut = data[: 4 * block_size * count + 3]
            assert blocks.packed_chain(cut, block_size, parent) == blocks.chain(cut, block_size, parent).tobytes()


SHARED = ChainCache()


def test_a_remembered_beginning_is_not_hashed_again_and_memory_is_bounded() -> None:
    chains = ChainCache(size_bytes_max=10 * 1024)
    stride = blocks.pack_tokens(range(16 * STRIDE_BLOCKS))
    chains.chain(stride * 3, 16, 1)
    assert (chains.hits, chains.misses) == (0, 3)
    chains.chain(stride * 4, 16, 1)
    assert (chains.hits, chains.misses) == (3, 4)
    assert {len(hashes) for hashes in chains._hashes.values()} == {
        STRIDE_BLOCKS
    }  # none is hashed or looked up in a larger slice
    for parent in range(100):
        chains.chain(stride, 16, parent)
    assert len(chains._hashes) <= 10 * 1024 // 512
