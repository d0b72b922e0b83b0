"""Server-sent events of engines, without I/O: cutting a stream into events, and what one event says.

Only the beginning of a stream is read event by event, until one has content: that is the first token. What comes after is
relayed unread; how it ended is read once from its last bytes.
"""

from __future__ import annotations

import json
import re
from enum import Enum
from typing import Annotated, Any, TypeAlias

import msgspec

UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""What decoding an engine's JSON may raise."""


class Says(Enum):
    """What an event means for whoever waits for a first token."""

    NOTHING = "nothing"  # role, ping, comment: no token yet
    CONTENT = "content"
    ABORT = "abort"  # finish_reason "abort" without text: the engine was told to end
    ERROR = "error"
    DONE = "done"


_CONTENT = Says.CONTENT


class EventReader:
    """Cuts a body, fed in pieces of any size, into events: the data of each, joined over its `data:` lines.

    Lines may end with LF or CRLF. An event without data (comments) yields nothing.
    """

    def __init__(self) -> None:
        self._buffer = b""

    @property
    def at_boundary(self) -> bool:
        """Between two events."""
        return not self._buffer

    def feed(self, data: bytes) -> list[bytes]:
        """The data of the events that are now complete."""
        if not self._buffer and data[:6] == b"data: " and data.find(b"\n") == len(data) - 2 and data[-1] == _LF:
            return [data[6:-2]]  # the usual read: one event, in one line
        buffer = self._buffer + data
        if buffer.find(b"\r") >= 0:
            keep = b"\r" if buffer.endswith(b"\r") else b""  # may be half of a CRLF
            buffer = buffer[: len(buffer) - len(keep)].replace(b"\r\n", b"\n") + keep
        *events, self._buffer = buffer.split(b"\n\n")
        return [found for event in events if (found := event_data(event))]


def event_data(event: bytes) -> bytes:
    """The data lines of one event, joined by LF."""
    if event.startswith(b"data:") and event.find(b"\n") < 0:
        return event[5:].lstrip(b" ")
    return b"\n".join(line[5:].removeprefix(b" ") for line in event.split(b"\n") if line.startswith(b"data:"))


class _Delta(msgspec.Struct):
    content: Any = None
    reasoning_content: Any = None
    reasoning: Any = None
    tool_calls: Any = None
    refusal: Any = None


class _Choice(msgspec.Struct):
    delta: _Delta | None = None
    message: _Delta | None = None
    text: Any = None
    finish_reason: str | None = None


class _Event(msgspec.Struct):
    choices: list[_Choice] | None = None
    type: str | None = None
    error: Any = None


_event_decoder = msgspec.json.Decoder(_Event)

_SILENT_TYPES = frozenset(
    (
        "message_start",
        "content_block_start",
        "ping",
        "response.created",
        "response.queued",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.reasoning_part.added",
    )
)


def meaning(data: bytes) -> Says:
    """data: of one event, or a whole JSON body. What cannot be read counts as content: it is passed on."""
    if data == b"[DONE]":
        return Says.DONE
    try:
        event = _event_decoder.decode(data)
    except UNREADABLE:
        return Says.CONTENT
    if event.error is not None or event.type in _ERROR_TYPES:
        return Says.ERROR
    if event.choices is None:
        return Says.NOTHING if event.type in _SILENT_TYPES else Says.CONTENT
    return _meaning_of_choices(event.choices)


def _meaning_of_choices(choices: list[_Choice]) -> Says:
    finished = False
    for choice in choices:
        part = choice.delta or choice.message
        if choice.text or (
            part is not None and (part.content or part.reasoning_content or part.reasoning or part.tool_calls or part.refusal)
        ):
            return _CONTENT
        finished = finished or choice.finish_reason is not None
    if any(choice.finish_reason == "abort" for choice in choices):
        return Says.ABORT
    return _CONTENT if finished else Says.NOTHING


def error_code(data: bytes) -> int:
    """The numeric code of an error event, 500 where it has none."""
    try:
        code = msgspec.json.decode(data).get("error", {}).get("code")
    except (*UNREADABLE, AttributeError):
        return 500
    return code if isinstance(code, int) else 500


