"""`headway profile --simulate --choices`: one request's TTFT at every worker, as it would have been."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from contract.features import FEATURES
from headway.__main__ import dispatch
from headway.errors import UsageError
from prediction import choices, dataset

SMALL = ("--simulate", "--preset", "tiny-cpu", "--workers", "3", "--levels", "0.6,1.2", "--mixes", "mixed", "--overlaps", "0.5")
FEW = (*SMALL, "--outputs", "short", "--rows", "100", "--requests-max", "60", "--step-s", "5")


def profile(*argv: object) -> int:
    return dispatch(["profile", *map(str, argv)])


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("run") / "p"
    assert profile(*FEW, "--choices", 15, "--run-dir", path) == 0
    return path


def test_every_choice_has_every_worker_and_each_its_own_time(asked: Path) -> None:
    made = choices.read(asked / "choices.parquet")
    assert len(made) >= 10
    assert made.ttft_s.shape == (len(made), 3)
    assert (made.ttft_s > 0).all()
    workers = np.array(made.table.column("worker").to_pylist()).reshape(-1, 3)
    assert {tuple(sorted(row)) for row in workers} == {("worker-0", "worker-1", "worker-2")}
    tokens = made.rows[:, FEATURES.index("input_tokens")].reshape(-1, 3)
    assert (tokens == tokens[:, :1]).all(), "one request, three workers"
    assert (made.ttft_s.max(axis=1) > 1.1 * made.ttft_s.min(axis=1)).any()


def test_where_it_went_in_truth_the_copy_tells_what_came_of_it(asked: Path) -> None:
    made, truth = choices.read(asked / "choices.parquet"), dataset.read(asked / "data.parquet")
    happened = {
        (worker, row.tobytes()): ttft_s
        for worker, row, ttft_s in zip(truth.worker.tolist(), truth.rows, truth.ttft_s.tolist(), strict=True)
    }
    workers = made.table.column("worker").to_pylist()
    pairs = [
        (foretold, happened[worker, row.tobytes()])
        for worker, row, foretold in zip(workers, made.rows, made.ttft_s.reshape(-1).tolist(), strict=True)
        if (worker, row.tobytes()) in happened
    ]
    assert len(pairs) >= len(made), "each was sent to one of them"
    assert [foretold for foretold, _ in pairs] == pytest.approx([ttft_s for _, ttft_s in pairs], rel=1e-9)


def test_a_run_that_is_asked_is_the_run_that_is_not(asked: Path, tmp_path: Path) -> None:
    assert profile(*FEW, "--run-dir", tmp_path / "q") == 0
    columns = [*FEATURES, "ttft_s", "e2e_s", "worker"]
    ours, theirs = (dataset.read(path / "data.parquet").table.select(columns) for path in (asked, tmp_path / "q"))
    assert ours.equals(theirs)


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ((*FEW, "--choices", "-1"), "--choices"),
        ((*FEW, "--workers", "1", "--choices", "5"), "two workers"),
        ((*FEW, "--choices", "5", "--policy", "predictive"), "predictive ranks by itself"),
        (("--choices", "5"), "--simulate"),
    ],
)
def test_what_cannot_be_asked_is_refused_in_one_line(tmp_path: Path, argv: tuple[str, ...], said: str) -> None:
    with pytest.raises(UsageError) as error:
        profile(*argv, "--run-dir", tmp_path / "p")
    assert said in str(error.value)
    assert "\n" not in str(error.value)
