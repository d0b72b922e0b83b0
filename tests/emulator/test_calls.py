"""Bodies to calls: whatever is sent, the answer is a call or a 400 in one sentence."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from emulator import calls, prompts
from emulator.errors import ApiError
from emulator.texts import StopFilter, Texts

PATHS = (calls.CHAT, calls.COMPLETIONS, calls.EMBEDDINGS, calls.RESPONSES, calls.MESSAGES)
FIELDS = (
    *("model", "messages", "prompt", "input", "max_tokens", "max_completion_tokens", "min_tokens", "n", "stop", "stream"),
    *("stream_options", "temperature", "top_p", "seed", "echo", "ignore_eos", "stop_token_ids", "cache_salt", "vllm_xargs"),
    *("tools", "logprobs", "system", "instructions"),
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["role", "content", "text", "type"]), inner),
    max_leaves=8,
)


def refusal(read: Callable[[], object]) -> ApiError | None:
    """What it is refused with; every other exception is a failure."""
    try:
        read()
    except ApiError as error:
        return error
    return None


@pytest.mark.parametrize("path", PATHS)
@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_no_body_is_an_internal_error(texts: Texts, path: str, data: st.DataObject) -> None:
    body = data.draw(st.dictionaries(st.sampled_from(FIELDS), json_values, max_size=5))

    def read() -> None:
        call = calls.parse(path, calls.decode_body(json.dumps(body).encode()), "tiny")
        tokens = prompts.tokenize(path, call.body, texts)
        prompts.check(tokens, max_model_len=4_096, vocab_size=texts.vocab_size, max_tokens=call.max_tokens)

    error = refusal(read)
    if error is not None:
        assert error.status == 400
        assert error.message
        json.loads(error.body())


@settings(max_examples=100, deadline=None)
@given(raw=st.binary(max_size=40))
@example(b"\xff\xfe")
@example(b'{"prompt": "\xff"}')
@example(b'{"prompt": "\\ud800"}')
@example(b"[" * 40)
@example(b"[1]")
@example(b"null")
def test_no_bytes_are_an_internal_error(raw: bytes) -> None:
    error = refusal(lambda: calls.decode_body(raw))
    assert error is None or error.status == 400


def test_a_lone_surrogate_is_refused(texts: Texts) -> None:
    with pytest.raises(ApiError) as refused:
        prompts.tokenize(calls.COMPLETIONS, {"prompt": "\ud800"}, texts)
    assert refused.value.status == 400


def test_the_newer_name_of_the_limit_wins() -> None:
    body = {"messages": [], "max_tokens": 5, "max_completion_tokens": 7}
    assert calls.parse(calls.CHAT, body, "tiny").max_tokens == 7
    assert calls.parse(calls.CHAT, {"messages": []}, "tiny").max_tokens is None
    assert calls.parse(calls.COMPLETIONS, {"prompt": "x"}, "tiny").max_tokens == 16


@pytest.mark.parametrize(
    ("field", "value"), [("n", 0), ("n", 1 << 40), ("top_p", 0), ("max_tokens", 0), ("min_tokens", -1), ("min_tokens", 99)]
)
def test_values_out_of_range_name_their_field(field: str, value: Any) -> None:
    with pytest.raises(ApiError) as refused:
        calls.parse(calls.COMPLETIONS, {"prompt": "x", "max_tokens": 8} | {field: value}, "tiny")
    assert refused.value.param == field


@settings(max_examples=200)
@given(
    pieces=st.lists(st.text("ab", max_size=3), max_size=12),
    stops=st.lists(st.text("ab", min_size=1, max_size=3), min_size=1, max_size=2),
)
def test_a_stop_string_is_found_however_the_text_is_cut(pieces: list[str], stops: list[str]) -> None:
    subject = StopFilter(tuple(stops))
    shown = ""
    for piece in pieces:
        more, hit = subject.feed(piece)
        shown += more
        assert not any(stop in shown for stop in stops)
        if hit is not None:
            assert "".join(pieces).startswith(shown + hit)
            return
    assert shown + subject.rest() == "".join(pieces)
    assert not any(stop in "".join(pieces) for stop in stops)


def test_every_word_of_an_answer_encodes_back_to_itself(texts: Texts) -> None:
    words, openers = texts.vocabulary.words, texts.vocabulary.openers
    assert len(words) > 1_000
    assert len(openers) > 100
    ids = [openers[0], *words[:500]]
    text = "".join(texts.text(token) for token in ids)
    assert text == texts.tokenizer.decode(ids)
    assert texts.tokenizer.completion(text, add_special_tokens=False) == texts.tokenizer.completion(ids)
