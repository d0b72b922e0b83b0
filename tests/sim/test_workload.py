"""Prompts without text: equal ids, equal tokens, equal hashes."""

from __future__ import annotations

from array import array

from hypothesis import given
from hypothesis import strategies as st

from contract import blocks
from loadgen.rows import Blocks, Messages, Row, runs
from loadgen.workload import Shape
from simulation.workload import Job, Prompts, jobs

ROOT = blocks.root_hash("tiny")


def prompts(scale: float = 1.0, block_size: int = 16) -> Prompts:
    return Prompts(Shape(model="tiny", scale=scale), block_size=block_size, root=ROOT)


def job(ids: list[int], tokens: int, scale: float = 1.0) -> Job:
    row = Row(0.0, Blocks(tokens, runs(ids), 512), 10)
    kept, _ = jobs([row], iter([0.0]), Shape(model="tiny", scale=scale), model_len_max=1 << 30)
    return kept[0]


@given(
    tokens=st.integers(1, 3_000), scale=st.sampled_from([1.0, 0.25, 0.1, 0.03]), block_size=st.sampled_from([1, 16, 32, 100])
)
def test_the_chain_is_that_of_the_tokens(tokens: int, scale: float, block_size: int) -> None:
    one = job(list(range(-(-tokens // 512))), tokens, scale)
    made = prompts(scale, block_size)
    packed = made.tokens(one)
    assert len(packed) == 4 * one.input_tokens
    assert made.chain(one) == blocks.chain(packed, block_size, ROOT)


def test_prompts_share_exactly_the_blocks_whose_ids_they_share() -> None:
    made = prompts()
    one, other = made.chain(job([1, 2, 3], 1_500)), made.chain(job([1, 2, 9], 1_500))
    assert one[:64] == other[:64]
    assert not set(one[64:]) & set(other[64:])


def test_a_prompt_cut_within_a_block_begins_like_the_whole_one() -> None:
    made = prompts()
    assert made.tokens(job([1, 2], 1_024)).startswith(made.tokens(job([1, 2], 700)))


def test_recorded_messages_that_begin_alike_share_their_beginning() -> None:
    first = {"role": "user", "content": "x" * 400}
    rows = [Row(0.0, Messages([first]), 5), Row(0.0, Messages([first, {"role": "assistant", "content": "yes"}]), 5)]
    kept, unfit = jobs(rows, iter([0.0, 1.0]), Shape(model="tiny"), model_len_max=4_096)
    assert unfit == 0
    short, long = (prompts().chain(one) for one in kept)
    assert len(short) > 0
    assert long[: len(short)] == array("Q", short)


def test_requests_that_no_engine_would_take_are_counted_and_left_out() -> None:
    rows = [Row(0.0, Blocks(tokens, (range(9),), 512), 10) for tokens in (100, 4_090, 4_000)]
    kept, unfit = jobs(rows, iter([0.0, 1.0, 2.0]), Shape(model="tiny"), model_len_max=4_096)
    assert unfit == 1
    assert [(one.index, one.at_s) for one in kept] == [(0, 0.0), (1, 2.0)]
