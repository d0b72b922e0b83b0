"""Mistakes on the command line are one sentence before anything starts, and what a command prints can be read."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from headway import runfile
from headway.__main__ import dispatch
from headway.errors import UsageError
from headway.explain import render, show
from proto import routing_pb2
from tests.e2e.stack import command_line, descendants
from tests.waiting import wait_until

pytestmark = pytest.mark.usefixtures("own_home")


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("explain ffffffffffffffffffffffff", "not a decision id"),
        ("explain 0000000000000000", "not a decision id"),
        ("up --speed nan", "--speed"),
        ("up --policy best", "no policy 'best'; there are round_robin"),
        ("up --redis-url host:6379", "redis://"),
        ("up --tokenizer /some/where", "--engine"),
        ("demo --policy best", "no policy 'best'"),
        ("simulate --json /no/such/place/x", "no directory /no/such/place"),
        ("simulate --experiment slowdown --plot /tmp", "is a directory"),
        ("bench proxy --json /no/such/place/x", "no directory /no/such/place"),
        ("train --from x --json /no/such/place/x", "no directory /no/such/place"),
        ("profile --simulate --run-dir /proc/x", "/proc/x"),
    ],
)
def test_a_mistake_is_told_before_anything_starts(line: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        dispatch(line.split())


def test_a_log_or_a_directory_that_cannot_be_written_is_one_sentence(
    tmp_path: Path, free_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = ["up", "--workers", "1", "--engine", "http://127.0.0.1:1", *("--port", str(free_port))]
    line += ["--grpc-port", "0", "--metrics-port", "0"]
    with pytest.raises(UsageError, match=r"the log .* cannot be written: Is a directory"):
        dispatch([*line, "--log", str(tmp_path)])
    monkeypatch.setenv("HEADWAY_HOME", "/proc/none")
    with pytest.raises(UsageError, match="/proc/none cannot be made"):
        dispatch(line)


def test_a_key_needs_a_tenant(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--tenant"):
        dispatch(["keys", "new", "--tenant", " ", "--keys-file", str(tmp_path / "keys")])
    assert not (tmp_path / "keys").exists()


def test_a_stack_beside_one_that_is_up_is_refused() -> None:
    runfile.write(pid=os.getpid(), url="http://127.0.0.1:1")
    with pytest.raises(UsageError, match=r"up here already, at http://127\.0\.0\.1:1"):
        dispatch(["up"])


def engines(parent: int, directory: Path) -> list[int]:
    """Children that are the benchmark's engine, in either of its languages."""
    lines = {pid: command_line(pid) for pid in descendants(parent)}
    compiled, interpreted = str(directory / "backend"), "headway.bench_proxy.backend"
    return [pid for pid, line in lines.items() if line[:1] == [compiled] or interpreted in line]


def test_a_command_that_is_told_to_end_leaves_nothing_behind(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "headway", "bench", "proxy", "--routers", "headway:round_robin", "--keep", str(tmp_path)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        started = wait_until(lambda: engines(process.pid, tmp_path), what="it has started its engine", seconds_max=60)
        process.terminate()
        assert process.wait(60) == 128 + signal.SIGTERM
        assert not [command_line(pid) for pid in started if command_line(pid)]
    finally:
        process.kill()


@pytest.mark.parametrize("width", [20, 80, 200])
@pytest.mark.parametrize("every_feature", [False, True])
def test_every_feature_of_every_candidate_is_shown_whole(width: int, every_feature: bool) -> None:
    told = routing_pb2.Explanation(decision_id=1, policy="lmetric")
    for number in range(8):
        view = told.candidates.add(worker=f"worker-{number}", chosen=number == 3)
        view.features.update({f"feature_{feature}": 1_000_000.0 + number for feature in range(30)})
        view.features.update(dict.fromkeys(("uncached_tokens", "active", "running", "waiting"), 2000000.0 + number))
    console = Console(width=width, file=io.StringIO(), record=True)
    show(render(told, every_feature=every_feature), console)
    text = console.export_text()
    lines = [line.split() for line in text.splitlines()]
    order = (3, 0, 1, 2, 4, 5, 6, 7)  # the chosen one first
    if every_feature:
        (row,) = [line for line in lines if line[:1] == ["feature_29"]]
        assert row[1:] == [f"{1_000_000 + number:,}" for number in order]
    rows = [line for line in lines if "0.000" in line]
    assert [line[:2] for line in rows] == [["->", "worker-3"], *([f"worker-{n}", f"{2_000_000 + n:,}"] for n in order[1:])]
    assert "…" not in text