class Ending(msgspec.Struct):
    """What the last bytes of a body say. Token counts are None where the engine gave none."""

    done: bool = False
    finished: bool = False  # a finish_reason was given
    aborted: bool = False
    error: bool = False
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    cached_tokens: int | None = None


_Count: TypeAlias = Annotated[int, msgspec.Meta(ge=0, lt=2**32)]
"""Of tokens. Others are none: they are passed on, but not reckoned with."""


class _Details(msgspec.Struct):
    cached_tokens: _Count | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: _Count | None = None
    completion_tokens: _Count | None = None
    prompt_tokens_details: _Details | None = None
    input_tokens: _Count | None = None
    output_tokens: _Count | None = None
    input_tokens_details: _Details | None = None
    cache_read_input_tokens: _Count | None = None


class _Response(msgspec.Struct):
    usage: _Usage | None = None


class _Last(msgspec.Struct):
    choices: list[_Choice] | None = None
    usage: _Usage | None = None
    type: str | None = None
    error: Any = None
    response: _Response | None = None


_last_decoder = msgspec.json.Decoder(_Last)
_FRAMING = re.compile(rb"\r\n[0-9a-fA-F]+(?:;[^\r\n]*)?\r\n")
_USUAL_END = b"data: [DONE]\n\n\r\n0\r\n\r\n"
_FRAMING_BYTES_MAX = 16
"""Between two events: a line end of each, and at most this much of a chunk's size."""
_LF = b"\n"[0]
_FINAL_TYPES = frozenset(("message_stop", "response.completed", "response.incomplete"))
_ERROR_TYPES = frozenset(("error", "response.failed"))
READ_BYTES_MAX = 4 * 1024
"""Of a tail, from the beginning of an event: the last events of sixteen choices."""
_UNFINISHED = re.compile(rb'"finish_reason": ?null')
LAST_EVENTS = 4
"""Of a stream that are read one by one: the last text, its finish, its usage, its end."""
TORN_BYTES_KEPT = 256
"""Of the beginning of an event too long to be kept: enough for its type."""
_TYPE_AT_END = re.compile(rb'"type": ?"([\w.]+)" ?}\s*\Z')
_TYPE_AT_BEGINNING = re.compile(rb'(?:^|\n)event: ?([\w.]+)|data: ?{ ?"type": ?"([\w.]+)"')


def read_ending(tail: bytes, *, chunked: bool, torn: bytes = b"") -> Ending:
    """tail: the last bytes of a stream, its first event perhaps torn; chunked: with chunk framing still in; torn: how that
    first event began, as `last_beginning` keeps it.

    JSON text holds no raw CR LF, so a line of hexadecimal digits between two of them is framing.
    """
    cut = tail.rfind(b"\n\n", 0, max(0, len(tail) - READ_BYTES_MAX))
    if cut >= 0:
        tail, torn = tail[cut:], b""
    tail = _without_middle(tail, chunked=chunked)
    if chunked:
        tail, torn = _FRAMING.sub(b"", tail), _FRAMING.sub(b"", torn)
    ending = Ending()
    first, *events = tail.replace(b"\r\n", b"\n").split(b"\n\n")
    if torn:
        _read_torn(torn, first, ending)
        first = b""
    for event in (first, *events):
        if is_amid(event):
            continue
        data = event_data(event)
        if data == b"[DONE]":
            ending.done = True
        elif data:
            _read_last(data, ending)
    return ending


