from __future__ import annotations

from collections import Counter

import pytest

from loadgen import generators
from loadgen.errors import LoadError
from loadgen.rows import Blocks, Row
from runtime import rng


def ids_of(row: Row) -> list[int]:
    assert isinstance(row.prompt, Blocks)
    assert row.prompt.count * row.prompt.block_tokens == row.prompt.tokens
    return [value for run in row.prompt.ids for value in run]


def test_prompts_of_a_group_share_their_system_prompt_and_nothing_else() -> None:
    spec = "shared-prefix:groups=3,prompts=4,system=64,question=32,output=9"
    rows = generators.generate(spec, limit=100, rng=rng.stream(0, "w")).rows
    assert len(rows) == 12
    assert {row.output_tokens for row in rows} == {9}
    uses = Counter(value for row in rows for value in ids_of(row))
    assert Counter(uses.values()) == {4: 3 * 4, 1: 12 * 2}  # 4 pieces of 16 tokens a group, 2 of its own a prompt
    assert [row.session for row in rows] != sorted(row.session for row in rows)


def test_each_round_of_a_user_continues_the_one_before_and_all_share_the_system_text() -> None:
    spec = "multi-round:users=2,rounds=3,system=32,history=48,question=16,output=32"
    rows = generators.generate(spec, limit=100, rng=rng.stream(0, "w")).rows
    for user in ("user-0", "user-1"):
        turns = [ids_of(row) for row in rows if row.session == user]
        assert [len(turn) for turn in turns] == [6, 9, 12]
        assert turns[2][:9] == turns[1]
        assert turns[1][:6] == turns[0]
    assert ids_of(rows[0])[:2] == ids_of(rows[1])[:2]
    assert not set(ids_of(rows[0])[2:]) & set(ids_of(rows[1])[2:])


def test_the_limit_cuts_and_the_seed_orders() -> None:
    def sessions(seed: int) -> list[str]:
        return [row.session for row in generators.generate("shared-prefix", limit=50, rng=rng.stream(seed, "w")).rows]

    assert sessions(1) == sessions(1) != sessions(2)
    assert len(sessions(1)) == 50


BAD = ["shared-prefix:group=3", "shared-prefix:groups=-1", "multi-round:users", "multi-round:users=0"]


@pytest.mark.parametrize("spec", BAD)
def test_a_parameter_that_does_not_fit_is_named(spec: str) -> None:
    with pytest.raises(LoadError):
        generators.generate(spec, limit=5, rng=rng.stream(0, "w"))
