"""The stack in containers: it comes up, streams, learns, and loses a worker without losing a request."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import grpc
import openai
import pytest

from proto import fleet_pb2, fleet_pb2_grpc, trainer_pb2, trainer_pb2_grpc
from tests.ports import free_ports
from tests.waiting import wait_until

ROOT = Path(__file__).resolve().parents[2]
PROJECT = "headway-test"


class Compose:
    """`docker compose` on this checkout, under a project name and ports of its own."""

    def __init__(self) -> None:
        first = free_ports(3)
        self.url = f"http://127.0.0.1:{first}"
        self.control = f"127.0.0.1:{first + 1}"
        self.trainer = f"127.0.0.1:{first + 2}"
        names = ("HEADWAY_PORT", "HEADWAY_GRPC_PORT", "HEADWAY_TRAINER_PORT")
        self._environment = {**os.environ, **{name: str(first + place) for place, name in enumerate(names)}}

    def __call__(self, *arguments: str, check: bool = True) -> str:
        done = subprocess.run(
            ["docker", "compose", "--project-name", PROJECT, *arguments],
            cwd=ROOT,
            env=self._environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert not check or done.returncode == 0, f"{arguments}:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        return done.stdout

    def alive(self) -> set[str]:
        with grpc.insecure_channel(self.control) as channel:
            reply = fleet_pb2_grpc.FleetStub(channel).ListWorkers(fleet_pb2.ListWorkersRequest(), timeout=5)
        return {status.worker for status in reply.workers if status.alive}

    def samples(self) -> int:
        """What the trainer has; -1 while it does not answer."""
        with grpc.insecure_channel(self.trainer) as channel:
            try:
                return int(trainer_pb2_grpc.TrainerStub(channel).ListModels(trainer_pb2.ListModelsRequest(), timeout=5).samples)
            except grpc.RpcError:
                return -1

    def kill(self, service: str) -> None:
        """`docker kill` counts as a manual stop: the restart policy does not bring it back."""
        container = self("ps", "-q", service).strip()
        subprocess.run(["docker", "kill", container], check=True, capture_output=True)


@pytest.fixture(scope="module")
def compose() -> Iterator[Compose]:
    compose = Compose()
    compose("down", "-v", "--remove-orphans", check=False)
    compose("build")
    try:
        compose("up", "-d", "--wait", "dataplane", "trainer")
        yield compose
    except BaseException:
        print(compose("logs", "--tail", "40", check=False))
        raise
    finally:
        compose("down", "-v", "--remove-orphans", check=False)


def chat(compose: Compose, text: str) -> tuple[str, str]:
    """A streamed chat through the published port: the text, and the worker that wrote it."""
    client = openai.OpenAI(base_url=compose.url + "/v1", api_key="none", max_retries=0)
    model = client.models.list().data[0].id
    with client.chat.completions.with_streaming_response.create(
        model=model, messages=[{"role": "user", "content": text}], max_tokens=16, stream=True
    ) as response:
        lines = list(response.iter_lines())
        assert "data: [DONE]" in lines
        return "\n".join(lines), response.headers["x-headway-worker"]


def test_four_workers_come_up_and_a_chat_streams(compose: Compose) -> None:
    wait_until(lambda: len(compose.alive()) == 4, seconds_max=120, what="four workers alive")
    text, worker = chat(compose, "Hello from a container")
    assert text.count("data: ") > 10
    assert worker in compose.alive()


def test_the_trainer_learns_of_every_answer_and_keeps_it_over_a_kill(compose: Compose) -> None:
    before = compose.samples()
    assert before >= 0, "healthy, and does not answer"
    for number in range(5):
        chat(compose, f"something to learn from, {number}")
    wait_until(lambda: compose.samples() >= before + 5, seconds_max=20, what="five more samples")
    known = compose.samples()
    compose.kill("trainer")
    compose("up", "-d", "--wait", "trainer")
    wait_until(lambda: compose.samples() >= known, seconds_max=20, what="the samples are there again")


def test_a_killed_engine_leaves_and_requests_go_on(compose: Compose) -> None:
    compose.kill("engine-2")
    wait_until(lambda: "worker-2" not in compose.alive(), seconds_max=20, what="worker-2 gone")
    served = {chat(compose, f"question {number}")[1] for number in range(8)}
    assert served <= {"worker-1", "worker-3", "worker-4"}


def test_a_worker_whose_agent_falls_silent_leaves_within_its_ttl(compose: Compose) -> None:
    compose.kill("agent-3")
    wait_until(lambda: "worker-3" not in compose.alive(), seconds_max=20, what="worker-3 gone")
    assert chat(compose, "still there?")[1] in {"worker-1", "worker-4"}


def test_what_was_killed_comes_back_when_started(compose: Compose) -> None:
    compose("up", "-d", "--wait", "engine-2", "agent-2", "engine-3", "agent-3")
    wait_until(lambda: len(compose.alive()) == 4, seconds_max=60, what="four workers alive again")


def test_a_restarted_control_plane_serves_the_same_fleet(compose: Compose) -> None:
    compose("restart", "controlplane")
    assert chat(compose, "during the restart")[0]
    wait_until(lambda: _alive_or_nothing(compose) == 4, seconds_max=60, what="the new control plane knows four workers")


def _alive_or_nothing(compose: Compose) -> int:
    try:
        return len(compose.alive())
    except grpc.RpcError:
        return 0
