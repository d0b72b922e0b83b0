from __future__ import annotations

import json
from itertools import count

from hypothesis import given
from hypothesis import strategies as st

from loadgen.rows import Blocks, Messages, Row, own_blocks
from loadgen.synthetic import BlockText
from loadgen.workload import Shape, TimedRequest, requests, scaled_block_tokens, scaled_tokens

TEXT = BlockText([f" w{n}" for n in range(300)])


def built(row: Row, shape: Shape) -> tuple[TimedRequest, dict[str, object]]:
    (request,) = requests([row], iter([1.5]), shape, TEXT)
    return request, json.loads(request.body)


@given(st.integers(1, 200_000), st.sampled_from([16, 64, 512]), st.sampled_from([1.0, 0.5, 0.25, 1 / 32]))
def test_a_scaled_prompt_has_as_many_blocks_as_the_original(tokens: int, block_tokens: int, scale: float) -> None:
    blocks = own_blocks(0, tokens, block_tokens)
    step = scaled_block_tokens(blocks, scale)
    assert -(-scaled_tokens(blocks, scale) // step) == blocks.count
    if scale == 1.0:
        assert scaled_tokens(blocks, scale) == tokens


def test_a_request_streams_asks_for_usage_and_for_exactly_the_recorded_output() -> None:
    row = Row(0.0, Blocks(600, (range(2),), 512), 500, "s")
    request, body = built(row, Shape("m", scale=0.25, output_scale=0.25))
    assert (request.at_s, request.path, request.input_tokens, request.output_tokens) == (1.5, "/v1/chat/completions", 150, 125)
    assert body["stream"] is True
    assert body["stream_options"] == {"include_usage": True}
    assert (body["max_tokens"], body["ignore_eos"], body["model"]) == (125, True, "m")
    (message,) = body["messages"]  # type: ignore[misc]
    assert len(message["content"].split()) == 150


def test_a_completion_request_carries_the_same_text_as_its_prompt() -> None:
    row = Row(0.0, Blocks(20, (range(3, 5),), 16), 5)
    chat, completion = built(row, Shape("m"))[1], built(row, Shape("m", endpoint="completions"))[1]
    assert completion["prompt"] == chat["messages"][0]["content"]  # type: ignore[index]


def test_recorded_messages_go_out_as_they_are_and_a_salt_changes_their_very_beginning() -> None:
    items = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "hi"}]
    row = Row(0.0, Messages(items), 5)
    assert built(row, Shape("m"))[1]["messages"] == items
    assert built(row, Shape("m", salt="r1"))[1]["messages"] == [{"role": "system", "content": "[r1] be kind"}, items[1]]
    assert items[0]["content"] == "be kind"
    assert built(row, Shape("m", endpoint="completions"))[1]["prompt"] == "system: be kind\n\nuser: hi\n\nassistant:"


def test_bounds_on_answers_and_early_ends_are_passed_on() -> None:
    body = built(Row(0.0, Blocks(5, (range(1),), 512), 500), Shape("m", output_tokens_max=7, ignore_eos=False))[1]
    assert body["max_tokens"] == 7
    assert "ignore_eos" not in body


def test_bodies_are_built_only_when_asked_for() -> None:
    endless = requests((Row(0.0, Blocks(5, (range(1),), 512), 1) for _ in count()), map(float, count()), Shape("m"), TEXT)
    assert [next(endless).at_s for _ in range(3)] == [0.0, 1.0, 2.0]
