"""Samples on disk and in memory."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.csv
import pytest

from contract.features import FEATURES, VERSION
from contract.outcome import End
from prediction import dataset
from prediction.dataset import DatasetError
from tests.trainer.traffic import outcomes


def test_parquet_and_csv_hold_the_same(tmp_path: Path) -> None:
    table = dataset.from_outcomes(outcomes(50, 1))
    dataset.write(table, tmp_path / "a.parquet")
    pyarrow.csv.write_csv(table, tmp_path / "b.csv")
    first, second = dataset.read(tmp_path / "a.parquet"), dataset.read(tmp_path / "b.csv")
    assert np.array_equal(first.rows, second.rows)
    assert np.array_equal(first.ttft_s, second.ttft_s)
    assert first.rows.flags.c_contiguous
    assert len(dataset.read(tmp_path)) == 100


def test_only_what_streamed_and_completed_teaches() -> None:
    good = outcomes(4, 1)
    replace = msgspec.structs.replace
    bad = [
        replace(good[0], streamed=False),
        replace(good[0], end=End.RESET),
        replace(good[0], ttft_s=-1.0),
        replace(good[0], features=[]),
        replace(good[0], feature_version=VERSION - 1),
    ]
    assert len(dataset.from_outcomes(good + bad)) == 4


def test_samples_come_in_the_order_of_their_decisions() -> None:
    shuffled = outcomes(20, 1)[::-1]
    read = dataset.of_table(dataset.from_outcomes(shuffled))
    assert np.all(np.diff(read.decided_at) > 0)
    assert read.request_id[0] == "r1"


def test_rows_with_numbers_that_are_none_are_left_out() -> None:
    table = dataset.from_outcomes(outcomes(10, 1))
    values = table.column("ttft_s").to_numpy().copy()
    values[3] = np.nan
    table = table.set_column(table.schema.get_field_index("ttft_s"), "ttft_s", pa.array(values))
    assert len(dataset.of_table(table)) == 9


def test_more_columns_do_no_harm_and_taking_keeps_rows_together() -> None:
    table = dataset.from_outcomes(outcomes(10, 1)).append_column("level", pa.array(range(10)))
    taken = dataset.of_table(table).take(np.array([2, 5]))
    assert taken.table.column("level").to_pylist() == [2, 5]
    assert list(taken.request_id) == ["r3", "r6"]


def test_bad_files_are_refused_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no such file"):
        dataset.read(tmp_path / "nowhere")
    with pytest.raises(DatasetError, match=r"no \.parquet or \.csv"):
        dataset.read(tmp_path)
    (tmp_path / "x.parquet").write_bytes(b"not parquet")
    with pytest.raises(DatasetError, match=r"x\.parquet"):
        dataset.read(tmp_path)
    table = dataset.from_outcomes(outcomes(3, 1))
    with pytest.raises(DatasetError, match="no column 'ttft_s'"):
        dataset.of_table(table.drop_columns(["ttft_s"]))
    with pytest.raises(DatasetError, match=f"no column '{FEATURES[0]}'"):
        dataset.of_table(table.drop_columns([FEATURES[0]]))
    old = table.set_column(
        table.schema.get_field_index("feature_version"), "feature_version", pa.array([VERSION - 1] * 3, pa.int32())
    )
    with pytest.raises(DatasetError, match=f"version {VERSION - 1}"):
        dataset.of_table(old)
    with pytest.raises(DatasetError, match="no samples"):
        dataset.of_table(table.slice(0, 0))
    text = table.set_column(table.schema.get_field_index("ttft_s"), "ttft_s", pa.array(["soon"] * 3))
    with pytest.raises(DatasetError, match="ttft_s"):
        dataset.of_table(text)
