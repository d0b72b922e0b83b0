"""LightGBM on a Dask cluster: two real workers of this machine, each a process, and a scheduler."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import distributed
import pytest

from headway.__main__ import UsageError, dispatch
from prediction import dataset
from tests.trainer.traffic import outcomes, samples
from trainer.clusters import ClusterError, connect
from trainer.train import train


@pytest.fixture(scope="module")
def scheduler() -> Iterator[str]:
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, host="127.0.0.1"
    ) as cluster:
        yield cluster.scheduler_address


@pytest.mark.slow
def test_a_model_fitted_on_two_workers_is_as_good_as_one_fitted_here(scheduler: str) -> None:
    told: list[float] = []
    data = samples(2_500, 6)
    there = train(
        data,
        kind="lightgbm",
        model_id="there",
        seed=1,
        now_unix=0.0,
        fit=connect(scheduler.removeprefix("tcp://")),
        tell=lambda stage, done, _: told.append(done) if stage == "fit" else None,
    )
    here = train(data, kind="lightgbm", model_id="here", seed=1, now_unix=0.0)
    assert there.bundle.files["p50.txt"] != here.bundle.files["p50.txt"]
    assert there.scores.overall.mape == pytest.approx(here.scores.overall.mape, rel=0.15)
    assert 0.85 <= there.scores.overall.coverage_p90 <= 0.95
    assert told[-1] == 1.0


@pytest.mark.slow
def test_the_command_trains_there(scheduler: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "data.parquet"
    dataset.write(dataset.from_outcomes(outcomes(2_000, 1)), path)
    assert dispatch(["train", "--from", str(path), "--dask", scheduler, "--out", str(tmp_path / "models")]) == 0
    assert "lightgbm" in capsys.readouterr().out
    assert len(list((tmp_path / "models").glob("lightgbm-*"))) == 1


def test_a_cluster_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match=r"no cluster with workers answers at 127\.0\.0\.1:1"):
        connect("127.0.0.1:1", connect_s_max=1.0)
    path = tmp_path / "data.parquet"
    dataset.write(dataset.from_outcomes(outcomes(300, 1)), path)
    for address in ("nowhere", "ftp://x:1"):
        with pytest.raises(UsageError, match="--dask: no cluster with workers answers"):
            dispatch(["train", "--from", str(path), "--dask", address])