def read_usual_end(tail: bytes) -> Ending | None:
    """The ending of a chunked stream of chat or completion chunks, as `read_ending` reads it in ten times the time; None: it is
    of another kind, or was torn.

    Read from its `[DONE]` back to the event that finished: what came before says nothing that this one does not.
    """
    if tail[-len(_USUAL_END) :] != _USUAL_END:
        return None
    ending = Ending(done=True)
    start = len(tail) - len(_USUAL_END)
    for _ in range(LAST_EVENTS):
        stop, start = start, tail.rfind(b"data: {", 0, start)
        end = tail.find(b"\n", start, stop)
        # Nothing but framing from there to the event behind it, and none within it: JSON holds no raw CR.
        if start <= 0 or end < 0 or stop - end > _FRAMING_BYTES_MAX or tail[end : end + 2] != b"\n\n":
            return None
        if tail[start - 1] != _LF or tail.find(b"\r", start, end) >= 0 or tail.find(b":", end, stop) >= 0:
            return None
        try:
            last = _last_decoder.decode(tail[start + 6 : end])
        except UNREADABLE:
            return None
        if last.type is not None or last.response is not None or last.choices is None:
            return None
        if last.usage is not None and ending.output_tokens is not None:
            return None  # said with each event: the last one counts
        _read_end(last, ending)
        if ending.finished:
            return ending
    return None


def _without_middle(tail: bytes, *, chunked: bool) -> bytes:
    """Without the events between the first and the last few, where all of them together surely say nothing of the end: they are
    most of a tail, and one by one they cost more than all that was done for the stream's chunks."""
    start, stop = tail.find(b"\n\n"), len(tail)
    for _ in range(LAST_EVENTS):
        stop = tail.rfind(b"\n\n", 0, max(0, stop))
    middle = tail[start : stop + 2]
    if start < 0 or stop <= start or not says_no_end(middle, chunked=chunked):
        return tail
    return tail[: start + 2] + tail[stop + 2 :]


def says_no_end(events: bytes, *, chunked: bool) -> bool:
    """events: whole ones, with the blank lines before the first and behind the last. As `is_amid`, of all of them.

    Chunk framing may tear a name apart; where all of it stands between events there are two line ends of it to each that ends
    an event.
    """
    return (
        events.count(b'"finish_reason"') == events.count(b'"finish_reason":null') + events.count(b'"finish_reason": null')
        and events.find(b'"usage"') < 0
        and events.find(b'"error"') < 0
        and events.find(b'"type"') < 0
        and events.find(b"[DONE]") < 0
        and events.count(b"\r\n") == (2 * events.count(b"\n\n\r\n") if chunked else 0)
    )


def is_amid(event: bytes) -> bool:
    """Whether an event is surely one amid a stream of chat or completion chunks and says nothing of its end: told by its names
    alone, at a tenth of what reading it costs. A quote within JSON text has a backslash before it, so text holds no such name.
    """
    return (
        event.count(b'"finish_reason"') == 1
        and _UNFINISHED.search(event) is not None
        and event.find(b'"usage"') < 0  # not `in`: it takes bytes for a number first, and words an error
        and event.find(b'"error"') < 0
        and event.find(b'"type"') < 0
    )


def last_beginning(tail: bytes, cut: int, before: bytes) -> bytes:
    """The first bytes of the event that spans index `cut` of `tail`; before: of the one that goes on at its beginning."""
    start = max(tail.rfind(b"\n\n", 0, cut + 1), tail.rfind(b"\r\n\r\n", 0, cut + 3))
    if start < 0:
        return before or tail[:TORN_BYTES_KEPT]
    return tail[start : start + TORN_BYTES_KEPT].lstrip(b"\r\n")


def _read_torn(beginning: bytes, rest: bytes, ending: Ending) -> None:
    """An event too long to be kept: a Responses stream ends with everything it said in one. Its type stands at the beginning or
    at the end of its JSON, its usage towards the end."""
    found = _TYPE_AT_END.search(rest) or _TYPE_AT_BEGINNING.search(beginning)
    kind = found[found.lastindex or 0].decode("latin-1") if found else ""
    ending.done = kind in _FINAL_TYPES
    ending.error = kind in _ERROR_TYPES
    if ending.done:
        _read_usage_at_end(rest, ending)


def read_whole(body: bytes) -> tuple[Says, Ending]:
    """body: a JSON response that did not stream."""
    ending, last = Ending(), _last_of(body)
    if last is None:
        return _CONTENT, ending
    _read_end(last, ending)
    if ending.error:
        return Says.ERROR, ending
    return _meaning_of_choices(last.choices) if last.choices else _CONTENT, ending


