"""Copies and changes of one shelf, against a plain counter."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker_agent.shelf import Shelf

BLOCKS = st.lists(st.integers(1, 6), max_size=5)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["put", "put", "drop", "drop"]), BLOCKS), st.sampled_from([("clear", []), ("take", [])])
    ),
    max_size=40,
)


class Mirror:
    """Who is told of every change and of nothing else."""

    def __init__(self, shelf: Shelf) -> None:
        self.shelf = shelf
        self.held: set[int] = set()

    def take(self) -> None:
        moves, cleared = self.shelf.moves, self.shelf.cleared
        added, removed = (set(side) for side in self.shelf.take())
        self.held = set() if cleared else self.held
        assert len(added) + len(removed) <= moves
        assert not added & removed
        assert not added & self.held, "announced twice"
        assert removed <= self.held, "removed what nobody was told of"
        self.held = (self.held | added) - removed
        assert not self.shelf.changed
        assert not self.shelf.moves


@given(steps=STEPS, log_max=st.sampled_from([0, 3, 1_000]))
def test_it_holds_what_has_a_copy_and_whoever_is_told_the_changes_knows_it(
    steps: list[tuple[str, list[int]]], log_max: int
) -> None:
    shelf, copies = Shelf(log_max), Counter[int]()
    mirror = Mirror(shelf)
    for step, blocks in steps:
        if step == "put":
            shelf.put(blocks)
            copies.update(blocks)
        elif step == "drop":
            shelf.drop(blocks)
            for block in blocks:
                copies[block] = max(0, copies[block] - 1)
        elif step == "clear":
            shelf.clear()
            copies.clear()
        else:
            mirror.take()
        assert shelf.held == {block for block, count in copies.items() if count}
        assert shelf.total == copies.total()
    mirror.take()
    assert mirror.held == shelf.held


@pytest.mark.parametrize(
    ("moves", "added", "removed"),
    [
        ("+1 +2 -7 -8", {1, 2}, {7, 8}),
        ("+1 -7 -1", set(), {7}),
        ("+1 -7 +7", {1}, set()),
        ("+1 -7 +7 -7", {1}, {7}),
        ("+1 -1 +1 -7", {1}, {7}),
    ],
)
def test_only_what_moved_an_odd_number_of_times_is_told(moves: str, added: set[int], removed: set[int]) -> None:
    shelf = Shelf()
    shelf.put([7, 8, 9])
    shelf.take()
    for move in moves.split():
        (shelf.put if move[0] == "+" else shelf.drop)([int(move[1:])])
    assert [set(side) for side in shelf.take()] == [added, removed]


def test_what_nobody_asks_for_does_not_pile_up() -> None:
    shelf = Shelf(100)
    shelf.put(list(range(50)))
    shelf.take()
    for start in range(1_000, 100_000, 10):
        shelf.put(list(range(start, start + 10)))
        shelf.drop(list(range(start, start + 10)))
        assert shelf.moves <= 120
    assert [len(side) for side in shelf.take()] == [0, 0]


def test_the_time_is_that_of_the_first_change_since_the_last_take() -> None:
    shelf = Shelf()
    for at in (5.0, 6.0):
        shelf.stamp(at)
        shelf.put([int(at)])
    assert shelf.at == 5.0
    shelf.take()
    shelf.stamp(7.0)
    assert shelf.at == 7.0
