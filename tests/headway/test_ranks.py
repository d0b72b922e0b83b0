"""Ranks on the command line: how a stack of them is asked for, and how they are shown."""

from __future__ import annotations

import argparse
import io
from pathlib import Path

import pytest
from rich.console import Console

from headway import explain, up, workers
from headway.errors import UsageError
from headway.plan import StackOptions, stack
from proto import fleet_pb2, routing_pb2


def options(*arguments: str) -> StackOptions:
    parser = argparse.ArgumentParser()
    up.add_arguments(parser)
    return up.options_of(parser.parse_args(arguments))


def test_a_stack_of_ranks_is_emulated_and_steered_unless_told_otherwise(tmp_path: Path) -> None:
    processes = {process.name: process.command for process in stack(options("--ranks", "3", "--no-trainer"), tmp_path)}
    engine, control = processes["engine-1"], processes["controlplane"]
    assert engine[engine.index("--data-parallel-size") + 1] == "3"
    assert control[control.index("--steer-ranks") + 1] == "auto"
    plain = {process.name: process.command for process in stack(options("--steer-ranks", "off", "--no-trainer"), tmp_path)}
    assert "--data-parallel-size" not in plain["engine-1"]
    assert plain["controlplane"][plain["controlplane"].index("--steer-ranks") + 1] == "off"


@pytest.mark.parametrize("count", ["0", "17"])
def test_a_number_of_ranks_that_makes_no_sense_is_told(count: str) -> None:
    with pytest.raises(UsageError, match=f"--ranks: {count} is not between 1 and 16"):
        options("--ranks", count)


def shown(what: object) -> list[list[str]]:
    console = Console(width=200, file=io.StringIO(), record=True)
    console.print(what)
    return [line.split() for line in console.export_text().splitlines()]


def test_workers_have_a_line_for_each_rank_that_is_steered_to() -> None:
    whole = fleet_pb2.WorkerStatus(worker="w1", alive=True, active=5, requests=9, breaker=fleet_pb2.CLOSED)
    whole.ranks.add(rank=0, active=2, requests=4, index=fleet_pb2.EXACT, match_ratio=1.0)
    whole.ranks.add(rank=1, active=3, requests=5, index=fleet_pb2.DEGRADED, breaker=fleet_pb2.OPEN)
    plain = fleet_pb2.WorkerStatus(worker="w2", alive=True, breaker=fleet_pb2.CLOSED)
    lines = shown(workers.render(fleet_pb2.WorkerList(workers=[whole, plain], redis_connected=True, warm=True)))
    assert [line[:2] for line in lines[1:5]] == [["w1", "alive"], ["rank", "0"], ["rank", "1"], ["w2", "alive"]]
    assert lines[2][2] == "2"
    assert "degraded" in lines[3]
    assert lines[3][2] == "open"
    assert "100%" in lines[2]


def test_candidates_are_named_with_their_rank() -> None:
    told = routing_pb2.Explanation(decision_id=1, policy="lmetric")
    told.candidates.add(worker="w1", data_parallel_rank=0, total=0.1)
    told.candidates.add(worker="w1", data_parallel_rank=1, total=0.9, chosen=True)
    told.candidates.add(worker="w2", total=0.5)
    words = {word for line in shown(explain.render(told)) for word in line}
    assert {"w1/0", "w1/1", "w2"} <= words
