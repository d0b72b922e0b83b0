"""The OpenAI surface: which path is what, and the few fields of a body that routing needs.

Bodies are read with typed partial decoding: fields that are not named here are skipped, not built.
"""

from __future__ import annotations

import re
from enum import Enum
from typing import Annotated, Any, ClassVar
from urllib.parse import unquote

import msgspec

from dataplane import encoding
from dataplane.errors import ApiError, bad_request, not_found, wrong_method
from dataplane.http1 import Request
from dataplane.unescape import unescaped

MULTIPART_SCAN_BYTES_MAX = 64 * 1024


SLICED_BYTES_MIN = 256 * 1024
"""Larger bodies are read in slices, as far as that goes."""


class Kind(Enum):
    """What is done with a request."""

    ROUTED = "routed"  # to a worker
    MODELS = "models"
    MODEL = "model"
    HEALTH = "health"
    READY = "ready"
    METRICS = "metrics"
    PREFLIGHT = "preflight"


PROMPT_PATHS = frozenset(("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages", "/v1/embeddings"))
"""Whose bodies hold one prompt that can be tokenised as the engine does it."""

DONE_PATHS = frozenset(("/v1/chat/completions", "/v1/completions", "/v1/messages", "/v1/responses"))
"""Whose streams end with `data: [DONE]`, `message_stop` or the response's final event; without it they are cut short."""

MODEL_PATHS = PROMPT_PATHS | {"/v1/messages/count_tokens"}
"""Whose bodies must name a model. Elsewhere an engine takes its own where none is named, and so does a fleet with only one."""
MODEL_BYTES_MAX = 512
"""Of a model's name: it goes into questions, explanations and records."""

ENGINE_PATHS = frozenset(("/v1/load_lora_adapter", "/v1/unload_lora_adapter"))
"""Change the one engine that gets them: not for callers, nor for whichever engine a router picks."""
_CROOKED = re.compile(r"//|/\.{1,2}(?:/|$)|\\|%2[ef]|%5c", re.IGNORECASE)
"""What another server on the way may read as a path outside of /v1/."""

_ROUTED_OUTSIDE_V1 = frozenset(
    ("/tokenize", "/detokenize", "/rerank", "/v2/rerank", "/score", "/pooling", "/classify", "/invocations")
)
_COUNTED = (
    PROMPT_PATHS
    | _ROUTED_OUTSIDE_V1
    | {"/v1/rerank", "/v1/score", "/v1/messages/count_tokens", "/v1/audio/transcriptions", "/v1/audio/translations"}
)


def path_label(path: str) -> str:
    """A path as a metrics label: callers cannot make up new ones."""
    return path if path in _COUNTED else "other"


_LOCAL = {
    "/health": Kind.HEALTH,
    "/ping": Kind.HEALTH,  # as balancers of hosting platforms ask an engine
    "/ready": Kind.READY,
    "/metrics": Kind.METRICS,
    "/v1/models": Kind.MODELS,
}
ADMIN_KINDS = frozenset((Kind.HEALTH, Kind.READY, Kind.METRICS))
OPEN_KINDS = frozenset((Kind.HEALTH, Kind.PREFLIGHT))
"""Answered without a key: a balancer in front has none, nor has a browser's preflight."""


def classify(method: str, path: str) -> Kind | ApiError:
    """method, path -> what to do, or the refusal."""
    local = _LOCAL.get(path) or (Kind.MODEL if path.startswith("/v1/models/") else None)
    if method == "OPTIONS":
        return Kind.PREFLIGHT
    if local is not None:
        return local if method in ("GET", "HEAD") else wrong_method(method, path, "GET")
    if path in ENGINE_PATHS or (path not in _COUNTED and unquote(path).rstrip("/") in ENGINE_PATHS):  # as engines read it
        return ApiError(
            403, f"{path} changes one engine and is not passed on: call that engine.", "permission_error", "engine_path"
        )
    if path in _COUNTED or (path.startswith("/v1/") and _CROOKED.search(path) is None):
        if method == "POST":
            return Kind.ROUTED
        if path in _COUNTED:
            return wrong_method(method, path, "POST")
    return not_found(method, path)  # GET /v1/responses/ID, too: one engine has it, and nobody knows which


class Ask(msgspec.Struct, frozen=True):
    """What routing needs to know of a request's body. model: "" only where none is named, and none need be."""

    model: str
    streams: bool = False
    max_tokens: int = 0
    cache_salt: str = ""
    readable: ClassVar[bool] = True


class FormAsk(Ask, frozen=True):
    """Of a body that is no JSON: it is routed without a chain."""

    readable: ClassVar[bool] = False


_Limit = Annotated[int, msgspec.Meta(gt=0, lt=2**32)]


class _Usual(Ask, frozen=True, gc=False, rename={"streams": "stream"}):
    """A body whose fields are what they should be."""

    model: Annotated[str, msgspec.Meta(min_length=1, max_length=MODEL_BYTES_MAX)]
    streams: bool = False  # named again: only a class's own fields are renamed
    max_tokens: _Limit = 0
    max_completion_tokens: _Limit = 0
    max_output_tokens: _Limit = 0


