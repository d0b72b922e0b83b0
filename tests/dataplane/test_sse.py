"""Events: cutting them out of bytes, and what they say."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataplane import sse
from dataplane.sse import (
    LAST_EVENTS,
    READ_BYTES_MAX,
    Ending,
    EventReader,
    Says,
    error_code,
    is_amid,
    meaning,
    read_ending,
    read_tail,
    read_usual_end,
    read_whole,
)
from tests.fakes.backend import LAST_CHUNK, chunk, delta, event, stream_bytes, stream_events, usage

LINE = st.text(st.characters(exclude_characters="\r\n", exclude_categories=("Cs",)), min_size=1, max_size=20)


@given(st.lists(LINE, max_size=6), st.sampled_from([b"\n", b"\r\n"]), st.lists(st.integers(0, 10_000), max_size=6))
def test_events_are_the_same_wherever_the_bytes_are_torn(lines: list[str], end: bytes, places: list[int]) -> None:
    data = b"".join(b": comment" + end + end + b"data: x" + line.encode() + end + end for line in lines)
    bounds = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    reader = EventReader()
    found = [each for a, b in itertools.pairwise(bounds) for each in reader.feed(data[a:b])]
    assert found == [b"x" + line.encode() for line in lines]


def test_event_names_and_several_data_lines_are_understood() -> None:
    reader = EventReader()
    assert reader.feed(b"event: a\ndata: {\ndata: }\n\nid: 3\n\n: ping\n\ndata:last\n\n") == [b"{\n}", b"last"]


@pytest.mark.parametrize(
    ("payload", "says"),
    [
        (delta("", role="assistant"), Says.NOTHING),
        (delta("a"), Says.CONTENT),
        (delta("", finish="length"), Says.CONTENT),
        (delta("", finish="abort"), Says.ABORT),
        (delta("a", finish="abort"), Says.CONTENT),
        ({"choices": [{"text": "", "finish_reason": "abort"}]}, Says.ABORT),
        ({"choices": [{"text": "x", "finish_reason": None}]}, Says.CONTENT),
        ({"choices": [{"delta": {"reasoning_content": "hm"}}]}, Says.CONTENT),
        ({"choices": [{"delta": {"tool_calls": [{"index": 0}]}}]}, Says.CONTENT),
        ({"choices": [{"message": {"content": ""}, "finish_reason": "abort"}]}, Says.ABORT),
        ({"choices": [], "usage": usage(1, 0, 0)}, Says.NOTHING),
        ({"error": {"message": "x", "code": 500}}, Says.ERROR),
        ({"type": "error"}, Says.ERROR),
        ({"type": "message_start"}, Says.NOTHING),
        ({"type": "response.created"}, Says.NOTHING),
        ({"type": "content_block_delta"}, Says.CONTENT),
        ({"type": "response.output_text.delta"}, Says.CONTENT),
        ({"data": [{"embedding": [1]}]}, Says.CONTENT),
    ],
)
def test_what_an_event_says(payload: object, says: Says) -> None:
    assert meaning(json.dumps(payload).encode()) is says


def test_done_is_done_and_what_cannot_be_read_is_passed_on() -> None:
    assert meaning(b"[DONE]") is Says.DONE
    assert meaning(b"not json") is Says.CONTENT
    assert meaning(b"[" * 100_000) is Says.CONTENT


def test_an_error_without_a_number_counts_as_the_engines() -> None:
    assert error_code(b'{"error":{"code":400}}') == 400
    assert error_code(b'{"error":{"code":"context_length_exceeded"}}') == 500
    assert error_code(b'{"error":"text"}') == 500
    assert error_code(b"{") == 500


@pytest.mark.parametrize("start", [0, 1, 7, 100])
def test_the_ending_is_read_from_a_torn_tail(start: int) -> None:
    raw = stream_bytes(stream_events(["a", "b"], usage_of=usage(30, 2, 16)))[start:]
    ending = read_ending(raw, chunked=True)
    assert (ending.done, ending.finished, ending.aborted, ending.error) == (True, True, False, False)
    assert (ending.prompt_tokens, ending.output_tokens, ending.cached_tokens) == (30, 2, 16)


@pytest.mark.parametrize("size", [1, 3, 17])
def test_chunk_framing_amid_an_event_does_not_hide_its_usage(size: int) -> None:
    body = b"".join(stream_events(["a"], usage_of=usage(3, 1, 0)))
    raw = b"".join(chunk(body[at : at + size]) for at in range(0, len(body), size)) + LAST_CHUNK
    ending = read_ending(raw, chunked=True)
    assert ending.done
    assert ending.prompt_tokens == 3


def test_a_dying_engines_error_event_is_seen_behind_its_done() -> None:
    ending = read_ending(event(delta("a")) + event({"error": {"code": 500}}) + event("[DONE]"), chunked=False)
    assert ending.error
    assert ending.done


CHOICE = st.fixed_dictionaries(
    {},
    optional={
        "finish_reason": st.sampled_from([None, "stop", "abort"]),
        "delta": st.fixed_dictionaries({}, optional={"content": st.sampled_from(["a", '"finish_reason": null', "", None])}),
        "text": LINE,
    },
)
EVENT = st.fixed_dictionaries(
    {},
    optional={
        "choices": st.lists(CHOICE, max_size=2),
        "usage": st.sampled_from([None, usage(3, 1, 0)]),
        "error": st.sampled_from([None, {"code": 500}]),
        "type": st.sampled_from(["error", "message_stop", "ping"]),
        "response": st.sampled_from([None, {"usage": usage(3, 1, 0)}]),
    },
)


@given(EVENT, st.sampled_from([(", ", ": "), (",", ":")]))
def test_an_event_that_is_told_to_be_amid_a_stream_says_nothing_of_its_end(
    payload: object, separators: tuple[str, str]
) -> None:
    data = json.dumps(payload, separators=separators).encode()
    if is_amid(b"data: " + data):
        assert read_whole(data)[1] == Ending()


def test_usual_events_are_told_and_the_last_ones_are_not() -> None:
    assert is_amid(event(delta("word")))
    assert is_amid(event(delta('"finish_reason": "stop"')))
    assert not is_amid(event(delta("", finish="stop")))
    assert not is_amid(event(delta("word") | {"usage": usage(3, 1, 0)}))


USUAL_EVENT = st.sampled_from([event(delta(text)) for text in ("word", "[DONE]", '"error"', "\n\n")])
ANY_EVENT = st.one_of(
    EVENT.map(event), st.just(event("[DONE]")), st.sampled_from([event({"usage": usage(9, 8, 7)}), b": ping\n\n", b"\n\n"])
)
TAILS = st.builds(
    lambda usual, others, at: [*usual[:at], *others, *usual[at:]],
    st.lists(USUAL_EVENT, min_size=LAST_EVENTS, max_size=12),
    st.lists(ANY_EVENT, max_size=3),
    st.integers(0, 12),
)


@given(TAILS, st.booleans(), st.lists(st.integers(1, 300), max_size=4), st.booleans(), st.integers(0, 40))
def test_what_is_left_out_of_a_tail_would_have_said_nothing(
    events: list[bytes], crlf: bool, sizes: list[int], chunked: bool, torn: int
) -> None:
    """Whatever lies amid, however it is framed, and wherever the tail begins."""
    if crlf:
        events = [each.replace(b"\n", b"\r\n") for each in events]
    whole = b"".join(events)
    pieces, at = [], 0
    while chunked and sizes and at < len(whole):
        size = sizes[len(pieces) % len(sizes)]
        pieces.append(whole[at : at + size])
        at += size
    tail = b"".join(map(chunk, pieces or events)) if chunked else whole
    read = read_ending(tail[torn:], chunked=chunked)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sse, "LAST_EVENTS", 1_000)  # more than there are: nothing is left out
        assert read == read_ending(tail[torn:], chunked=chunked)


@given(TAILS, st.sampled_from([b"", b"data: {\n\n", b"x"]), st.booleans())
def test_the_usual_end_says_what_is_read_from_the_event_that_finished_on(
    events: list[bytes], before: bytes, ends: bool
) -> None:
    events += [event(delta("", finish="stop"))] * ends + [event("[DONE]")]
    quick = read_usual_end(before + b"".join(map(chunk, events)) + LAST_CHUNK)
    if quick is None:
        return
    for start in reversed(range(len(events))):
        slow = read_ending(b"".join(map(chunk, events[start:])), chunked=True)
        if slow.finished:
            assert quick == slow
            return
    raise AssertionError("none of the events has finished")


@pytest.mark.parametrize("used", [None, usage(30, 3, 16)])
@pytest.mark.parametrize("reason", ["stop", "length", "abort"])
def test_the_usual_end_is_told(reason: str, used: dict[str, object] | None) -> None:
    events = [event(delta("word")), event(delta("", finish=reason)), *([event({"choices": [], "usage": used})] if used else [])]
    for tail in (
        b"".join(map(chunk, [*events, event("[DONE]")])) + LAST_CHUNK,
        chunk(b"".join([*events, event("[DONE]")])) + LAST_CHUNK,
    ):
        quick = read_usual_end(tail)
        assert quick is not None
        assert quick == read_ending(tail, chunked=True)
        assert quick.aborted == (reason == "abort")
        for kept in range(1, len(tail)):  # torn wherever
            found = read_usual_end(tail[-kept:])
            assert found is None or found == quick


@pytest.mark.parametrize("chunked", [True, False])
@pytest.mark.parametrize("words", [1, 60, 400])
def test_the_end_of_a_long_tail_is_all_that_is_read(chunked: bool, words: int) -> None:
    events = stream_events(["word"] * words, usage_of=usage(30, words, 16))
    tail = b"".join(map(chunk, events)) if chunked else b"".join(events)
    assert words < 400 or len(tail) > 4 * READ_BYTES_MAX
    ending = read_ending(tail, chunked=chunked)
    assert (ending.done, ending.finished, ending.output_tokens) == (True, True, words)


def test_a_last_event_longer_than_what_is_read_is_read_whole() -> None:
    last = event({"type": "response.completed", "response": {"text": "x" * 2 * READ_BYTES_MAX, "usage": usage(3, 1, 0)}})
    ending = read_ending(event({"type": "response.created"}) + last, chunked=False)
    assert ending.done
    assert ending.prompt_tokens == 3


def test_usage_of_a_long_body_is_read_from_its_end() -> None:
    body = json.dumps({"data": [{"embedding": [0.5] * 1000}], "usage": usage(7, 0, 4), "metrics": {"a": {"b": 1}}}).encode()
    assert read_tail(body[-300:]).cached_tokens == 4
    assert read_tail(b'xx"usage": {"prompt').prompt_tokens is None


@pytest.mark.parametrize(
    ("name", "cached"),
    [("chat_stream_usage", 0), ("completion_stream_usage", None), ("messages_stream", None), ("responses_stream", None)],
)
def test_captured_streams_of_a_real_engine_end_well(shared: Path, name: str, cached: int | None) -> None:
    raw = (shared / "vllm_real" / "http" / f"{name}.resp.raw").read_bytes().partition(b"\r\n\r\n")[2]
    ending = read_ending(raw[-8000:], chunked=True)
    assert ending.done
    assert not ending.error
    assert ending.output_tokens
    assert cached is None or ending.cached_tokens == cached


def test_captured_engine_death_and_sigterm_are_told_from_a_good_end(shared: Path) -> None:
    folder = shared / "vllm_real" / "http"
    assert read_ending((folder / "stream_when_engine_dies.resp.excerpt.raw").read_bytes()[-4000:], chunked=True).error
    assert read_ending((folder / "stream_when_sigterm.resp.excerpt.raw").read_bytes()[-4000:], chunked=True).aborted


def test_anthropic_and_responses_usage_is_read_too() -> None:
    assert read_whole(b'{"usage":{"input_tokens":14,"output_tokens":6,"cache_read_input_tokens":4}}')[1].cached_tokens == 4
    assert (
        read_whole(b'{"usage":{"input_tokens":14,"output_tokens":6,"input_tokens_details":{"cached_tokens":8}}}')[
            1
        ].cached_tokens
        == 8
    )
