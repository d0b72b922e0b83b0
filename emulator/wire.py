"""The bytes of answers: completions and chat, streamed and whole, as vLLM 0.32 writes them. Pure.

A stream's event is put together from three byte strings, of which only the middle one (the token's text as a JSON string)
changes from token to token.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

VERSION = "0.32.0"
FINGERPRINT = f"vllm-{VERSION}-emulator"
DONE = b"data: [DONE]\n\n"


@dataclass(slots=True)
class Totals:
    """What a request cost. timings: vLLM's per-request figures in milliseconds, empty for several choices."""

    prompt_tokens: int
    cached_tokens: int
    created_tokens: int
    completion_tokens: int = 0
    timings: dict[str, float] = field(default_factory=dict)


@dataclass(slots=True)
class Choice:
    """One answer as far as it got."""

    index: int
    num_tokens: int = 0
    parts: list[str] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    finish: str | None = None
    stop_reason: str | int | None = None

    @property
    def text(self) -> str:
        return "".join(self.parts)


@dataclass(frozen=True, slots=True)
class Head:
    """What all events of an answer begin with. id: with its prefix; created: unix seconds."""

    id: str
    model: str
    created: int


class Style(Protocol):
    """How one API writes an answer."""

    def opening(self, choices: Sequence[Choice], totals: Totals) -> list[bytes]:
        """Events that are sent together with the first token."""

    def delta(self, choice: Choice, text: bytes, totals: Totals) -> bytes:
        """The event of one token. text: a JSON string."""

    def last(self, choice: Choice, text: bytes, totals: Totals, *, is_final: bool) -> bytes:
        """The event that ends one choice. is_final: no other choice is still going on."""

    def closing(self, choices: Sequence[Choice], totals: Totals) -> list[bytes]:
        """Events after the last choice has ended."""

    def body(self, choices: Sequence[Choice], totals: Totals) -> bytes:
        """The whole answer of a request that does not stream."""


