"""Streams of /v1/responses and /v1/messages: without their final event they are no answer, however cleanly they end."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract.outcome import End
from dataplane.relay import TAIL_BYTES_MAX, Relay
from dataplane.sse import TORN_BYTES_KEPT, last_beginning
from proto import routing_pb2 as pb
from tests.dataplane.client import ask, request
from tests.dataplane.conftest import Proxy, StartProxy
from tests.fakes.backend import LAST_CHUNK, STREAM_HEAD, Backend, chunk, raw
from tests.fakes.control import Control

LONG = "x" * 3 * TAIL_BYTES_MAX
USAGE = {"input_tokens": 13, "input_tokens_details": {"cached_tokens": 8}, "output_tokens": 3}


def named(name: str, fields: dict[str, Any], *, type_first: bool = False) -> bytes:
    """One event as vLLM writes it, its type last; other engines write it first."""
    fields = {"type": name, **fields} if type_first else {**fields, "type": name}
    return b"event: %b\ndata: %b\n\n" % (name.encode(), json.dumps(fields).encode())


def text_delta(number: int) -> bytes:
    return named("response.output_text.delta", {"delta": "word", "sequence_number": number})


def completed(text: str, **how: bool) -> bytes:
    output = [{"content": [{"text": text, "type": "output_text"}], "status": "completed", "type": "message"}]
    response = {"output": output, "status": "completed", "usage": USAGE, "user": None}
    return named("response.completed", {"response": response, "sequence_number": 9}, **how)


def item_done(text: str, **how: bool) -> bytes:
    return named("response.output_item.done", {"item": {"text": text, "type": "message"}, "sequence_number": 8}, **how)


def stopped() -> bytes:
    return named("message_delta", {"usage": {"output_tokens": 3}}, type_first=True) + named("message_stop", {}, type_first=True)


def block_delta() -> bytes:
    return named("content_block_delta", {"index": 0, "delta": {"type": "text_delta", "text": "word"}}, type_first=True)


def stream(*events: bytes) -> bytes:
    return STREAM_HEAD + b"".join(map(chunk, events)) + LAST_CHUNK


def fed(body: bytes, sizes: list[int]) -> Relay:
    """A relay that got it in pieces of these sizes, in turn."""
    relay, at, turn = Relay(hold_bytes_max=1 << 20, must_end_with_done=True), 0, 0
    while at < len(body):
        size = sizes[turn % len(sizes)]
        relay.feed(body[at : at + size])
        if relay.ready and not relay.cut_short:
            relay.release()
        at, turn = at + size, turn + 1
    return relay


@pytest.mark.parametrize("path", ["/v1/responses", "/v1/messages"])
async def test_a_stream_without_its_final_event_ends_with_an_error_event(proxy: Proxy, backend: Backend, path: str) -> None:
    events = [text_delta(4), text_delta(5)] if path == "/v1/responses" else [block_delta(), block_delta()]
    backend.script(raw(stream(*events)))
    response = await ask(proxy.port, request({"model": "m", "input": "x", "messages": [], "stream": True}, path))
    assert response.body.startswith(b"".join(events))
    last = json.loads(response.body.rpartition(b"data: ")[2])
    assert last["type"] == "error"
    assert "without finishing" in json.dumps(last)
    assert path != "/v1/responses" or last["sequence_number"] == 6
    assert proxy.count("attempts", "engine_error") == 1


@pytest.mark.parametrize(
    ("path", "events"),
    [
        ("/v1/responses", [text_delta(4), completed("short")]),
        ("/v1/responses", [text_delta(4), item_done(LONG), completed(LONG)]),
        ("/v1/responses", [text_delta(4), named("response.failed", {"response": {"error": {"code": "x"}}})]),
        ("/v1/messages", [block_delta(), stopped()]),
        ("/v1/messages", [block_delta(), named("error", {"error": {"type": "api_error", "message": "x"}})]),
    ],
    ids=["responses", "long responses", "failed responses", "messages", "failed messages"],
)
async def test_a_stream_with_its_final_event_passes_as_it_is(
    proxy: Proxy, backend: Backend, path: str, events: list[bytes]
) -> None:
    backend.script(raw(stream(*events)))
    response = await ask(proxy.port, request({"model": "m", "input": "x", "messages": [], "stream": True}, path))
    assert response.body == b"".join(events)


async def test_a_long_final_event_tells_its_usage(start_proxy: StartProxy, backend: Backend, control: Control) -> None:
    control.serve("m", backend.url)
    proxy = await start_proxy(control=control)
    backend.script(raw(stream(text_delta(4), completed(LONG))))
    await ask(proxy.port, request({"model": "m", "input": "x", "stream": True}, "/v1/responses"))
    await control.until(lambda control: len(control.outcomes) == 1)
    (outcome,) = control.outcomes
    assert (outcome.end, outcome.prompt_tokens, outcome.cached_tokens, outcome.output_tokens) == (pb.COMPLETE, 13, 8, 3)


SIZES = st.lists(st.integers(1, 9000), min_size=1, max_size=8)


@given(SIZES, st.booleans(), st.booleans())
def test_a_long_final_event_is_known_wherever_its_bytes_are_torn(
    sizes: list[int], type_first: bool, framed_often: bool
) -> None:
    last = completed(LONG, type_first=type_first)
    parts = [last[at : at + 4096] for at in range(0, len(last), 4096)] if framed_often else [last]
    relay = fed(stream(text_delta(4), *parts), sizes)
    assert not relay.cut_short
    assert relay.final() is End.COMPLETE
    assert relay.ending.cached_tokens == 8


@given(SIZES, st.booleans())
def test_a_long_event_that_is_not_the_final_one_is_no_end(sizes: list[int], type_first: bool) -> None:
    relay = fed(stream(text_delta(4), item_done('{"type":"response.completed"}' + LONG, type_first=type_first)), sizes)
    assert relay.cut_short
    assert relay.final() is End.ENGINE_ERROR


@given(st.lists(st.integers(0, 600), min_size=1, max_size=12), SIZES, st.sampled_from([b"\n\n", b"\r\n\r\n"]))
def test_the_beginning_that_is_kept_is_that_of_the_event_at_the_cut(lengths: list[int], sizes: list[int], gap: bytes) -> None:
    whole = gap.join(b"event: e%d\ndata: %b" % (number, b"x" * length) for number, length in enumerate(lengths))
    tail, kept, at, turn = b"", b"", 0, 0
    while at < len(whole):
        size = 1 + sizes[turn % len(sizes)] % 400
        tail, at, turn = tail + whole[at : at + size], at + size, turn + 1
        if len(tail) > 100:
            kept = last_beginning(tail, len(tail) - 50, kept)
            tail = tail[-50:]
    if kept:
        begun = max(whole.rfind(gap, 0, len(whole) - len(tail) + len(gap) - 1), 0)
        assert whole[begun:].lstrip(b"\r\n").startswith(kept)
        assert len(kept) <= TORN_BYTES_KEPT
