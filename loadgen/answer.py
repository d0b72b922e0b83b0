"""What one answer says, fed piece by piece as it arrives. Pure: bytes and `now` in.

A 200 says nothing: engines send it before they queue a request, and a dying or draining one ends its streams under it. A
stream succeeded only if it carried no error event, finished for a reason other than "abort", and ended with `[DONE]`.

Every event is decoded by msgspec into just the fields needed here (about 1 us), so that no shortcut on the bytes can take
a text that says "error" for an error.
"""

from __future__ import annotations

from typing import Any

import msgspec

OK = "ok"
SHED = "shed"  # 429 or 503: refused, honestly
ABORTED = "aborted"  # finish_reason "abort": the engine gave it up
TRUNCATED = "truncated"  # the stream ended without [DONE]
ERROR_EVENT = "error_event"  # an error object inside the stream
MALFORMED = "malformed"  # not HTTP, not SSE, not the expected JSON
CONNECT_FAILED = "connect_failed"
LOST = "connection_lost"  # after it was sent, before any of the answer had come
TIMED_OUT = "timed_out"
NOT_SENT = "not_sent"  # the generator's own bound on requests in flight
INTERRUPTED = "interrupted"  # by whoever runs the generator: neither a success nor the fleet's failure

ERROR_BYTES_MAX = 64 * 1024
"""Of a body that is no stream, this much is kept."""
EVENT_BYTES_MAX = 16 * 1024 * 1024
"""A line longer than this is no event."""
MESSAGE_CHARS_MAX = 300


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[Any] | None = None


class _Choice(msgspec.Struct):
    delta: _Delta | None = None
    text: str | None = None
    finish_reason: str | None = None

    def has_content(self) -> bool:
        if self.text:
            return True
        delta = self.delta
        return delta is not None and bool(delta.content or delta.reasoning_content or delta.reasoning or delta.tool_calls)


class _Details(msgspec.Struct):
    cached_tokens: int | None = None


class Usage(msgspec.Struct):
    """cached_tokens: None where the engine does not report it."""

    prompt_tokens: int = 0
    completion_tokens: int | None = 0
    prompt_tokens_details: _Details | None = None

    @property
    def cached_tokens(self) -> int | None:
        return self.prompt_tokens_details.cached_tokens if self.prompt_tokens_details else None


class _Event(msgspec.Struct):
    choices: list[_Choice] = []
    usage: Usage | None = None
    error: Any = None


_decode = msgspec.json.Decoder(_Event).decode


class Answer:
    """Times are what `now` was when the piece that completed an event arrived."""

    __slots__ = ("_rest", "body", "done", "error", "finish_reason", "first", "gaps", "last", "malformed", "streaming", "usage")

    def __init__(self) -> None:
        self.streaming = False
        self.first: float | None = None
        """first event with content, or the one that ended an answer without any"""
        self.last: float | None = None
        """latest event with content"""
        self.gaps: list[float] = []
        """seconds between one event with content and the next"""
        self.finish_reason: str | None = None
        self.usage: Usage | None = None
        self.error: str | None = None
        """what an error event or body said"""
        self.done = False
        """[DONE] was seen"""
        self.malformed: str | None = None
        self.body = b""
        """of an answer that is no stream"""
        self._rest = b""

    @property
    def events(self) -> int:
        """Events with content so far."""
        return 0 if self.first is None else 1 + len(self.gaps)

    def feed(self, data: bytes, now: float) -> None:
        """A piece of the body, however it was cut."""
        if not self.streaming:
            self.body += data[: ERROR_BYTES_MAX - len(self.body)]
            return
        if self._rest:
            data = self._rest + data
        lines = data.split(b"\n")
        self._rest = lines.pop()
        if len(self._rest) > EVENT_BYTES_MAX:
            self.malformed = f"a line of more than {EVENT_BYTES_MAX} bytes"
            self._rest = b""
        for line in lines:
            if line.startswith(b"data:"):
                self._data(line[5:].strip(), now)

    def _data(self, payload: bytes, now: float) -> None:
        if payload == b"[DONE]":
            self.done = True
            return
        try:
            event = _decode(payload)
        except msgspec.MsgspecError as error:
            self.malformed = self.malformed or f"event: {error}"
            return
        if event.error is not None:
            self.error = self.error or _message(event.error)
        if event.usage is not None:
            self.usage = event.usage
        for choice in event.choices:
            if choice.finish_reason is not None:
                self.finish_reason = choice.finish_reason
            if choice.has_content() or (self.first is None and choice.finish_reason is not None):
                self._content(now)

    def _content(self, now: float) -> None:
        if self.last is None:
            self.first = now
        else:
            self.gaps.append(now - self.last)
        self.last = now

    def verdict(self, status: int, *, complete: bool) -> tuple[str, str]:
        """How it ended and, where it failed, why. complete: the HTTP message came to its end."""
        if status in (429, 503):
            return SHED, _body_error(self.body)
        if status != 200:
            return f"http_{status}", _body_error(self.body)
        if not self.streaming:
            return MALFORMED, "no event stream: " + _body_error(self.body)
        if self.error is not None:
            return ERROR_EVENT, self.error
        if self.malformed is not None:
            return MALFORMED, self.malformed
        if self.finish_reason == "abort":
            return ABORTED, "finish_reason abort"
        if not (complete and self.done):
            return TRUNCATED, f"the stream ended without [DONE] after {self.events} events"
        if self.finish_reason is None:
            return TRUNCATED, f"[DONE] without a finish_reason after {self.events} events"
        return OK, ""


def _message(error: Any) -> str:
    """An error object as one line."""
    if isinstance(error, dict) and "message" in error:
        kind, text = error.get("type") or error.get("code"), error["message"]
        return f"{kind}: {text}"[:MESSAGE_CHARS_MAX] if kind else str(text)[:MESSAGE_CHARS_MAX]
    return (error if isinstance(error, str) else msgspec.json.encode(error).decode())[:MESSAGE_CHARS_MAX]


def _body_error(body: bytes) -> str:
    try:
        parsed = msgspec.json.decode(body)
    except msgspec.MsgspecError:
        return body.decode("utf-8", "replace").strip()[:MESSAGE_CHARS_MAX] or "empty body"
    error = parsed.get("error") if isinstance(parsed, dict) else None
    return _message(error if error is not None else parsed)