def dumps(value: Any) -> bytes:
    """Compact JSON."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()


class OpenAIStyle(ABC):
    """What completions and chat have in common."""

    _object = ""
    _chunk_object = ""

    def __init__(
        self, head: Head, *, include_usage: bool, continuous_usage: bool, token_ids: bool, prompt_ids: list[list[int]]
    ) -> None:
        self._head = head
        self._include_usage = include_usage
        self._continuous = continuous_usage
        self._token_ids = token_ids
        self._prompt_ids = prompt_ids
        start = {"id": head.id, "object": self._chunk_object, "created": head.created, "model": head.model}
        self._start = b"data: " + dumps(start)[:-1] + b',"choices":['
        self._prefixes: dict[int, bytes] = {}

    def opening(self, choices: Sequence[Choice], totals: Totals) -> list[bytes]:
        """Completions open with their first token."""
        return []

    def delta(self, choice: Choice, text: bytes, totals: Totals) -> bytes:
        """The event of one token."""
        prefix = self._prefixes.get(choice.index)
        if prefix is None:
            prefix = self._prefixes[choice.index] = self._start + self._open(choice.index)
        if self._continuous or self._token_ids:
            return b"".join((prefix, text, self._close(choice), b"]", self._usage_so_far(choice, totals), b"}\n\n"))
        return prefix + text + self._plain_end

    def last(self, choice: Choice, text: bytes, totals: Totals, *, is_final: bool) -> bytes:
        """The event with the finish reason; the very last one carries the fingerprint unless a usage event follows."""
        rest = b"]" + self._usage_so_far(choice, totals)
        if is_final and not self._include_usage:
            rest += b',"system_fingerprint":' + dumps(FINGERPRINT)
        return b"".join((self._start, self._open_last(choice, text), self._close(choice), rest, b"}\n\n"))

    def closing(self, choices: Sequence[Choice], totals: Totals) -> list[bytes]:
        """The usage event where asked for, and the end."""
        if not self._include_usage:
            return [DONE]
        usage = {**_counts(totals.prompt_tokens, totals.completion_tokens), "prompt_tokens_details": self._details(totals)}
        event = {"usage": usage, "system_fingerprint": FINGERPRINT}
        if totals.timings:
            event["metrics"] = totals.timings
        return [self._start + b"]," + dumps(event)[1:] + b"\n\n", DONE]

    def body(self, choices: Sequence[Choice], totals: Totals) -> bytes:
        """The whole answer."""
        head = self._head
        details = {"cached_tokens": totals.cached_tokens, "created_cache_tokens": None, "multimodal_tokens": None}
        details.update(self._details(totals))
        usage = {
            **_counts(totals.prompt_tokens, totals.completion_tokens),
            "prompt_tokens_details": details,
            "completion_tokens_details": None,
        }
        return dumps(
            {
                "id": head.id,
                "object": self._object,
                "created": head.created,
                "model": head.model,
                "choices": [self._whole(choice) for choice in choices],
                "service_tier": None,
                "system_fingerprint": FINGERPRINT,
                "usage": usage,
                **self._body_rest(),
                "kv_transfer_params": None,
                "ec_transfer_params": None,
                "metrics": {**totals.timings, "speculative_decoding": None} if totals.timings else None,
            }
        )

    _plain_end = b""

    @abstractmethod
    def _open(self, index: int) -> bytes: ...

    def _open_last(self, choice: Choice, text: bytes) -> bytes:
        return self._open(choice.index) + text

    @abstractmethod
    def _close(self, choice: Choice) -> bytes: ...

    def _details(self, totals: Totals) -> dict[str, Any]:
        return {"cached_tokens": totals.cached_tokens}

    @abstractmethod
    def _whole(self, choice: Choice) -> dict[str, Any]: ...

    def _body_rest(self) -> dict[str, Any]:
        return {}

    def _usage_so_far(self, choice: Choice, totals: Totals) -> bytes:
        if not self._continuous:
            return b""
        return b',"usage":' + dumps(_counts(totals.prompt_tokens, choice.num_tokens))

    def _new_ids(self, choice: Choice) -> bytes:
        return dumps(choice.token_ids[-1:]) if self._token_ids else b"null"

    def _ids_of_prompt(self, index: int) -> list[int] | None:
        return self._prompt_ids[min(index, len(self._prompt_ids) - 1)] if self._token_ids else None


class CompletionStyle(OpenAIStyle):
    """/v1/completions."""

    _object = _chunk_object = "text_completion"
    _plain_end = b',"logprobs":null,"finish_reason":null,"stop_reason":null,"prompt_token_ids":null,"token_ids":null}]}\n\n'

    def _open(self, index: int) -> bytes:
        return b'{"index":%d,"text":' % index

    def _close(self, choice: Choice) -> bytes:
        ids = self._ids_of_prompt(choice.index) if choice.num_tokens == 1 else None
        return b',"logprobs":null,"finish_reason":%b,"stop_reason":%b,"prompt_token_ids":%b,"token_ids":%b}' % (
            dumps(choice.finish),
            dumps(choice.stop_reason),
            dumps(ids),
            self._new_ids(choice),
        )

    def _whole(self, choice: Choice) -> dict[str, Any]:
        return {
            "index": choice.index,
            "text": choice.text,
            "logprobs": None,
            "finish_reason": choice.finish,
            "stop_reason": choice.stop_reason,
            "token_ids": choice.token_ids if self._token_ids else None,
            "prompt_logprobs": None,
            "prompt_token_ids": self._ids_of_prompt(choice.index),
            "routed_experts": None,
        }


class ChatStyle(OpenAIStyle):
    """/v1/chat/completions."""

    _object = "chat.completion"
    _chunk_object = "chat.completion.chunk"
    _plain_end = b'},"logprobs":null,"finish_reason":null,"token_ids":null}]}\n\n'

    def opening(self, choices: Sequence[Choice], totals: Totals) -> list[bytes]:
        """The role of every choice, before its first token and not earlier."""
        usage = b""
        if self._continuous:
            usage = b',"usage":' + dumps(_counts(totals.prompt_tokens, 0) | {"completion_tokens_details": None})
        rest = b',"prompt_token_ids":%b,"prompt_text":null}\n\n' % dumps(self._ids_of_prompt(0))
        role = b'{"index":%d,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}]'
        return [self._start + role % choice.index + usage + rest for choice in choices]

    def _open(self, index: int) -> bytes:
        return b'{"index":%d,"delta":{"content":' % index

    def _open_last(self, choice: Choice, text: bytes) -> bytes:
        # An answer that ends without a text has an empty delta.
        if text == b'""':
            return b'{"index":%d,"delta":{' % choice.index
        return self._open(choice.index) + text

    def _close(self, choice: Choice) -> bytes:
        if choice.finish is None:
            return b'},"logprobs":null,"finish_reason":null,"token_ids":%b}' % self._new_ids(choice)
        return b'},"logprobs":null,"finish_reason":%b,"stop_reason":%b,"token_ids":%b}' % (
            dumps(choice.finish),
            dumps(choice.stop_reason),
            self._new_ids(choice),
        )

    def _details(self, totals: Totals) -> dict[str, Any]:
        return {"cached_tokens": totals.cached_tokens, "created_cache_tokens": totals.created_tokens}

    def _usage_so_far(self, choice: Choice, totals: Totals) -> bytes:
        if not self._continuous:
            return b""
        return b',"usage":' + dumps(_counts(totals.prompt_tokens, choice.num_tokens) | {"completion_tokens_details": None})

    def _whole(self, choice: Choice) -> dict[str, Any]:
        message = {"role": "assistant", "content": choice.text, "refusal": None, "annotations": None, "audio": None}
        return {
            "index": choice.index,
            "message": message | {"function_call": None, "reasoning": None},
            "logprobs": None,
            "finish_reason": choice.finish,
            "stop_reason": choice.stop_reason,
            "token_ids": choice.token_ids if self._token_ids else None,
            "routed_experts": None,
        }

    def _body_rest(self) -> dict[str, Any]:
        return {"prompt_logprobs": None, "prompt_token_ids": self._ids_of_prompt(0), "prompt_text": None}


def _counts(prompt: int, completion: int) -> dict[str, Any]:
    return {"prompt_tokens": prompt, "total_tokens": prompt + completion, "completion_tokens": completion}
