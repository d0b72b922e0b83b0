"""`headway profile` on a running fleet: a stack of real processes, interrupted and resumed, and fleets that are not there."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from headway.__main__ import dispatch
from headway.errors import UsageError
from loadgen import wildchat
from prediction import dataset
from tests.e2e.stack import RunningStack, running_stack
from tests.fakes.sse_server import complete, in_thread
from tests.loadgen import wildchat_rows
from tests.waiting import wait_until

pytestmark = pytest.mark.slow

SPEED = 8
FEW = ("--rates", "20,60", "--mixes", "mixed,<128", "--overlaps", "0.5", "--outputs", "short", "--step-s", "6", "--rows", "150")


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStack]:
    home = tmp_path_factory.mktemp("home")
    with running_stack(home, "--preset", "tiny-cpu", "--speed", str(SPEED), "--no-trainer", workers=2) as running:
        yield running


def command(stack: RunningStack, *argv: object) -> tuple[list[str], dict[str, str]]:
    return [sys.executable, "-m", "headway", "profile", *map(str, argv)], {**os.environ, "HEADWAY_HOME": str(stack.home)}


def test_a_sweep_that_is_interrupted_goes_on_and_loses_and_doubles_nothing(stack: RunningStack, tmp_path: Path) -> None:
    run = tmp_path / "run"
    argv, environment = command(stack, *FEW, "--policy", "lmetric,round_robin", "--run-dir", run)
    process = subprocess.Popen(argv, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_until(lambda: list(run.glob("parts/*.parquet")), seconds_max=60, what="a first part")
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said.strip().endswith(f"profile: interrupted; --resume --run-dir {run} goes on")
    plan = json.loads((run / "plan.json").read_text())
    before = {path.name: path.stat().st_mtime_ns for path in run.glob("parts/*.parquet")}
    assert 0 < len(before) < len(plan["steps"])
    assert not (run / "data.parquet").exists()

    argv, environment = command(stack, "--resume", "--run-dir", run)
    ended = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=110, check=False)
    assert ended.returncode == 0, ended.stderr
    for name, stamp in before.items():
        assert (run / "parts" / name).stat().st_mtime_ns == stamp, "what was finished is not played again"
    planned = sum(step["requests"] for step in plan["steps"])
    assert f"profile: {planned}/{planned}, {planned} rows, 0 failed" in ended.stderr

    samples = dataset.read(run / "data.parquet")
    assert len(set(samples.request_id)) == len(samples) == planned
    assert np.array_equal(samples.rows, dataset.read(run / "data.csv").rows)
    _check_rows(pq.read_table(run / "data.parquet").to_pandas())


def _check_rows(table: object) -> None:
    import pandas as pd

    assert isinstance(table, pd.DataFrame)
    assert set(table.worker) == {"worker-1", "worker-2"}
    assert set(table.policy) == {"lmetric", "round_robin"}
    assert (table.speed == SPEED).all()
    assert (table.ttft_s > 0).all()
    assert (table.ttft_s <= table.e2e_s + 1e-6).all()
    assert (table.output_tokens == table.max_tokens).all(), "answers have the length that was asked for"
    assert (table.matched_tokens <= table.input_tokens).all()
    assert (table.cached_tokens >= 0).all(), "the engine says what it held"
    assert (table.engine_age_s >= 0).all(), "no page from after the decision"
    assert table.engine_age_s.median() < 0.3 * SPEED, "ten pages a second of the machine's time"
    assert table.engine_running.max() > 0
    assert table.decided_at.is_monotonic_increasing


def test_a_fleet_without_workers_is_refused(redis_url: str, tmp_path: Path) -> None:
    with in_thread(complete) as server, pytest.raises(UsageError, match="no worker is registered in the fleet's Redis"):
        dispatch(["profile", "--url", server.url, "--redis-url", redis_url, "--run-dir", str(tmp_path / "p")])


def test_a_fleet_whose_redis_does_not_answer_is_refused(tmp_path: Path) -> None:
    with in_thread(complete) as server, pytest.raises(UsageError, match="the fleet's Redis cannot be read"):
        dispatch(["profile", "--url", server.url, "--redis-url", "redis://127.0.0.1:1", "--run-dir", str(tmp_path / "p")])


def test_a_proxy_that_does_not_answer_is_refused(redis_url: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"127\.0\.0\.1:1 does not answer"):
        dispatch(["profile", "--url", "http://127.0.0.1:1", "--redis-url", redis_url, "--run-dir", str(tmp_path / "p")])


def test_a_processed_workload_is_replayed_and_profiled_on_a_running_fleet(stack: RunningStack, tmp_path: Path) -> None:
    rows = [wildchat_rows.conversation(f"c{n}", f"question {n} " * (5 * n + 2), "an answer of five words") for n in range(12)]
    workload = tmp_path / wildchat.FILE
    source = wildchat_rows.write(tmp_path / "data", rows)
    assert wildchat.prepare(str(source), workload, wildchat.Wanted(), lambda text: len(text) // 4).total == 12
    argv, environment = command(stack, "--workload", workload, "--rates", "40", "--mixes", "mixed", "--rows", 24, "--step-s", 1)
    run = tmp_path / "run"
    ended = subprocess.run(
        [*argv, "--endpoint", "chat", "--run-dir", str(run)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    table = pq.read_table(run / "data.parquet").to_pandas()
    assert len(table) >= 24
    assert (table.output_tokens == 5).all(), "answers are as long as the recorded ones"
    replay = [sys.executable, "-m", "headway", "replay", str(workload), "--rate", "50", "--out", str(tmp_path / "replay.jsonl")]
    ended = subprocess.run(replay, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 0, ended.stderr
    assert "12 ok, 0 failed" in ended.stdout
