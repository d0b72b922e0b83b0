"""Request bodies to calls: what vLLM's protocol classes accept, default and refuse. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from emulator.errors import ApiError, invalid, unprocessable

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
EMBEDDINGS = "/v1/embeddings"
RESPONSES = "/v1/responses"
MESSAGES = "/v1/messages"

N_MAX = 16_384
"""Samples of one prompt, as vLLM bounds them."""

_INTEGERS = (
    "max_tokens",
    "max_completion_tokens",
    "max_output_tokens",
    "min_tokens",
    "n",
    "seed",
    "top_k",
    "logprobs",
    "priority",
)
_NUMBERS = ("temperature", "top_p", "presence_penalty", "frequency_penalty", "repetition_penalty", "min_p")
_FLAGS = ("stream", "ignore_eos", "echo", "return_token_ids")


@dataclass(frozen=True, slots=True)
class Call:
    """One request as asked for. max_tokens None: up to the model's length."""

    path: str
    body: Mapping[str, Any]
    model: str
    max_tokens: int | None
    stream: bool = False
    include_usage: bool = False
    continuous_usage: bool = False
    n: int = 1
    min_tokens: int = 0
    ignore_eos: bool = False
    echo: bool = False
    stop: tuple[str, ...] = ()
    stop_token_ids: frozenset[int] = field(default_factory=frozenset)
    seed: int = 0
    cache_salt: str = ""
    kv_report_full: bool = False
    return_token_ids: bool = False


def decode_body(raw: bytes, content_type: str | None = "application/json") -> dict[str, Any]:
    """The JSON object of a body. ApiError 400: no JSON object."""
    if not raw:
        raise unprocessable("missing", "body", "Field required", None)
    try:
        body = msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError):
        body = _decode_slowly(raw)
    if not isinstance(body, dict):
        raise unprocessable("model_attributes_type", "body", "Input should be a valid dictionary or object", body)
    return body


def _decode_slowly(raw: bytes) -> Any:
    try:
        return json.loads(raw)
    except json.JSONDecodeError as error:
        raise unprocessable("json_invalid", f"body.{error.pos}", "JSON decode error", {}, error=error.msg) from None
    except (UnicodeDecodeError, RecursionError):
        raise ApiError(400, "Bad Request", "There was an error parsing the body") from None


def parse(path: str, body: Mapping[str, Any], default_model: str) -> Call:
    """ApiError 400: a field of the wrong type or value."""
    _check_types(body)
    _check_required(path, body)
    options = body.get("stream_options") or {}
    stream = bool(body.get("stream"))
    if options and not stream:
        raise invalid("Stream options can only be defined when `stream=True`.", "stream_options")
    xargs = body.get("vllm_xargs") or {}
    call = Call(
        path=path,
        body=body,
        model=str(body.get("model") or default_model),
        max_tokens=_max_tokens(path, body),
        stream=stream,
        include_usage=bool(options.get("include_usage")),
        continuous_usage=bool(options.get("include_usage")) and bool(options.get("continuous_usage_stats")),
        n=_or(body.get("n"), 1),
        min_tokens=_or(body.get("min_tokens"), 0),
        ignore_eos=bool(body.get("ignore_eos")),
        echo=bool(body.get("echo")) and path == COMPLETIONS,
        stop=_stop(body.get("stop") if path != MESSAGES else body.get("stop_sequences")),
        stop_token_ids=frozenset(body.get("stop_token_ids") or ()),
        seed=_or(body.get("seed"), 0),
        cache_salt=str(body.get("cache_salt") or ""),
        kv_report_full=isinstance(xargs, dict) and xargs.get("kv_cache_report_mode") == "full",
        return_token_ids=bool(body.get("return_token_ids")),
    )
    _check_values(call)
    return call


def _or(value: int | None, default: int) -> int:
    return default if value is None else value


def _max_tokens(path: str, body: Mapping[str, Any]) -> int | None:
    for name in ("max_completion_tokens", "max_output_tokens", "max_tokens"):
        value = body.get(name)
        if value is not None:
            return int(value)
    return 16 if path == COMPLETIONS else None


