"""Every refusal the HTTP surface knows, in vLLM's words: status, type, message, param."""

from __future__ import annotations

import json
from typing import Any


class ApiError(Exception):
    """An answer with a status other than 200. kind: the `type` of the error object."""

    def __init__(self, status: int, kind: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind
        self.message = message
        self.param = param

    def body(self) -> bytes:
        """The JSON body of a plain answer."""
        return json.dumps(self._object(), separators=(",", ":"), ensure_ascii=False).encode()

    def event(self) -> bytes:
        """The SSE event of a stream that fails under way (vLLM writes it with spaces)."""
        return b"data: " + json.dumps(self._object(), ensure_ascii=False).encode() + b"\n\n"

    def _object(self) -> dict[str, Any]:
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.status}}


def invalid(message: str, param: str | None = None, value: object = None) -> ApiError:
    """400 for a parameter that has the right type and a wrong value."""
    if param is not None:
        shown = f"parameter={param}" if value is None else f"parameter={param}, value={value}"
        message = f"{message} ({shown})"
    return ApiError(400, "BadRequestError", message, param)


def unprocessable(kind: str, location: str, message: str, given: object, **context: object) -> ApiError:
    """400 for a body that does not parse: the wording of the validation library."""
    entry: dict[str, Any] = {"type": kind, "loc": location, "msg": message, "input": _shown(given)}
    if context:
        entry["ctx"] = context
    return ApiError(400, "Bad Request", f"1 validation error:\n  {entry}", location)


def _shown(given: object) -> str:
    if isinstance(given, dict):
        return f"<dict of {len(given)} items>"
    if isinstance(given, list):
        return f"<list of {len(given)} items>"
    return str(given)


def unsupported_media_type() -> ApiError:
    return ApiError(400, "Bad Request", "1 validation error:\n  Unsupported Media Type: Only 'application/json' is allowed")


def unknown_model(model: str, known: str) -> ApiError:
    return ApiError(404, "NotFoundError", f"The model `{model}` does not exist. Valid aliases: {known}.", "model")


def too_long(limit: int, prompt_tokens: int, output_tokens: int = 0) -> ApiError:
    """The prompt, or prompt and asked-for output, exceed the context."""
    if output_tokens:
        message = (
            f"This model's maximum context length is {limit} tokens. However, you requested {output_tokens} output tokens and "
            f"your prompt contains {prompt_tokens} input tokens, for a total of {prompt_tokens + output_tokens} tokens. Please "
            "reduce the length of the input prompt or the number of requested output tokens."
        )
    else:
        message = (
            f"This model's maximum context length is {limit} tokens. However, your prompt contains at least "
            f"{prompt_tokens} input tokens, which exceeds this limit even without any output tokens. "
            "Please reduce the length of the input prompt."
        )
    return invalid(message, "input_tokens", prompt_tokens)


def queue_full() -> ApiError:
    """503, and no Retry-After."""
    message = "The engine is currently busy and cannot accept new requests. Please try again later or on a different instance."
    return ApiError(503, "Service Unavailable", message)


def backlog_full() -> ApiError:
    message = "The engine has reached its prefill token backlog limit. Please try again later or on a different instance."
    return ApiError(503, "Service Unavailable", message)


def engine_dead() -> ApiError:
    message = "EngineCore encountered an issue. See stack trace (above) for the root cause."
    return ApiError(500, "InternalServerError", message)
