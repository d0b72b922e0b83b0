"""What callers are told when a request is not served: OpenAI error objects.

Refusals are values (`ApiError`), returned and sent; nothing here is raised.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from contract.routing import Refusal
from proto import routing_pb2 as pb

_json = msgspec.json.Encoder()

REASONS = {
    200: b"OK",
    204: b"No Content",
    400: b"Bad Request",
    401: b"Unauthorized",
    403: b"Forbidden",
    404: b"Not Found",
    405: b"Method Not Allowed",
    408: b"Request Timeout",
    413: b"Content Too Large",
    415: b"Unsupported Media Type",
    417: b"Expectation Failed",
    429: b"Too Many Requests",
    431: b"Request Header Fields Too Large",
    500: b"Internal Server Error",
    501: b"Not Implemented",
    502: b"Bad Gateway",
    503: b"Service Unavailable",
    504: b"Gateway Timeout",
    505: b"HTTP Version Not Supported",
}

WHO = b"www-authenticate: Bearer"
"""Goes with 401."""
INVALID = "invalid_request_error"

MESSAGES_PATH = "/v1/messages"
RESPONSES_PATH = "/v1/responses"

_ANTHROPIC_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


@dataclass(frozen=True, slots=True)
class ApiError:
    """One refusal. status: HTTP; the other fields as in OpenAI's error object; retry_after_s: 0 for no such header."""

    status: int
    message: str
    type: str = INVALID
    code: str | None = None
    param: str | None = None
    retry_after_s: float = 0.0
    close: bool = False  # the connection cannot be used further
    allow: str = ""  # methods, for 405

    def body(self) -> bytes:
        """The JSON that the caller reads."""
        fields = {"message": self.message, "type": self.type, "param": self.param, "code": self.code}
        return _json.encode({"error": fields})

    def body_for(self, path: str) -> bytes:
        """In the shape that callers of this path read."""
        return self._anthropic() if path.startswith(MESSAGES_PATH) else self.body()

    def event_for(self, path: str, sequence_number: int = 0) -> bytes:
        """The same as a server-sent event, for streams that have begun. sequence_number: the next one of a Responses stream."""
        if path.startswith(MESSAGES_PATH):
            return b"event: error\ndata: " + self._anthropic() + b"\n\n"
        if path == RESPONSES_PATH:
            fields = {"type": "error", "code": self.code, "message": self.message, "param": self.param}
            return b"event: error\ndata: " + _json.encode({**fields, "sequence_number": sequence_number}) + b"\n\n"
        return b"data: " + self.body() + b"\n\n"

    def _anthropic(self) -> bytes:
        kind = _ANTHROPIC_TYPES.get(self.status) or ("api_error" if self.status >= 500 else INVALID)
        return _json.encode({"type": "error", "error": {"type": kind, "message": self.message}})


def bad_request(message: str, *, param: str | None = None, code: str | None = None) -> ApiError:
    return ApiError(400, message, param=param, code=code)


def protocol_error(status: int, message: str, code: str) -> ApiError:
    """The bytes are not the HTTP that this server speaks; the connection ends."""
    return ApiError(status, message, code=code, close=True)


def too_large(bytes_max: int) -> ApiError:
    return ApiError(413, f"The request body is larger than {bytes_max:,} bytes.", code="body_too_large")


def unknown_model(model: str) -> ApiError:
    return ApiError(404, f"The model `{model}` does not exist.", "NotFoundError", "model_not_found", "model")


def not_found(method: str, path: str) -> ApiError:
    return ApiError(404, f"Unknown request URL: {method} {path}.", "NotFoundError", "unknown_url")


def wrong_method(method: str, path: str, allow: str) -> ApiError:
    return ApiError(405, f"{method} is not allowed on {path}; use {allow}.", code="method_not_allowed", allow=allow)


def overloaded(message: str, code: str, retry_after_s: float = 1.0) -> ApiError:
    return ApiError(503, message, "overloaded_error", code, retry_after_s=retry_after_s)


RETRY_AFTER_S_MAX = 3600.0
"""Longer times to come back are a slip of whoever says them."""

_SHED_CODES: dict[int, tuple[str, str]] = {
    pb.Shed.NO_WORKER: ("no_worker", "unavailable_error"),
    pb.Shed.ALL_BREAKERS_OPEN: ("all_breakers_open", "unavailable_error"),
    pb.Shed.ALL_DRAINING: ("all_draining", "unavailable_error"),
    pb.Shed.ALL_SATURATED: ("all_saturated", "overloaded_error"),
    pb.Shed.QUEUE_FULL: ("queue_full", "overloaded_error"),
    pb.Shed.DEADLINE: ("queue_deadline", "overloaded_error"),
    pb.Shed.EXCLUDED: ("all_tried", "unavailable_error"),
    pb.Shed.SLO_UNREACHABLE: ("slo_unreachable", "overloaded_error"),
}


def from_refusal(refusal: Refusal, model: str) -> ApiError:
    """The control plane's refusal in the caller's terms: 404 for a model nobody serves, else 503 with Retry-After."""
    if refusal.reason == pb.Shed.UNKNOWN_MODEL:
        return unknown_model(model)
    code, kind = _SHED_CODES.get(refusal.reason, ("refused", "overloaded_error"))
    message = refusal.message or f"No worker can take a request for `{model}` right now."
    return ApiError(503, message, kind, code, retry_after_s=_time_to_come_back(refusal.retry_after_s))


def _time_to_come_back(seconds: float) -> float:
    """As said, where it is a time at all: a float may be none."""
    return min(seconds, RETRY_AFTER_S_MAX) if seconds > 0 else 1.0


def bad_gateway(message: str) -> ApiError:
    return ApiError(502, message, "upstream_error", "upstream_failed")


def gateway_timeout(message: str) -> ApiError:
    return ApiError(504, message, "upstream_error", "upstream_timeout")


def stream_broken(message: str) -> ApiError:
    return ApiError(502, message, "upstream_error", "upstream_failed")
