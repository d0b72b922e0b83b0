"""Trees that compiled code walks say what LightGBM's library says, to the last bit, or are not used."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prediction import booster, derive, few, trees
from prediction.booster import Booster
from prediction.bundle import Bundle
from tests.trainer.traffic import samples
from trainer.train import train

pytestmark = pytest.mark.skipif(trees.compiled is None, reason="the installation found no C compiler")

COLUMNS = len(derive.COLUMNS)
NEAR_ZERO = [0.0, -0.0, 1e-35, -1e-35, 1.1e-35, 1.00000001e-35, 1e-36, 5e-324]
VALUE = st.one_of(st.floats(), st.sampled_from(NEAR_ZERO), st.floats(-1e6, 1e6))
MISSING = {"none": {"use_missing": False}, "nan": {}, "zero": {"zero_as_missing": True}}
"""What a model takes for a value that is not there."""


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return train(samples(1_500, 1), kind="lightgbm", model_id="trees-1", seed=1, now_unix=0.0).bundle


@pytest.fixture(scope="module")
def text(bundle: Bundle) -> str:
    return bundle.files[booster.P50_FILE].decode()


@pytest.fixture(scope="module", params=MISSING)
def odd(request: pytest.FixtureRequest) -> str:
    """A model of three columns, of which some values are not there."""
    import lightgbm

    rng = np.random.default_rng(2)
    rows = rng.normal(size=(2_000, 3))
    rows[rng.random(rows.shape) < 0.2] = np.nan
    rows[rng.random(rows.shape) < 0.2] = 0.0
    truth = np.nan_to_num(rows[:, 0], nan=2.0) * 2 + np.where(rows[:, 1] == 0.0, 3.0, np.isnan(rows[:, 1]) * 1.0)
    parameters = {"verbose": -1, "num_threads": 1, "num_leaves": 15, **MISSING[request.param]}
    return str(lightgbm.train(parameters, lightgbm.Dataset(rows, truth), 30).model_to_string())


def asked(text: str, values: list[float]) -> tuple[float, float]:
    """By trees, by the library."""
    made = Booster(text, columns=len(values))
    walked = trees.read(text, made)
    assert walked is not None
    row = np.array([values])
    return walked.ask(bytearray(row.tobytes()), 0)(), float(made.predict(row)[0])


@given(st.lists(VALUE, min_size=COLUMNS, max_size=COLUMNS))
def test_a_trained_model_says_the_same_of_any_row(text: str, values: list[float]) -> None:
    walked, said = asked(text, values)
    assert walked == said


@given(st.lists(VALUE, min_size=3, max_size=3))
def test_so_does_one_that_knows_of_values_that_are_not_there(odd: str, values: list[float]) -> None:
    walked, said = asked(odd, values)
    assert walked == said


def test_a_row_is_asked_as_it_is_then_and_each_for_itself(text: str) -> None:
    made = Booster(text, columns=COLUMNS)
    walked = trees.read(text, made)
    assert walked is not None
    rows = np.random.default_rng(3).lognormal(sigma=4.0, size=(4, COLUMNS))
    memory = bytearray(rows.nbytes)
    asks = [walked.ask(memory, place) for place in range(4)]
    del walked
    memory[:] = rows.tobytes()
    assert [ask() for ask in asks] == made.predict(rows).tolist()
    memory[:] = rows[::-1].tobytes()
    assert [ask() for ask in asks] == made.predict(rows[::-1].copy()).tolist()


def test_a_model_that_decides_uses_them(bundle: Bundle) -> None:
    raw = booster.load(bundle)
    assert None not in raw.walked


@pytest.mark.parametrize(
    "change", [("is_linear=0", "is_linear=1"), ("num_cat=0", "num_cat=1"), ("leaf_value=", "leaf_values=")]
)
def test_what_is_no_tree_of_numbers_is_left_to_the_library(text: str, change: tuple[str, str]) -> None:
    assert trees.read(text.replace(*change), Booster(text, columns=COLUMNS)) is None


def test_trees_that_say_something_else_are_not_used(text: str) -> None:
    head, rest = text.split("leaf_value=", 1)
    value, rest = rest.split(" ", 1)
    other = f"{head}leaf_value={float(value) + 1e-9} {rest}"
    assert trees.read(other, Booster(text, columns=COLUMNS)) is None


def test_a_model_without_a_split_is_one_leaf() -> None:
    walked = trees.compiled.Trees(2, [1, 1], [], [], [], [], [], [0.25, -1.0])
    assert walked.ask(bytearray(16), 0)() == -0.75


STUMP: list[Any] = [2, [2], [1], [0.5], [0], [-1], [-2], [1.0, 2.0]]


def test_a_tree_is_taken_as_it_is_written() -> None:
    memory = bytearray(np.array([9.0, 0.5, 9.0, 0.6]).tobytes())
    made = trees.compiled.Trees(*STUMP)
    assert [made.ask(memory, place)() for place in (0, 1)] == [1.0, 2.0]


@pytest.mark.parametrize(
    ("at", "wrong"),
    [
        (0, 0),
        (0, 70_000),
        (1, [0]),
        (1, [1.5]),
        (1, [3]),
        (1, [2e9]),
        (2, [2]),
        (2, [-1]),
        (2, [0.5]),
        (2, []),
        (4, [1]),
        (4, [12]),
        (5, [0]),
        (5, [1]),
        (5, [-3]),
        (6, [float("nan")]),
        (7, [1.0]),
    ],
)
def test_trees_that_lead_nowhere_are_refused(at: int, wrong: object) -> None:
    with pytest.raises(ValueError, match=r"leaf|numbers|columns"):
        trees.compiled.Trees(*STUMP[:at], wrong, *STUMP[at + 1 :])


def test_what_is_no_number_and_no_row_is_refused() -> None:
    with pytest.raises(TypeError):
        trees.compiled.Trees(*STUMP[:3], ["x"], *STUMP[4:])
    with pytest.raises(TypeError):
        trees.compiled.Trees(*STUMP[:3], None, *STUMP[4:])
    made = trees.compiled.Trees(*STUMP)
    for place in (-1, 2):
        with pytest.raises(ValueError, match="no row"):
            made.ask(bytearray(32), place)
    with pytest.raises(BufferError):
        made.ask(b"x" * 32, 0)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        made.ask(bytearray(32), 0)(1)  # type: ignore[call-arg]


def test_parts_of_a_text_are_its_head_and_trees(text: str) -> None:
    head, found = few.parts(text)
    assert head.startswith("tree\n")
    assert len(found) == text.count("\nTree=")
