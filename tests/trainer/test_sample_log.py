"""Samples on disk: bounded, none lost, none twice."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest

from contract.features import FEATURES, INDEX
from contract.outcome import End
from prediction import dataset
from tests.trainer.test_registry import Crash, FailingDisk, crash
from tests.trainer.traffic import outcomes
from trainer.durable import Disk
from trainer.sample_log import START, SampleLog

SEGMENTS_MAX = 8


def opened(directory: Path, *, disk: Disk | None = None, recent_max: int = 50_000, kept_max: int = 50_000) -> SampleLog:
    return SampleLog(
        directory,
        rng=np.random.default_rng(0),
        disk=disk,
        recent_max=recent_max,
        kept_max=kept_max,
        segments_max=SEGMENTS_MAX,
    )


def ids(log: SampleLog) -> list[int]:
    return sorted(log.dataset(1_000_000).table.column("decision_id").to_pylist())


def test_a_process_that_starts_goes_on_where_the_disk_ends(tmp_path: Path) -> None:
    log = opened(tmp_path)
    assert log.position == START
    log.take(outcomes(20, 1), "17-3")
    log.flush()
    log.take(outcomes(20, 2, first_id=21), "18-0")  # never flushed
    assert len(log) == 40
    again = opened(tmp_path)
    assert again.position == "17-3"
    assert ids(again) == list(range(1, 21))


def test_an_outcome_that_comes_twice_counts_once_across_restarts_too(tmp_path: Path) -> None:
    log = opened(tmp_path)
    assert len(log.take(outcomes(20, 1), "1-0")) == 20
    assert log.take(outcomes(20, 1), "2-0") == []
    log.flush()
    again = opened(tmp_path)
    assert len(again.take(outcomes(25, 1), "3-0")) == 5
    assert again.duplicates == 20
    retried = [msgspec.structs.replace(one, attempt=1) for one in outcomes(2, 1)]
    assert len(again.take(retried, "4-0")) == 2


def test_what_is_no_sample_moves_the_position_only(tmp_path: Path) -> None:
    log = opened(tmp_path)
    assert log.take([msgspec.structs.replace(outcomes(1, 1)[0], end=End.RESET)], "9-0") == []
    assert (log.position, log.pending) == ("9-0", 0)


def test_the_directory_is_bounded_and_rare_states_survive(tmp_path: Path) -> None:
    log = opened(tmp_path, recent_max=1_000, kept_max=500)
    rare = []
    for number in range(100):
        batch = outcomes(50, number, first_id=1 + 50 * number)
        for one in batch:
            one.features[INDEX["active"]] = 5.0
        if number % 10 == 0:
            batch[0].features[INDEX["active"]] = 120.0
            rare.append(batch[0].decision_id)
        log.take(batch, f"{number + 1}-0")
        log.flush()
    kept = ids(log)
    assert len(kept) == len(log) == len(set(kept))
    assert 1_000 <= len(kept) <= 1_000 + 500 + 2_000
    assert len(list(tmp_path.iterdir())) <= SEGMENTS_MAX + 2
    assert set(rare) <= set(kept)
    assert set(range(4_001, 5_001)) <= set(kept)
    assert ids(opened(tmp_path)) == kept


def test_a_crash_at_any_point_loses_nothing_that_was_on_disk_and_brings_nothing_twice(tmp_path: Path) -> None:
    crashes = 0
    batches = [outcomes(5, number, first_id=1 + 5 * number) for number in range(8)]
    for steps in range(48):
        directory = tmp_path / str(steps)
        log = opened(directory, disk=FailingDisk(steps, crash), recent_max=10_000)
        flushed = 0
        try:
            for number, batch in enumerate(batches):
                log.take(batch, f"{number + 1}-0")
                log.flush()
                flushed = number + 1
        except Crash:
            crashes += 1
        again = opened(directory)
        reached = int(again.position.split("-")[0])
        assert reached in (flushed, flushed + 1)
        assert len(again) == 5 * reached
        assert ids(again) == list(range(1, 5 * reached + 1)) if reached else True
    assert crashes > 27


def test_a_crash_while_the_reservoir_takes_in_segments_brings_nothing_twice(tmp_path: Path) -> None:
    batches = [outcomes(5, number, first_id=1 + 5 * number) for number in range(12)]
    whole = opened(tmp_path / "whole", recent_max=10, kept_max=10_000)
    for number, batch in enumerate(batches):
        whole.take(batch, f"{number + 1}-0")
        whole.flush()
    assert list((tmp_path / "whole").glob("kept-*"))
    assert ids(whole) == list(range(1, 12 * 5 + 1))
    crashes = 0
    for steps in range(5 * SEGMENTS_MAX, 5 * 12 + 20):
        directory = tmp_path / str(steps)
        log = opened(directory, disk=FailingDisk(steps, crash), recent_max=10, kept_max=10_000)
        try:
            for number, batch in enumerate(batches):
                log.take(batch, f"{number + 1}-0")
                log.flush()
        except Crash:
            crashes += 1
        again = opened(directory)
        reached = int(again.position.split("-")[0])
        assert ids(again) == list(range(1, 5 * reached + 1))
        assert len(again) == 5 * reached
    assert crashes > 15


def test_another_builds_samples_are_left_out_not_fatal(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    log = opened(tmp_path)
    log.take(outcomes(5, 1), "1-0")
    log.flush()
    table = dataset.from_outcomes(outcomes(5, 2, first_id=50)).drop_columns([FEATURES[0]])
    dataset.write(table, tmp_path / "seg-000000000000002-0000000000.parquet")
    (tmp_path / "seg-000000000000003-0000000000.parquet").write_bytes(b"")
    again = opened(tmp_path)
    assert ids(again) == [1, 2, 3, 4, 5]
    assert again.position == "3-0"
    assert again.dataset(1_000).table.num_rows == len(again)
    assert [record.message for record in caplog.records] == 2 * [
        "samples left out"
    ]  # once a file, however often it is looked at


def test_a_limit_draws_and_keeps_rare_states(tmp_path: Path) -> None:
    log = opened(tmp_path)
    batch = outcomes(2_000, 1)
    for one in batch:
        one.features[INDEX["active"]] = 5.0
    batch[7].features[INDEX["active"]] = 120.0
    log.take(batch, "1-0")
    drawn = log.dataset(200)
    assert len(drawn) == 200
    assert 8 in drawn.table.column("decision_id").to_pylist()


def test_an_unwritable_place_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        opened(tmp_path / "file" / "samples")
