"""`headway train` and `headway models`, as typed: on files, and against a trainer on a real Redis."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from headway.__main__ import UsageError, dispatch
from headway.embedded_redis import RedisServer
from prediction import dataset
from tests.prediction.test_choices import table as choice_table
from tests.trainer.process import PATIENCE_S, running, target
from tests.trainer.traffic import outcomes
from trainer.registry import Registry
from trainer.zoo import KINDS


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "data.parquet"
    dataset.write(dataset.from_outcomes(outcomes(2_000, 6)), path)
    return path


@pytest.fixture(scope="module")
def trainer() -> Iterator[str]:
    """Address of one that trains when asked only."""
    directory = Path(tempfile.mkdtemp(prefix="hw-"))
    server = RedisServer(directory)
    server.start()
    with running(directory, server.url, samples_min=1_000_000):
        with grpc.insecure_channel(target(directory)) as channel:
            grpc.channel_ready_future(channel).result(timeout=PATIENCE_S)
        yield target(directory)
    server.stop()
    shutil.rmtree(directory, ignore_errors=True)


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    capsys.readouterr()
    assert dispatch(list(arguments)) == 0
    return capsys.readouterr().out


def test_a_file_becomes_a_table_and_a_model_in_a_registry(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    figures = tmp_path / "figures.json"
    out = printed(capsys, "train", "--from", str(data), "--out", str(tmp_path / "models"), "--json", str(figures))
    for word in ("lightgbm", "low", "medium", "all", "MAPE", "p90 covers", "rank", "us/row"):
        assert word in out
    registry = Registry(tmp_path / "models")
    [model_id] = registry.ids()
    entry = registry.entry(model_id)
    assert entry is not None
    assert entry.scores is not None
    judged = json.loads(figures.read_text())["lightgbm"]["overall"]
    assert judged["mape"] == pytest.approx(entry.scores.overall.mape)
    assert judged["mape"] < 0.15


def test_a_model_is_judged_by_how_it_would_have_chosen(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dataset.write(choice_table([[0.1, 0.2], [2.0, 1.0], [3.0, 3.1]]), tmp_path / "choices.parquet")
    out = printed(capsys, "train", "--from", str(data), "--kind", "linear", "--choices", str(tmp_path / "choices.parquet"))
    for words in ("all apart", "near the best", "regret"):
        assert words in out
    with pytest.raises(UsageError, match="--choices: judges a model that is trained here"):
        dispatch(["train", "--from", str(data), "--cross", "--choices", str(tmp_path / "choices.parquet")])
    with pytest.raises(UsageError, match="no choices"):
        dispatch(["train", "--from", str(data), "--choices", str(data)])


def test_a_model_is_judged_by_other_traffic(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dataset.write(dataset.from_outcomes(outcomes(300, 2, slower=10.0)), tmp_path / "other.parquet")
    figures = tmp_path / "figures.json"
    asked = ("train", "--from", str(data), "--kind", "linear", "--json", str(figures))
    printed(capsys, *asked, "--judge-by", str(tmp_path / "other.parquet"))
    judged = json.loads(figures.read_text())["linear"]["overall"]
    assert judged["samples"] == 300
    assert judged["coverage_p90"] < 0.3, "ten times as slow as it was taught"
    with pytest.raises(UsageError, match="--judge-by: judges a model that is trained here"):
        dispatch(["train", "--from", str(data), "--cross", "--judge-by", str(data)])


def test_all_kinds_are_compared_in_one_table(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    figures = tmp_path / "figures.json"
    out = printed(capsys, "train", "--from", str(data), "--kind", "all", "--samples-max", "800", "--json", str(figures))
    said = json.loads(figures.read_text())
    assert list(said) == list(KINDS)
    assert all(kind in out for kind in KINDS)
    assert all(one["predict_us"] > 0 for one in said.values())
    assert said["linear"]["overall"]["mape"] > said["lightgbm"]["overall"]["mape"]


def test_in_a_cross_every_sample_is_judged_once(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    figures = tmp_path / "figures.json"
    printed(capsys, "train", "--from", str(data), "--kind", "linear", "--cross", "--json", str(figures))
    crossed = json.loads(figures.read_text())["linear"]
    assert crossed["overall"]["samples"] == 2_000
    assert sum(zone["samples"] for zone in crossed["zones"]) == 2_000
    printed(capsys, "train", "--from", str(data), "--kind", "linear", "--json", str(figures))
    once = json.loads(figures.read_text())["linear"]
    assert crossed["overall"]["mape"] == pytest.approx(once["overall"]["mape"], rel=0.2)
    assert crossed["overall"]["mape"] != once["overall"]["mape"]


def test_the_trainer_trains_serves_goes_back_and_judges(data: Path, trainer: str, capsys: pytest.CaptureFixture[str]) -> None:
    at = ("--trainer", trainer)
    assert "no model yet" in printed(capsys, "models", *at)
    made = []
    for kind in ("linear", "lightgbm"):
        last = printed(capsys, "train", "--from", str(data), "--submit", "--kind", kind, *at).splitlines()[-1]
        made.append(last.split()[0])
        assert "in shadow" in last or "rejected" in last
    first, second = made
    assert printed(capsys, "models", *at, "promote", first, "--force") == f"{first} serves\n"
    assert printed(capsys, "models", *at, "promote", second) == f"{second} serves\n"
    listed = printed(capsys, "models", *at, "list")
    assert next(line for line in listed.splitlines() if second in line).split()[1] == "serving"
    assert next(line for line in listed.splitlines() if first in line).split()[1] == "retired"
    shown = printed(capsys, "models", *at, "show", second)
    assert "serving" in shown
    assert "sha256" in shown
    assert "medium" in shown
    judged = printed(capsys, "models", *at, "evaluate", second, "--from", str(data))
    assert "2,000" in judged
    assert "p90 covers" in judged
    assert printed(capsys, "models", *at, "rollback") == f"{first} serves again\n"
    assert f"{second} rolled back: by hand" in printed(capsys, "models", *at)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--from", "/nowhere.parquet"], "no such file"),
        (["train", "--from", "DATA", "--kind", "oracle"], "--kind: no kind 'oracle'"),
        (["train", "--from", "DATA", "--samples-max", "-1"], "--samples-max"),
        (["train", "--from", "DATA", "--samples-max", "50"], "a model needs"),
        (["train", "--from", "DATA", "--out", "/proc/nothing"], "/proc/nothing"),
        (["train", "--from", "DATA", "--dask", "127.0.0.1:1", "--kind", "tree"], "--dask: fits the kind lightgbm only"),
        (["train", "--from", "DATA", "--cross", "--out", "x"], "--cross: makes figures"),
        (["train", "--from", "DATA", "--seed", "-5"], "--seed: -5 is not between"),
        (["train", "--submit"], "--submit needs --from"),
        (["train", "--kind", "all"], "--kind all"),
        (["train", "--trainer", "unix:/nowhere.sock"], "no trainer answers"),
        (["models", "--trainer", "unix:/nowhere.sock"], "no trainer answers"),
        (["models", "--trainer", "TRAINER", "show", "x"], "no model 'x'"),
        (["models", "--trainer", "TRAINER", "promote", "x"], "no model 'x'"),
        (["models", "--trainer", "TRAINER", "evaluate", "x"], "no model 'x'"),
        (["models", "--trainer", "TRAINER", "sing"], "invalid choice"),
        (["train", "--trainer", "TRAINER"], "no samples"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(arguments: list[str], message: str, data: Path, trainer: str) -> None:
    filled = [{"DATA": str(data), "TRAINER": trainer}.get(argument, argument) for argument in arguments]
    with pytest.raises(UsageError, match=r".") as refused:
        dispatch(filled)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)