class _Finish(msgspec.Struct, gc=False):
    finish_reason: str | None = None


class _Counts(msgspec.Struct, gc=False):
    prompt_tokens: _Count | None = None
    completion_tokens: _Count | None = None
    prompt_tokens_details: _Details | None = None
    input_tokens_details: Any = None
    cache_read_input_tokens: Any = None


class _Usual(msgspec.Struct, gc=False):
    choices: tuple[_Finish] | None = None
    usage: _Counts | None = None
    type: str | None = None
    error: Any = None


_usual_decoder = msgspec.json.Decoder(_Usual)


def read_usual(body: bytes) -> tuple[int, int, int] | None:
    """The usual answer, one choice that finished: its prompt, output and cached tokens (-1: not said). None: `read_whole` says
    what it is. What is read here `read_whole` finds to be content, complete, and of these tokens, in twice the time, if it can
    read it at all: here fields that do not matter are not looked at."""
    try:
        found = _usual_decoder.decode(body)
    except UNREADABLE:
        return None
    choices, usage = found.choices, found.usage
    if choices is None or usage is None or found.type is not None or found.error is not None:
        return None
    why, prompt, output, details = (
        choices[0].finish_reason, usage.prompt_tokens, usage.completion_tokens, usage.prompt_tokens_details
    )  # fmt: skip
    if why is None or why == "abort" or prompt is None or output is None:
        return None
    if details is None:
        elsewhere = usage.input_tokens_details is not None or usage.cache_read_input_tokens is not None
        return None if elsewhere else (prompt, output, -1)
    return prompt, output, -1 if details.cached_tokens is None else details.cached_tokens


def read_tail(tail: bytes) -> Ending:
    """tail: the last bytes of a JSON body too long to be held: its usage, where the tail holds it."""
    ending = Ending()
    _read_usage_at_end(tail, ending)
    return ending


def _read_usage_at_end(tail: bytes, ending: Ending) -> None:
    start = tail.rfind(b'"usage":')
    if start >= 0:
        try:
            usage, _ = json.JSONDecoder().raw_decode(tail[start + 8 :].decode("utf-8", "replace").lstrip())
            _read_usage(msgspec.convert(usage, _Usage), ending)
        except (ValueError, RecursionError):
            pass


def _read_last(data: bytes, ending: Ending) -> None:
    last = _last_of(data)
    if last is not None:
        _read_end(last, ending)


def _last_of(data: bytes) -> _Last | None:
    """Where its usage cannot be read, without; None: nor can the rest."""
    try:
        return _last_decoder.decode(data)
    except UNREADABLE:
        pass
    try:
        event = _event_decoder.decode(data)
    except UNREADABLE:
        return None
    return _Last(event.choices, None, event.type, event.error)


def _read_end(last: _Last, ending: Ending) -> None:
    if last.error is not None or last.type in _ERROR_TYPES:
        ending.error = True
    if last.type in _FINAL_TYPES:
        ending.done = True
    for choice in last.choices or ():
        if choice.finish_reason is not None:
            ending.finished = True
            ending.aborted = ending.aborted or choice.finish_reason == "abort"
    usage = last.usage or (last.response.usage if last.response else None)
    if usage is not None:
        _read_usage(usage, ending)


def _read_usage(usage: _Usage, ending: Ending) -> None:
    prompt = usage.prompt_tokens if usage.prompt_tokens is not None else usage.input_tokens
    output = usage.completion_tokens if usage.completion_tokens is not None else usage.output_tokens
    details = usage.prompt_tokens_details or usage.input_tokens_details
    cached = details.cached_tokens if details else usage.cache_read_input_tokens
    ending.prompt_tokens = prompt if prompt is not None else ending.prompt_tokens
    ending.output_tokens = output if output is not None else ending.output_tokens
    ending.cached_tokens = cached if cached is not None else ending.cached_tokens
