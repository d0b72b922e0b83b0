"""A few rows at a time: the numbers of the way for many, and no such way where the library would answer otherwise."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract.features import FEATURES
from prediction import booster, calibration, derive, few, predictor
from prediction.bundle import Bundle
from prediction.calibration import Calibration, Floats
from prediction.errors import BundleError
from prediction.few import Few, Single
from prediction.predictor import Calibrated
from tests.trainer.traffic import rows, samples
from trainer.train import train

MOST = 16
ROW = st.lists(st.floats(-1e9, 1e9), min_size=len(derive.COLUMNS), max_size=len(derive.COLUMNS))


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return train(samples(1_500, 1), kind="lightgbm", model_id="few-1", seed=1, now_unix=0.0).bundle


@pytest.fixture(scope="module")
def model(bundle: Bundle) -> Calibrated:
    loaded = predictor.load(bundle)
    assert isinstance(loaded, Calibrated)
    return loaded


@pytest.fixture(scope="module")
def raw(bundle: Bundle) -> booster.BoosterQuantiles:
    return booster.load(bundle)


def few_of(model: Calibrated) -> Few:
    made = model.few(MOST)
    assert made is not None
    return made


def by_few(model: Calibrated, asked: Floats) -> tuple[list[float], list[float]]:
    return asked_of(few_of(model), asked)


def by_single(model: Calibrated, asked: Floats) -> tuple[list[float], list[float]]:
    made = model.single(MOST)
    assert made is not None
    return singly(made, asked)


def by_library(model: Calibrated, asked: Floats) -> tuple[list[float], list[float]]:
    """As without compiled code."""
    raw = model._raw
    assert isinstance(raw, booster.BoosterQuantiles)
    return singly(Single(raw.p50, raw.spread, model._calibration, MOST, raw.bounds), asked)


def singly(made: Single, asked: Floats) -> tuple[list[float], list[float]]:
    columns = derive.inputs(asked)
    data = columns.tobytes()
    made.rows[: len(data)] = data
    starts, unknown = derive.log_estimate(columns).tolist(), derive.speed_unknown(asked).tolist()
    medians = [made.median(place, start) for place, start in enumerate(starts)]
    p90s = [made.p90(place, medians[place], unknown=unknown[place]) for place in reversed(range(len(asked)))]
    return [math.exp(few.cut(median)) for median in medians], [math.exp(p90) for p90 in reversed(p90s)]


WAYS = pytest.mark.parametrize("way", [by_few, by_single, by_library])
Way = Callable[[Calibrated, Floats], tuple[list[float], list[float]]]


def asked_of(made: Few, asked: Floats) -> tuple[list[float], list[float]]:
    columns = derive.inputs(asked)
    data = columns.tobytes()
    made.rows[: len(data)] = data
    return made.predict(derive.log_estimate(columns).tolist(), derive.speed_unknown(asked).tolist())


@WAYS
@pytest.mark.parametrize("count", [1, 2, 8, MOST])
def test_few_rows_are_answered_as_many_are(way: Way, count: int, model: Calibrated) -> None:
    for seed in range(20):
        asked = rows(count, np.random.default_rng(seed))
        for mine, theirs in zip(way(model, asked), model.predict(asked), strict=True):
            assert mine == pytest.approx(theirs.tolist(), rel=1e-12)


def test_rows_written_before_and_behind_do_not_matter(model: Calibrated) -> None:
    made = few_of(model)
    asked = rows(MOST, np.random.default_rng(3))
    whole, _ = asked_of(made, asked)
    first, _ = asked_of(made, asked[:3])
    assert first == whole[:3]


@WAYS
@given(values=st.lists(st.lists(st.floats(0, 1e9), min_size=len(FEATURES), max_size=len(FEATURES)), min_size=1, max_size=MOST))
def test_whatever_is_asked_both_ways_say_the_same(way: Way, model: Calibrated, values: list[list[float]]) -> None:
    asked = np.array(values)
    for mine, theirs in zip(way(model, asked), model.predict(asked), strict=True):
        assert mine == pytest.approx(theirs.tolist(), rel=1e-9)


@WAYS
@pytest.mark.parametrize(
    "calibrated",
    [
        Calibration((0.1, 0.2, 0.3)),
        Calibration((-2.0, -2.0, -2.0)),
        Calibration((0.0, 0.0, 0.0), math.log(30.0)),
        Calibration((9.0, 9.0, 9.0), 2.0),
    ],
)
def test_calibrations_are_applied_alike(way: Way, calibrated: Calibration, bundle: Bundle) -> None:
    """Among them rows of every zone, and endpoints whose speed is not known."""
    model = Calibrated(booster.load(bundle), calibrated)
    asked = rows(MOST, np.random.default_rng(5))
    asked[::3, FEATURES.index("prefill_tokens_per_s")] = 0.0
    asked[1::4, FEATURES.index("begins_s")] += 30.0
    asked[2::4, FEATURES.index("begins_s")] += 3.0
    asked[3, FEATURES.index("begins_s")] += 1e6  # beyond what is served
    for mine, theirs in zip(way(model, asked), model.predict(asked), strict=True):
        assert mine == pytest.approx(theirs.tolist(), rel=1e-12)


def test_another_kind_has_no_such_way() -> None:
    linear = train(samples(300, 1), kind="linear", model_id="linear-1", seed=1, now_unix=0.0).predictor
    assert isinstance(linear, Calibrated)
    assert linear.few(MOST) is None
    assert linear.single(MOST) is None


def test_two_that_ask_of_one_model_do_not_disturb_each_other(model: Calibrated) -> None:
    """As when it is swapped for itself."""
    asked = rows(4, np.random.default_rng(2))
    first = model.single(MOST)
    expected = by_single(model, asked)
    assert first is not None
    columns = derive.inputs(asked)
    first.rows[: columns.nbytes] = columns.tobytes()
    starts = derive.log_estimate(columns).tolist()
    assert [math.exp(few.cut(first.median(place, start))) for place, start in enumerate(starts)] == expected[0]


def test_a_library_that_reads_the_two_as_something_else_is_not_believed(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = few.side_by_side
    monkeypatch.setattr(few, "side_by_side", lambda first, second: right(second, first))
    loaded = predictor.load(bundle)
    assert isinstance(loaded, Calibrated)
    assert loaded.few(MOST) is None
    asked = rows(4, np.random.default_rng(1))
    monkeypatch.undo()
    expected = predictor.load(bundle).predict(asked)
    assert np.array_equal(loaded.predict(asked), expected)


@given(ROW)
def test_no_row_is_said_to_take_longer_than_the_trees_can_say(bundle: Bundle, model: Calibrated, values: list[float]) -> None:
    made = model.single(MOST)
    assert made is not None
    made.rows[: 8 * len(values)] = np.array(values).tobytes()
    assert made.median(0, 0.0) <= made.highest == few.most(bundle.files[booster.P50_FILE].decode()) < 5.0


@given(values=ROW, start=st.floats(-30.0, 30.0), offset=st.floats(-3.0, 3.0), beyond=st.floats(0.0, 4.0))
def test_no_p90_is_further_above_its_median_than_the_trees_can_say(
    raw: booster.BoosterQuantiles, values: list[float], start: float, offset: float, beyond: float
) -> None:
    made = Calibrated(raw, Calibration((0.0, offset, offset / 2), beyond)).single(MOST)
    assert made is not None
    made.rows[: 8 * len(values)] = np.array(values).tobytes()
    median = made.median(0, start)
    above, far_above = (made.p90(0, median, unknown=unknown) - few.cut(median) for unknown in (False, True))
    assert above <= made.widest + 1e-9
    assert far_above <= max(made.widest, made.beyond) + 1e-9


def test_of_trees_with_lines_in_their_leaves_nothing_is_known() -> None:
    assert few.most("tree\nleaf_value=1 2\nis_linear=0\nleaf_value=-3 -1\nis_linear=1\n") == math.inf
    assert few.most("tree\nleaf_value=1 2\nis_linear=0\nleaf_value=-3 -1\nis_linear=0\n") == 1.0


def test_what_is_no_model_is_refused(bundle: Bundle) -> None:
    text = bundle.files[booster.P50_FILE].decode()
    with pytest.raises(BundleError, match="not a LightGBM model"):
        few.side_by_side(text, "tree\n")
    with pytest.raises(BundleError, match="not a LightGBM model"):
        few.side_by_side(text[: len(text) // 2], text)


def test_the_zones_are_those_of_calibration() -> None:
    offsets = Calibration((1.0, 2.0, 3.0))
    edges = np.log(np.array([0.999, 1.0, 1.001, 9.999, 10.0, 10.001]))
    _, above = offsets.apply(edges, edges)
    assert np.allclose(np.log(above) - edges, [1, 2, 2, 2, 3, 3]), "an edge is in the zone above it"
    assert calibration.QUANTILE == 0.9
