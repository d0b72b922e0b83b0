"""The manifests' processes, started on this machine with the manifests' own commands and variables. Only addresses are others:
there is no cluster here that would give each pod one of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.deploy.processes import ROOT
from tests.deploy.test_kubernetes import POD_NAME, Document, environ, pod
from tests.ports import free_ports
from tests.waiting import wait_until

START_S_MAX = 60.0


class Processes:
    """Started here, ended with the test. Their log is in `directory`."""

    def __init__(self, directory: Path) -> None:
        self._log = directory / "log"
        self._started: list[subprocess.Popen[bytes]] = []

    def run(self, command: list[str], **variables: str) -> subprocess.Popen[bytes]:
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", **variables}
        with self._log.open("ab") as log:
            process = subprocess.Popen([sys.executable, "-m", *command], cwd=ROOT, env=environment, stdout=log, stderr=log)
        self._started.append(process)
        return process

    def start(self, container: Document, **moved: object) -> subprocess.Popen[bytes]:
        """A container's. moved: its addresses and directories here, in place of those in the manifest."""
        told = environ(container)
        assert moved.keys() <= told.keys()
        return self.run(container["command"][2:], **told | {name: str(value) for name, value in moved.items()})

    def end(self) -> None:
        for process in self._started:
            process.kill()
            process.wait()


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    started = Processes(tmp_path)
    yield started
    started.end()


def container(workload: str, name: str) -> Document:
    (found,) = [one for one in pod(workload)["spec"]["containers"] if one["name"] == name]
    return dict(found)


def probed(one: Document, kind: str, port: int) -> bool:
    """What the kubelet would find; port: where the probe's port is here."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{one[kind]['httpGet']['path']}", timeout=5) as reply:
            return bool(reply.status == 200)
    except OSError:
        return False


def chat(port: int) -> tuple[str, str]:
    """The worker that answered, and "1" where the data plane chose by itself."""
    body = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 2}
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/chat/completions", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=20) as reply:
        return reply.headers["x-headway-worker"], reply.headers.get("x-headway-fallback", "")


def test_pods_find_each_other_serve_and_outlive_a_control_plane(processes: Processes, redis_url: str, tmp_path: Path) -> None:
    first = free_ports(12)
    grpc, metrics = (first, first + 1), (first + 2, first + 3)
    http, admin, trainer_grpc, trainer_metrics, engine, events, replay = range(first + 4, first + 11)
    plane, door = container("headway-controlplane", "controlplane"), container("headway-dataplane", "dataplane")
    learner, agent = container("headway-trainer", "trainer"), container("vllm", "agent")

    controls = [
        processes.start(
            plane,
            HEADWAY_CONTROLPLANE_LISTEN=f"127.0.0.1:{grpc[number]}",
            HEADWAY_CONTROLPLANE_METRICS_HOST="127.0.0.1",
            HEADWAY_CONTROLPLANE_METRICS_PORT=metrics[number],
            REDIS_URL=redis_url,
        )
        for number in range(2)
    ]
    processes.start(
        learner,
        HEADWAY_TRAINER_LISTEN=f"127.0.0.1:{trainer_grpc}",
        HEADWAY_TRAINER_METRICS_HOST="127.0.0.1",
        HEADWAY_TRAINER_METRICS_PORT=trainer_metrics,
        HEADWAY_TRAINER_DATA_DIR=tmp_path / "trainer",
        REDIS_URL=redis_url,
    )
    sockets = ("--kv-events-port", str(events), "--kv-replay-port", str(replay))
    processes.run(["emulator", "--port", str(engine), "--model", "tiny", *sockets])
    following = processes.start(
        agent,
        HEADWAY_WORKER_AGENT_ENGINE_URL=f"http://127.0.0.1:{engine}",
        HEADWAY_WORKER_AGENT_ADVERTISE_URL=f"http://127.0.0.1:{engine}",
        HEADWAY_WORKER_AGENT_KV_EVENTS=f"tcp://127.0.0.1:{events}",
        HEADWAY_WORKER_AGENT_KV_REPLAY=f"tcp://127.0.0.1:{replay}",
        REDIS_URL=redis_url,
    )
    processes.start(
        door,
        HEADWAY_DATAPLANE_HOST="127.0.0.1",
        HEADWAY_DATAPLANE_PORT=http,
        HEADWAY_DATAPLANE_ADMIN_PORT=admin,
        HEADWAY_DATAPLANE_CONTROL=",".join(f"127.0.0.1:{port}" for port in grpc),
        HF_HOME=tmp_path / "hub",
    )

    asked = [(plane, metrics[0]), (plane, metrics[1]), (door, admin), (learner, trainer_metrics)]
    for kind in ("readinessProbe", "livenessProbe"):
        for one, port in asked:
            wait_until(lambda one=one, port=port, kind=kind: probed(one, kind, port), what=one["name"], seconds_max=START_S_MAX)
    wait_until(lambda: chat(http) == (POD_NAME, ""), what="a control plane decides")

    controls[0].kill()
    wait_until(lambda: chat(http) == (POD_NAME, ""), what="the second control plane decides")

    following.send_signal(signal.SIGTERM)  # as its pod ends, before vLLM does
    assert following.wait(10) == 0
    wait_until(lambda: not probed(door, "readinessProbe", admin), what="the worker is gone")
    with pytest.raises(urllib.error.HTTPError, match="503"):
        chat(http)
