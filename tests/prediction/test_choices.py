"""How a model would have chosen, where the truth is known at every worker."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from contract.features import FEATURES, VERSION
from prediction import choices, dataset
from prediction.choices import SCHEMA, Choices
from prediction.errors import DatasetError


def table(ttft_s: list[list[float]], *, version: int = VERSION) -> pa.Table:
    flat = [one for row in ttft_s for one in row]
    count = len(flat)
    workers = len(ttft_s[0])
    columns = [pa.array(np.full(count, float(place))) for place in range(len(FEATURES))]
    return pa.Table.from_arrays(
        [
            *columns,
            pa.array([place // workers for place in range(count)], pa.int64()),
            pa.array([f"w{place % workers}" for place in range(count)]),
            pa.array(flat),
            pa.array([0.5] * count),
            pa.array([version] * count, pa.int32()),
        ],
        schema=SCHEMA,
    )


def made(tmp_path: Path, ttft_s: list[list[float]]) -> Choices:
    dataset.write(table(ttft_s), tmp_path / "choices.parquet")
    return choices.read(tmp_path / "choices.parquet")


def test_a_file_becomes_choices_in_their_order(tmp_path: Path) -> None:
    found = made(tmp_path, [[1.0, 2.0, 3.0], [0.3, 0.2, 0.1]])
    assert found.ttft_s.tolist() == [[1.0, 2.0, 3.0], [0.3, 0.2, 0.1]]
    assert found.rows.shape == (6, len(FEATURES))
    assert found.rows.flags.c_contiguous
    one = made(tmp_path, [[1.0, 2.0]])
    assert (len(one), one.ttft_s.shape) == (1, (1, 2))


def test_choices_are_judged_where_candidates_differ(tmp_path: Path) -> None:
    truth = [
        [0.10, 0.20, 0.40],  # all apart, and chosen rightly
        [0.10, 0.20, 0.40],  # chosen wrongly: twice as long
        [0.10, 0.40, 0.41],  # the first is apart, the others are not; right
        [0.100, 0.105, 0.40],  # the best two are as good: the second is chosen
        [2.00, 2.01, 2.02],  # nothing to choose
    ]
    guess = [[1, 2, 3], [2, 1, 3], [1, 2, 3], [2, 1, 3], [2, 3, 1]]
    found = made(tmp_path, truth)
    by_zone, overall = choices.judge(found, np.array(guess, dtype=float).reshape(-1))
    low, medium, high = by_zone
    assert (low.choices, medium.choices, high.choices, overall.choices) == (4, 1, 0, 5)
    assert (low.apart, low.rank_apart) == (2, 0.5)
    assert (low.first, low.rank_first) == (3, pytest.approx(2 / 3))
    assert low.near == pytest.approx(3 / 4)
    assert low.regret == pytest.approx((0 + 1.0 + 0 + 0.05) / 4)
    assert (medium.apart, medium.first) == (0, 0)
    assert np.isnan(medium.rank_apart)
    assert medium.regret == pytest.approx(0.01)
    assert np.isnan(high.regret)
    assert overall.regret == pytest.approx((1.0 + 0.05 + 0.01) / 5)


def test_the_truth_itself_never_errs(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    found = made(tmp_path, np.exp(rng.normal(0, 1, (200, 4))).tolist())
    _, overall = choices.judge(found, found.ttft_s.reshape(-1))
    assert (overall.rank_apart, overall.rank_first, overall.near, overall.regret) == (1.0, 1.0, 1.0, 0.0)
    assert overall.apart > 50


def test_what_is_no_file_of_choices_is_said(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no choices: no column"):
        path = tmp_path / "a.parquet"
        dataset.write(table([[1.0, 2.0]]).drop_columns(["choice"]), path)
        choices.read(path)
    with pytest.raises(DatasetError, match=f"version {VERSION + 1}"):
        dataset.write(table([[1.0, 2.0]], version=VERSION + 1), path)
        choices.read(path)
    with pytest.raises(DatasetError, match="candidates"):
        dataset.write(table([[1.0, 2.0], [3.0, 4.0]]).slice(0, 3), path)
        choices.read(path)
    with pytest.raises(DatasetError, match=r"nothing\.parquet"):
        choices.read(tmp_path / "nothing.parquet")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError, match=r"no \.parquet file"):
        choices.read(tmp_path / "empty")
