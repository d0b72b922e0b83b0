"""The same bytes sent to the emulator as to a real vLLM: the answers have the same form."""

from __future__ import annotations

import json

import pytest

from tests.emulator.captures import HTTP, Answer, exchange, parse, recorded, recorded_request, shape
from tests.emulator.conftest import Launch

STREAMS = (
    *("chat_stream", "chat_stream_usage", "chat_stream_usage_continuous", "chat_stream_max1", "chat_stream_token_ids"),
    *("completion_stream", "completion_stream_n2", "completion_stream_usage", "completion_stream_usage_continuous"),
    *("messages_stream", "responses_stream"),
)
BODIES = (
    *("chat", "completion", "completion_batch_of_2", "completion_lora", "completion_cache_salt", "completion_token_ids_in"),
    *("messages", "responses", "no_model_field", "unknown_field", "tokenize_prompt", "tokenize_chat", "detokenize"),
    *("get_v1_models", "get_version", "get_load", "get_kv_event_sources", "get_is_sleeping"),
    *("orca_completion_json", "orca_completion_text"),
)
EXACT = (
    *("err_bad_json", "err_bad_temperature", "err_bad_type", "err_empty_body", "err_empty_prompt", "err_max_tokens_too_big"),
    *("err_method_get_on_chat", "err_no_messages", "err_stream_options_without_stream", "err_token_out_of_vocab"),
    *("err_unknown_model", "err_unknown_model_stream", "err_wrong_content_type"),
    *("get_health", "get_ping", "get_nosuchpath", "head_health"),
)
VARYING_HEADERS = {"date", "x-request-id", "content-length"}


def names(answer: Answer) -> set[str]:
    return {name for name in answer.headers if name not in VARYING_HEADERS}


def distinct(shapes: list[object]) -> list[object]:
    """Runs of equal shapes as one: how many tokens a text has does not matter, nor whether the first word was empty."""
    return [item for index, item in enumerate(shapes) if index == 0 or item != shapes[index - 1]]


@pytest.mark.parametrize("name", STREAMS)
async def test_streams_have_the_recorded_form(launch: Launch, name: str) -> None:
    emulator = await launch()
    ours, theirs = await exchange(emulator.url, recorded_request(name)), recorded(name)
    assert ours.status == theirs.status
    assert names(ours) == names(theirs)
    assert ours.headers["content-type"] == theirs.headers["content-type"]
    assert all(chunk.endswith(b"\n\n") and chunk.count(b"\n\n") == 1 for chunk in ours.chunks), "one event a chunk"
    order = "n2" not in name
    ours_shapes, theirs_shapes = [shape(event) for event in ours.events], [shape(event) for event in theirs.events]
    if order:
        assert distinct(ours_shapes) == distinct(theirs_shapes)
    else:
        assert {str(item) for item in ours_shapes} == {str(item) for item in theirs_shapes}
    if "stop" not in name:
        assert len(ours.events) == len(theirs.events)


@pytest.mark.parametrize("name", BODIES)
async def test_whole_answers_have_the_recorded_form(launch: Launch, name: str) -> None:
    emulator = await launch()
    ours, theirs = await exchange(emulator.url, recorded_request(name)), recorded(name)
    assert ours.status == theirs.status
    assert names(ours) == names(theirs)
    assert shape(json.loads(ours.body)) == shape(json.loads(theirs.body))


@pytest.mark.parametrize("name", EXACT)
async def test_refusals_are_the_recorded_ones_to_the_letter(launch: Launch, name: str) -> None:
    emulator = await launch()
    ours, theirs = await exchange(emulator.url, recorded_request(name)), recorded(name)
    assert ours.status == theirs.status
    assert ours.headers.get("allow") == theirs.headers.get("allow")
    assert ours.body.decode() == theirs.body.decode()


async def test_a_full_queue_is_503_without_retry_after(launch: Launch) -> None:
    emulator = await launch()
    await exchange(emulator.url, fault_request({"kind": "busy", "count": 1}))
    ours, theirs = await exchange(emulator.url, recorded_request("completion_stream")), recorded("err_503_max_num_queued_reqs")
    assert (ours.status, ours.body) == (theirs.status, theirs.body)
    assert "retry-after" not in ours.headers
    assert (await exchange(emulator.url, recorded_request("completion"))).status == 200


async def test_a_client_chosen_request_id_becomes_the_id(launch: Launch) -> None:
    emulator = await launch()
    request = recorded_request("completion").replace(b"\r\n\r\n", b"\r\nX-Request-Id: chosen-1\r\n\r\n", 1)
    answer = await exchange(emulator.url, request)
    assert json.loads(answer.body)["id"] == "cmpl-chosen-1"
    assert answer.headers["x-request-id"] == "chosen-1"


def test_the_recorded_end_of_a_dying_engines_stream_is_the_one_that_is_written() -> None:
    from emulator.errors import engine_dead
    from emulator.wire import DONE

    tail = (HTTP / "stream_when_engine_dies.resp.excerpt.raw").read_bytes()
    event = engine_dead().event()
    assert b"%x\r\n%b\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(event), event, len(DONE), DONE) == tail[tail.index(b"a9\r\n") :]
    whole = (HTTP / "err_500_engine_dead.resp.raw").read_bytes()
    assert parse(whole).body == engine_dead().body()


def fault_request(body: dict[str, object]) -> bytes:
    data = json.dumps(body).encode()
    head = "POST /emulator/faults HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data