class _Body(msgspec.Struct, gc=False):
    model: Any = None
    stream: Any = None
    max_tokens: Any = None
    max_completion_tokens: Any = None
    max_output_tokens: Any = None
    cache_salt: Any = None


_decoder = msgspec.json.Decoder(_Body)
_decode_usual = msgspec.json.Decoder(_Usual).decode
_decode_all = msgspec.json.Decoder().decode


def read_ask(request: Request, body_bytes_max: int) -> Ask | ApiError:
    """The body of a routed request, which is uncompressed where it came compressed."""
    content_type = request.get(b"content-type").lower()
    if b"content-encoding" in request.fields and (refusal := encoding.decode(request, body_bytes_max)) is not None:
        return refusal
    if content_type.startswith(b"multipart/"):
        return FormAsk(multipart_model(request.body))
    return read_json(request.body, request.path)


def _fields(body: bytes) -> _Body:
    if len(body) > SLICED_BYTES_MIN:
        try:
            return _decoder.decode(unescaped(body))
        except (ValueError, RecursionError):
            pass  # the message below says where in the body that was sent
    return _decoder.decode(body)


def read_json(body: bytes, path: str) -> Ask | ApiError:
    """body: as sent. The messages of refusals say where the JSON is wrong."""
    if not body.isascii() and (wrong := _not_utf8(body)) is not None:
        return wrong
    try:
        fields = _fields(body) if len(body) > SLICED_BYTES_MIN else _decoder.decode(body)
    except (msgspec.DecodeError, RecursionError) as error:  # a ValidationError is one
        return _not_json(body, error)
    limit = fields.max_completion_tokens or fields.max_tokens or fields.max_output_tokens
    return _ask(path, fields.model, fields.stream, limit, fields.cache_salt)


def read_usual_json(body: bytes) -> Ask | None:
    """What `read_json` makes of a body with a model, whose fields are of the right types, in half the time; None: it may be
    another, or none."""
    if not body.isascii() and _not_utf8(body) is not None:
        return None
    try:
        ask = _decode_usual(body)
    except (msgspec.DecodeError, RecursionError):
        return None
    if ask.max_completion_tokens or ask.max_output_tokens:
        limit = ask.max_completion_tokens or ask.max_tokens or ask.max_output_tokens
        return Ask(ask.model, ask.streams, limit, ask.cache_salt)
    return ask


def read_whole_json(body: bytes, path: str) -> tuple[Ask, dict[str, Any]] | None:
    """The same, and all that the body says, for whoever reads the prompt in it, too. None: `read_json` refuses it."""
    if not body.isascii() and _not_utf8(body) is not None:
        return None
    try:
        fields = _decode_all(body)
    except (msgspec.DecodeError, RecursionError):
        return None
    if type(fields) is not dict:
        return None
    get = fields.get
    limit = get("max_completion_tokens") or get("max_tokens") or get("max_output_tokens")
    ask = _ask(path, get("model"), get("stream"), limit, get("cache_salt"))
    return None if isinstance(ask, ApiError) else (ask, fields)


def _ask(path: str, model: Any, stream: Any, limit: Any, cache_salt: Any) -> Ask | ApiError:
    """Of the fields as they were sent."""
    if type(model) is not str or not 0 < len(model) <= MODEL_BYTES_MAX:
        if model is not None:
            return _wrong_model(model)
        if path in MODEL_PATHS:
            return bad_request("You must provide a `model`.", param="model", code="model_missing")
        model = ""
    if limit is not None and (type(limit) is not int or not 0 < limit < 2**32):
        limit = 0
    return Ask(model, stream is True, limit or 0, cache_salt if type(cache_salt) is str else "")


def _wrong_model(model: Any) -> ApiError:
    if isinstance(model, str) and model:
        return bad_request(f"`model` is longer than {MODEL_BYTES_MAX} characters.", param="model", code="model_invalid")
    return bad_request("`model` must be a non-empty string.", param="model", code="model_invalid")


def _not_utf8(body: bytes) -> ApiError | None:
    try:
        body.decode()
    except UnicodeDecodeError as error:
        return bad_request(f"The request body is not valid UTF-8 (byte {error.start}).", code="invalid_utf8")
    return None


def _not_json(body: bytes, error: Exception) -> ApiError:
    if not body:
        return bad_request("The request body is empty; a JSON object was expected.", code="empty_body")
    if isinstance(error, msgspec.ValidationError) and body.lstrip()[:1] != b"{":
        return bad_request("The request body must be a JSON object.", code="not_an_object")
    return bad_request(f"The request body is not valid JSON: {error}.", code="invalid_json")


_MODEL_PART = re.compile(rb'name="model"[^\r\n]*(?:\r\n[^\r\n]+)*\r\n\r\n([^\r\n]{1,512})\r\n')


def multipart_model(body: bytes) -> str:
    """From the beginning or the end of a body, or of what came of it; "": not found there."""
    found = _MODEL_PART.search(body, 0, MULTIPART_SCAN_BYTES_MAX) or _MODEL_PART.search(
        body, max(0, len(body) - MULTIPART_SCAN_BYTES_MAX)
    )
    return found[1].decode("utf-8", "replace") if found else ""
