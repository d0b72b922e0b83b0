"""The plan of a profile: what is covered, and that it is the same again."""

from __future__ import annotations

from collections import Counter
from itertools import product
from random import Random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen import sweep
from loadgen.errors import LoadError
from loadgen.rows import Blocks, Row, Trace
from loadgen.sweep import BUCKETS, LEVEL_UNKNOWN, MIXED, MIXES, OUTPUTS, Combination, Grid, bucket_of
from loadgen.sweep_rows import PIECE_TOKENS, MadeUp, Recorded


def saturation(combination: Combination) -> float:
    return 10.0 * (1 + MIXES.index(combination.mix))


def test_every_mix_is_played_at_every_level_and_every_overlap_with_every_length_of_answers() -> None:
    grid = Grid()
    steps = sweep.steps(grid, saturation)
    assert {(step.combination.mix, step.level) for step in steps} == set(product(grid.mixes, grid.levels))
    assert {step.combination for step in steps} == set(grid.combinations())
    assert sum(step.requests for step in steps) >= grid.rows
    assert all(step.rate_rps == pytest.approx(step.level * saturation(step.combination)) for step in steps)


def test_steps_are_numbered_in_an_order_that_mixes_levels_and_is_the_same_again() -> None:
    steps = sweep.steps(Grid(), saturation)
    assert [step.index for step in steps] == list(range(len(steps)))
    first_half = [step.level for step in steps[: len(steps) // 2]]
    assert set(first_half) == set(Grid().levels), "cut in the middle, it has seen all levels"
    assert steps == sweep.steps(Grid(), saturation)
    assert steps != sweep.steps(Grid(seed=1), saturation)
    assert len({step.seed for step in steps}) == len(steps)


def test_given_rates_replace_levels_and_saturation_is_not_asked() -> None:
    def asked(_: Combination) -> float:
        raise AssertionError("nobody needs it")

    steps = sweep.steps(Grid(rates_rps=(1.0, 5.0), rows=100), asked)
    assert {step.rate_rps for step in steps} == {1.0, 5.0}
    assert {step.level for step in steps} == {LEVEL_UNKNOWN}


def test_policies_take_turns_over_the_steps() -> None:
    steps = sweep.steps(Grid(policies=("lmetric", "random")), saturation)
    counts = Counter(step.policy for step in steps)
    assert set(counts) == {"lmetric", "random"}
    assert abs(counts["lmetric"] - counts["random"]) <= 1


def test_a_grid_that_would_never_end_is_refused() -> None:
    with pytest.raises(ValueError, match="rounds"):
        sweep.steps(Grid(rates_rps=(0.001,), mixes=(MIXED,), rows=10**9, requests_min=1), saturation)


@given(st.integers(min_value=1, max_value=10**6))
def test_a_prompt_is_in_the_bucket_whose_bounds_hold_it(tokens: int) -> None:
    least, most = BUCKETS[bucket_of(tokens)]
    assert tokens >= least or bucket_of(tokens) == next(iter(BUCKETS))
    assert tokens <= (most or tokens)


@given(
    mix=st.sampled_from(MIXES),
    overlap=st.sampled_from((0.0, 0.5, 0.9)),
    output=st.sampled_from(tuple(OUTPUTS)),
    seed=st.integers(0, 2**16),
)
def test_made_up_prompts_have_the_lengths_and_the_overlap_that_were_asked_for(
    mix: str, overlap: float, output: str, seed: int
) -> None:
    rows = MadeUp(4_000).rows(Combination(mix, overlap, output), 40, Random(seed))
    owners: Counter[int] = Counter()
    for row in rows:
        owners.update(set(_ids(row)))
    for row in rows:
        assert isinstance(row.prompt, Blocks)
        assert mix in (MIXED, bucket_of(row.prompt.tokens))
        assert row.prompt.tokens <= 4_000
        assert OUTPUTS[output][0] <= row.output_tokens <= OUTPUTS[output][1]
        ids = list(_ids(row))
        assert len(ids) == -(-row.prompt.tokens // PIECE_TOKENS)
        own = sum(PIECE_TOKENS for one in ids if owners[one] == 1)
        assert own >= (1 - overlap) * row.prompt.tokens - PIECE_TOKENS, "no more is shared than asked for"


def _ids(row: Row) -> list[int]:
    assert isinstance(row.prompt, Blocks)
    return [one for run in row.prompt.ids for one in run]


def test_half_of_the_tokens_are_shared_where_half_is_asked_for() -> None:
    rows = MadeUp(4_000).rows(Combination(">1024", 0.5, "short"), 200, Random(1))
    owners = Counter(one for row in rows for one in set(_ids(row)))
    shared = sum(owners[one] > 1 for row in rows for one in _ids(row))
    assert shared / sum(len(_ids(row)) for row in rows) == pytest.approx(0.5, abs=0.02)


def test_a_model_that_takes_no_long_prompt_is_refused() -> None:
    with pytest.raises(LoadError, match=">1024"):
        MadeUp(900)


def test_a_recorded_workload_gives_the_prompts_of_a_bucket_round_and_round() -> None:
    lengths = [50, 60, 700]
    trace = Trace("t", [Row(0.0, Blocks(length, (range(1, 2),), length), 5) for length in lengths], timed=False)
    recorded = Recorded(trace, lengths)
    assert recorded.mixes == (MIXED, "<128", "512-1024")
    rows = recorded.rows(Combination("<128", -1.0, "recorded"), 5, Random(0))
    assert {row.prompt.tokens for row in rows if isinstance(row.prompt, Blocks)} == {50, 60}
    with pytest.raises(ValueError, match=">1024"):
        recorded.rows(Combination(">1024", -1.0, "recorded"), 5, Random(0))


def test_saturation_is_the_rate_of_ends_in_the_middle_of_a_run() -> None:
    steady = [2.0 + 0.1 * n for n in range(100)]
    tail = [100.0]
    assert sweep.ends_per_s([*steady, *tail]) == pytest.approx(10.0, rel=0.02)
    assert sweep.ends_per_s([1.0]) == float("inf")


def test_a_step_survives_its_file() -> None:
    step = sweep.steps(Grid(), saturation)[3]
    assert msgspec.json.decode(msgspec.json.encode(step), type=sweep.Step) == step
