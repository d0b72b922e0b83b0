"""The plan of a stack: which processes, in which order, on which ports."""

from __future__ import annotations

import argparse
import socket
from pathlib import Path

import pytest

from headway import up
from headway.errors import UsageError
from headway.plan import StackOptions, check_ports, stack

RUN_DIR = Path("/tmp/x")


def names(options: StackOptions) -> list[str]:
    return [process.name for process in stack(options, RUN_DIR)]


def test_an_emulated_worker_is_an_engine_and_an_agent() -> None:
    assert names(StackOptions(workers=2)) == [
        "redis",
        "controlplane",
        "engine-1",
        "agent-1",
        "engine-2",
        "agent-2",
        "dataplane",
    ]


def test_real_engines_get_agents_and_no_emulator() -> None:
    options = StackOptions(engines=("http://10.0.0.1:8000", "http://10.0.0.2:8000"), redis_url="redis://r:6379")
    assert names(options) == ["controlplane", "agent-1", "agent-2", "dataplane"]
    assert not [flag for flag in options.ports() if "worker" in flag]


def test_whoever_is_called_starts_before_its_callers() -> None:
    stage = {process.name: process.stage for process in stack(StackOptions(workers=1), RUN_DIR)}
    assert stage["redis"] < stage["controlplane"] < stage["agent-1"]
    assert stage["engine-1"] < stage["agent-1"]
    assert stage["controlplane"] < stage["dataplane"]


def test_a_taken_port_is_named_with_the_flag_that_moves_it() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UsageError, match=f"^port {port} is taken by another process; choose another with --port$"):
            check_ports(StackOptions(port=port, workers=1))


def test_two_flags_with_one_port_are_a_mistake() -> None:
    with pytest.raises(UsageError, match=r"^--grpc-port: port 18123 is that of --port, too$"):
        check_ports(StackOptions(port=18123, grpc_port=18123, workers=1))


def test_an_address_of_another_machine_is_not_called_a_taken_port() -> None:
    with pytest.raises(UsageError, match=r"cannot listen on 192\.0\.2\.1:18123"):
        check_ports(StackOptions(host="192.0.2.1", port=18123, workers=1))


def test_an_unequal_fleet_is_given_in_turn() -> None:
    options = StackOptions(workers=3, speed=2.0, worker_speeds=(1.0, 0.4), worker_blocks=(0, 500))
    engines = [process.command for process in stack(options, Path("/run")) if process.name.startswith("engine-")]
    given = [(command[command.index("--speed") + 1], command[command.index("--num-blocks") + 1]) for command in engines]
    assert given == [("2.0", "0"), ("0.8", "500"), ("2.0", "0")]


def test_engines_of_several_kinds_are_given_in_turn() -> None:
    parser = argparse.ArgumentParser()
    up.add_arguments(parser)
    options = up.options_of(parser.parse_args(["--workers=3", "--preset=tiny-cpu,llama2-13b-a100-40gb"]))
    commands = [process.command for process in stack(options, Path("/run"))]
    engines = [command[command.index("--preset") + 1] for command in commands if "--preset" in command]
    assert engines == ["tiny-cpu", "llama2-13b-a100-40gb", "tiny-cpu"]
    assert [command[-1] for command in commands if "worker_agent" in command] == [f"emulated-{name}" for name in engines]
    with pytest.raises(UsageError, match="--preset: no preset 'tiny'"):
        up.options_of(parser.parse_args(["--preset=tiny-cpu,tiny"]))


@pytest.mark.parametrize("text", ["1,fast", "1,,2", "0", "-1", "nan"])
def test_speeds_that_are_none_are_refused(text: str) -> None:
    parser = argparse.ArgumentParser()
    up.add_arguments(parser)
    with pytest.raises(UsageError, match="--worker-speeds"):
        up.options_of(parser.parse_args([f"--worker-speeds={text}"]))


def test_control_planes_after_the_first_stand_by_for_the_data_plane_and_for_commands() -> None:
    options = StackOptions(workers=1, controls=2)
    assert names(options)[1:3] == ["controlplane", "controlplane-2"]
    dataplane = next(process for process in stack(options, RUN_DIR) if process.name == "dataplane")
    at = dataplane.command.index("--control")
    assert dataplane.command[at + 1] == "unix:/tmp/x/control.sock,unix:/tmp/x/control-2.sock"
    assert options.control == "127.0.0.1:50051,127.0.0.1:50151"
    assert {50051, 50151, 9101, 9201} <= set(options.ports().values())