def _stop(given: object) -> tuple[str, ...]:
    if not given:
        return ()
    if isinstance(given, str):
        return (given,)
    if isinstance(given, list) and all(isinstance(item, str) and item for item in given):
        return tuple(given)
    raise unprocessable("string_type", "body.stop", "Input should be a valid string", given)


def _check_types(body: Mapping[str, Any]) -> None:
    for name in _INTEGERS:
        _check_integer(name, body.get(name))
    for name in _NUMBERS:
        value = body.get(name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise unprocessable("float_type", f"body.{name}", "Input should be a valid number", value)
    for name in _FLAGS:
        value = body.get(name)
        if value is not None and not isinstance(value, bool):
            raise unprocessable("bool_type", f"body.{name}", "Input should be a valid boolean", value)
    for name in ("model", "cache_salt"):
        value = body.get(name)
        if value is not None and not isinstance(value, str):
            raise unprocessable("string_type", f"body.{name}", "Input should be a valid string", value)
    options = body.get("stream_options")
    if options is not None and not isinstance(options, dict):
        raise unprocessable("model_attributes_type", "body.stream_options", "Input should be a valid dictionary", options)
    ids = body.get("stop_token_ids")
    if ids is not None and not (isinstance(ids, list) and all(isinstance(item, int) for item in ids)):
        raise unprocessable("list_type", "body.stop_token_ids", "Input should be a valid list", ids)


def _check_integer(name: str, value: object) -> None:
    if value is None or name == "logprobs":
        return
    if isinstance(value, str):
        message = "Input should be a valid integer, unable to parse string as an integer"
        raise unprocessable("int_parsing", f"body.{name}", message, value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise unprocessable("int_type", f"body.{name}", "Input should be a valid integer", value)


def _check_required(path: str, body: Mapping[str, Any]) -> None:
    if path in (CHAT, MESSAGES):
        messages = body.get("messages")
        if messages is None:
            raise unprocessable("missing", "body.messages", "Field required", body)
        if not isinstance(messages, list):
            raise unprocessable("list_type", "body.messages", "Input should be a valid list", messages)
    if path == MESSAGES and body.get("max_tokens") is None:
        raise unprocessable("missing", "body.max_tokens", "Field required", body)
    name = {EMBEDDINGS: "input", RESPONSES: "input"}.get(path)
    if name and body.get(name) is None:
        raise unprocessable("missing", f"body.{name}", "Field required", body)
    if path == COMPLETIONS and body.get("prompt") in (None, "", []):
        raise invalid("Either prompt or prompt_embeds must be provided and non-empty.", "prompt")


def _check_values(call: Call) -> None:
    temperature = call.body.get("temperature")
    if temperature is not None and temperature < 0:
        raise invalid(f"temperature must be non-negative, got {float(temperature)}.", "temperature", float(temperature))
    top_p = call.body.get("top_p")
    if top_p is not None and not 0 < top_p <= 1:
        raise invalid(f"top_p must be in (0, 1], got {top_p}.", "top_p", top_p)
    if call.n < 1:
        raise invalid(f"n must be at least 1, got {call.n}.", "n", call.n)
    if call.n > N_MAX:
        raise invalid(f"n must be at most {N_MAX}, got {call.n}.", "n", call.n)
    if call.max_tokens is not None and call.max_tokens < 1:
        raise invalid(f"max_tokens must be at least 1, got {call.max_tokens}.", "max_tokens", call.max_tokens)
    if call.min_tokens < 0:
        raise invalid(f"min_tokens must be greater than or equal to 0, got {call.min_tokens}.", "min_tokens", call.min_tokens)
    if call.max_tokens is not None and call.min_tokens > call.max_tokens:
        message = f"min_tokens must be less than or equal to max_tokens={call.max_tokens}, got {call.min_tokens}."
        raise invalid(message, "min_tokens", call.min_tokens)
