"""What commands answer to scripts, and what a watch does while its control plane is away."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from headway.__main__ import dispatch
from headway.errors import UsageError
from proto import fleet_pb2, fleet_pb2_grpc, routing_pb2, routing_pb2_grpc, trainer_pb2, trainer_pb2_grpc
from runtime.about import version
from tests.waiting import wait_until

pytestmark = pytest.mark.usefixtures("own_home")


class Fleet(fleet_pb2_grpc.FleetServicer):
    def ListWorkers(self, request: Any, context: Any) -> fleet_pb2.WorkerList:  # noqa: N802
        return fleet_pb2.WorkerList(workers=[fleet_pb2.WorkerStatus(worker="w1", alive=True)], policy="lmetric")

    def GetPolicy(self, request: Any, context: Any) -> fleet_pb2.Policy:  # noqa: N802
        return fleet_pb2.Policy(name="lmetric", available=["lmetric", "prefix"])


class Routing(routing_pb2_grpc.RoutingServicer):
    def Explain(self, request: Any, context: Any) -> routing_pb2.Explanation:  # noqa: N802
        return routing_pb2.Explanation(decision_id=7, policy="lmetric")


class Trainer(trainer_pb2_grpc.TrainerServicer):
    def ListModels(self, request: Any, context: Any) -> Any:  # noqa: N802
        return trainer_pb2.ModelList(samples=12)

    def GetModel(self, request: Any, context: Any) -> trainer_pb2.Model:  # noqa: N802
        return trainer_pb2.Model(model_id=request.model_id)

    def Rollback(self, request: Any, context: Any) -> trainer_pb2.Model:  # noqa: N802
        return trainer_pb2.Model(model_id="before")


@contextmanager
def served(target: str) -> Iterator[str]:
    server = grpc.server(ThreadPoolExecutor(2))
    fleet_pb2_grpc.add_FleetServicer_to_server(Fleet(), server)
    routing_pb2_grpc.add_RoutingServicer_to_server(Routing(), server)
    trainer_pb2_grpc.add_TrainerServicer_to_server(Trainer(), server)
    server.add_insecure_port(target)
    server.start()
    try:
        yield target
    finally:
        server.stop(0).wait()


@pytest.mark.parametrize(
    ("line", "field", "value"),
    [
        ("workers --json", "policy", "lmetric"),
        ("policy --json", "available", ["lmetric", "prefix"]),
        ("explain --json", "decision_id", "7"),
        ("models --json", "samples", "12"),
        ("models list --json", "samples", "12"),
        ("models --json show m1", "model_id", "m1"),
        ("models show m1 --json", "model_id", "m1"),
        ("models rollback --json", "model_id", "before"),
    ],
)
def test_the_answer_is_one_json_object(
    line: str, field: str, value: object, short_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command, *arguments = line.split()
    with served(f"unix:{short_dir}/s") as target:
        flag = "--trainer" if command == "models" else "--control"
        assert dispatch([command, flag, target, *arguments]) == 0
    assert json.loads(capsys.readouterr().out)[field] == value


def test_a_watch_outlives_its_control_plane(short_dir: Path) -> None:
    target = f"unix:{short_dir}/s"
    shown = short_dir / "shown"
    command = [sys.executable, "-m", "headway", "workers", "--watch", "--control", target]
    environment = {**os.environ, "COLUMNS": "200", "TERM": "xterm", "FORCE_COLOR": "1"}
    with shown.open("w") as out, served(target):
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=environment)
        wait_until(lambda: shown.read_text().count("w1") > 1, what="it has been redrawn", seconds_max=30)
    try:
        wait_until(lambda: "no control plane answers" in shown.read_text(), what="it says so", seconds_max=30)
        before = shown.stat().st_size
        with served(target):
            wait_until(lambda: "w1" in shown.read_text()[before:], what="it goes on", seconds_max=30)
            assert process.poll() is None
    finally:
        process.terminate()
        process.wait(30)


def test_the_version_is_told_and_a_slip_is_guessed(capsys: pytest.CaptureFixture[str]) -> None:
    assert dispatch(["--version"]) == 0
    assert capsys.readouterr().out == f"headway {version()}\n"
    with pytest.raises(UsageError, match=r"no command 'wrokers' \(did you mean workers\?\)"):
        dispatch(["wrokers"])
