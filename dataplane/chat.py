"""The body of a usual chat: messages of a role and a text each, and nothing else that shapes a prompt.

Most small bodies are such. Read with their types, in one go, they cost two thirds of what `openai.read_whole_json` takes, and
their messages need not be looked into again.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

from dataplane.openai import MODEL_BYTES_MAX, Ask

CHAT_PATH = "/v1/chat/completions"
_Limit = Annotated[int, msgspec.Meta(gt=0, lt=2**32)]


class Chat(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """messages: each with a role and a content, or with one of the two. The other fields concern the answer."""

    model: Annotated[str, msgspec.Meta(min_length=1, max_length=MODEL_BYTES_MAX)]
    messages: list[dict[Literal["role", "content"], str]]
    stream: bool | None = None
    max_tokens: _Limit | None = None
    max_completion_tokens: _Limit | None = None
    max_output_tokens: _Limit | None = None
    cache_salt: str | None = None
    stream_options: Any = None
    temperature: Any = None
    top_p: Any = None
    top_k: Any = None
    min_p: Any = None
    n: Any = None
    stop: Any = None
    seed: Any = None
    presence_penalty: Any = None
    frequency_penalty: Any = None
    repetition_penalty: Any = None
    logit_bias: Any = None
    logprobs: Any = None
    top_logprobs: Any = None
    min_tokens: Any = None
    ignore_eos: Any = None
    response_format: Any = None
    metadata: Any = None
    user: Any = None


_decode = msgspec.json.Decoder(Chat).decode


def read_chat(body: bytes, path: str) -> tuple[Ask, Chat] | None:
    """What `read_json` says of the body, and what is in it. None: it is another body, or none; `read_json` knows."""
    if path != CHAT_PATH:
        return None
    try:
        chat = _decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    limit = chat.max_completion_tokens or chat.max_tokens or chat.max_output_tokens or 0
    return Ask(chat.model, chat.stream is True, limit, chat.cache_salt or ""), chat
