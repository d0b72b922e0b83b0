from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen.answer import Answer
from tests.fakes.sse_server import DONE, chat_role, chat_text, error_object, event, usage

STREAM = b"".join(
    map(event, [chat_role(), chat_text(" a"), chat_text(" b"), chat_text(" c", "length"), usage(50, 3, 48), DONE])
)


def fed(*pieces: bytes, streaming: bool = True) -> Answer:
    """One second passes before each piece."""
    answer = Answer()
    answer.streaming = streaming
    for now, piece in enumerate(pieces, start=1):
        answer.feed(piece, float(now))
    return answer


def test_the_first_event_with_content_is_the_first_token_and_not_the_role() -> None:
    answer = fed(event(chat_role()), event(chat_text(" a")), event(chat_text(" b")), event(chat_text(" c", "stop")))
    assert (answer.first, answer.last, answer.gaps, answer.events) == (2.0, 4.0, [1.0, 1.0], 3)
    assert answer.finish_reason == "stop"


def test_usage_and_end_are_read_and_a_complete_stream_is_ok() -> None:
    answer = fed(STREAM)
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.cached_tokens) == (50, 3, 48)
    assert answer.verdict(200, complete=True) == ("ok", "")


@given(st.lists(st.integers(0, len(STREAM)), max_size=12), st.booleans())
def test_however_a_stream_is_cut_it_says_the_same(cuts: list[int], carriage_returns: bool) -> None:
    edges = [0, *sorted(cuts), len(STREAM)]
    pieces = [STREAM[a:b] for a, b in itertools.pairwise(edges)]
    if carriage_returns:
        pieces = [piece.replace(b"\n", b"\r\n") for piece in pieces]
    answer = fed(*pieces)
    assert (answer.events, answer.finish_reason, answer.done) == (3, "length", True)
    assert answer.verdict(200, complete=True)[0] == "ok"


def test_byte_by_byte_it_says_the_same() -> None:
    answer = fed(*(STREAM[n : n + 1] for n in range(len(STREAM))))
    assert (answer.events, answer.verdict(200, complete=True)[0]) == (3, "ok")


def test_comments_event_lines_and_blank_lines_are_nothing() -> None:
    answer = fed(b": keep-alive\n\nevent: x\nid: 3\n\n" + STREAM)
    assert answer.verdict(200, complete=True) == ("ok", "")


@pytest.mark.parametrize(
    "choice",
    [
        {"text": " x"},
        {"delta": {"reasoning_content": "hm"}},
        {"delta": {"reasoning": "hm"}},
        {"delta": {"tool_calls": [{"index": 0, "function": {"arguments": "{"}}]}},
    ],
)
def test_text_reasoning_and_tool_calls_are_content_as_well(choice: dict[str, object]) -> None:
    assert fed(event({"choices": [choice]})).first == 1.0


@pytest.mark.parametrize(
    ("pieces", "end", "why"),
    [
        ([event(chat_text("a"))], "truncated", r"without \[DONE\] after 1 events"),
        ([], "truncated", r"without \[DONE\] after 0 events"),
        ([event(chat_text("a")), event(DONE)], "truncated", "without a finish_reason"),
        ([event(chat_text("", "abort")), event(DONE)], "aborted", "abort"),
        ([event(chat_text("a")), event(error_object("died")), event(DONE)], "error_event", "InternalServerError: died"),
        ([event(b'{"choices": [')], "malformed", "event"),
        ([event(b'{"choices": "none"}')], "malformed", "event"),
    ],
)
def test_a_200_that_is_no_success_is_told_from_one(pieces: list[bytes], end: str, why: str) -> None:
    got, message = fed(*pieces).verdict(200, complete=True)
    assert got == end
    assert re.search(why, message)


def test_a_whole_stream_whose_message_was_cut_is_truncated() -> None:
    assert fed(STREAM).verdict(200, complete=False)[0] == "truncated"


def test_text_that_speaks_of_errors_is_text() -> None:
    answer = fed(event(chat_text('{"error": "[DONE] abort"}', "stop")), event(DONE))
    assert answer.verdict(200, complete=True) == ("ok", "")


@pytest.mark.parametrize(
    ("status", "body", "end", "why"),
    [
        (503, b'{"error": {"message": "full", "type": "overloaded"}}', "shed", "overloaded: full"),
        (429, b"slow down", "shed", "slow down"),
        (404, b'{"detail": "Not Found"}', "http_404", "Not Found"),
        (500, b"", "http_500", "empty body"),
        (200, b'{"choices": []}', "malformed", "no event stream"),
    ],
)
def test_answers_that_are_no_streams_are_judged_by_status_and_quoted(status: int, body: bytes, end: str, why: str) -> None:
    got, message = fed(body, streaming=False).verdict(status, complete=True)
    assert got == end
    assert why in message


def _stream_bodies(folder: Path) -> list[tuple[str, bytes]]:
    """Captured streams of a real engine, chunk framing removed."""
    found = []
    for path in sorted(folder.glob("*stream*.resp.raw")):
        head, _, rest = path.read_bytes().partition(b"\r\n\r\n")
        if b"text/event-stream" not in head or b"[...]" in rest:
            continue
        body = b""
        while rest:
            size, _, rest = rest.partition(b"\r\n")
            length = int(size, 16)
            body, rest = body + rest[:length], rest[length + 2 :]
        found.append((path.name, body))
    return found


def test_every_captured_stream_of_a_real_engine_that_ended_well_is_ok(shared: Path) -> None:
    streams = _stream_bodies(shared / "vllm_real/http")
    judged = {}
    for name, body in streams:
        if name.startswith(("responses", "messages", "anthropic")):
            continue
        answer = fed(body)
        judged[name] = answer.verdict(200, complete=True)
        assert answer.events > 0, name
    assert len(judged) > 5
    assert [name for name, (end, _) in judged.items() if end != "ok"] == ["disconnect_stream_after_2k.resp.raw"]
