"""`headway attach`: a server that is named by its address joins a running fleet, and leaves it with the command."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from headway import attach
from headway.__main__ import dispatch
from headway.errors import UsageError
from tests.e2e.stack import running_stack
from tests.ports import free_ports
from tests.waiting import wait_until


@pytest.mark.parametrize(
    ("url", "name"),
    [("http://gpu-3:8000", "gpu-3-8000"), ("https://user:secret@a.b", "a.b"), ("http://[::1]:80", "1-80")],
)
def test_a_worker_is_named_after_its_address(url: str, name: str) -> None:
    assert attach.name_of(url) == name


@pytest.mark.usefixtures("own_home")
@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("gpu-3:8000", "is not a base URL"),
        ("http://", "is not a base URL"),
        ("http://gpu-3:8000", "no stack was started here"),
        ("http://gpu-3:8000 --redis-url host:6379", "--redis-url: 'host:6379'"),
    ],
)
def test_a_mistake_is_told_before_anything_starts(line: str, says: str) -> None:
    with pytest.raises(UsageError, match=f"attach: .*{says}"):
        dispatch(["attach", *line.split()])


@pytest.mark.slow
def test_a_server_joins_serves_and_leaves(tmp_path: Path) -> None:
    port = free_ports()
    line = [sys.executable, "-m", "headway", "attach", f"http://127.0.0.1:{port}", "--tokenizer", "headway-8k"]
    engine = [sys.executable, "-m", "emulator", "--port", str(port), "--preset", "llama3-8b-h100"]
    emulator = subprocess.Popen(engine, stderr=subprocess.DEVNULL)
    try:
        with running_stack(tmp_path, "--no-trainer", "--policy", "round_robin", workers=1) as stack:
            environment = {**os.environ, "HEADWAY_HOME": str(stack.home)}
            taken = subprocess.run(
                [*line, "--worker", "worker-1"], env=environment, capture_output=True, text=True, timeout=60, check=False
            )
            assert taken.returncode == 2
            assert taken.stderr == "headway: attach: there is a worker worker-1 already: give --worker another name\n"
            attached = subprocess.Popen(line, env=environment, stderr=subprocess.DEVNULL)
            name = f"127.0.0.1-{port}"
            wait_until(lambda: ready(stack.url)["fleet"]["available"] == 2, what=f"{name} joins", seconds_max=60)
            assert {serves(stack.url) for _ in range(4)} == {"worker-1", name}
            attached.send_signal(signal.SIGINT)
            assert attached.wait(timeout=30) == 0
            wait_until(lambda: ready(stack.url)["fleet"]["available"] == 1, what=f"{name} leaves")
            assert {serves(stack.url) for _ in range(4)} == {"worker-1"}
    finally:
        emulator.terminate()
        emulator.wait()


def ready(url: str) -> Any:
    with urllib.request.urlopen(f"{url}/ready", timeout=10) as reply:
        return json.load(reply)


def serves(url: str) -> str:
    body = json.dumps({"model": "llama-3.1-8b", "max_tokens": 1, "messages": [{"role": "user", "content": "hi"}]}).encode()
    asked = urllib.request.Request(f"{url}/v1/chat/completions", body, {"content-type": "application/json"})
    with urllib.request.urlopen(asked, timeout=30) as reply:
        return str(reply.headers["x-headway-worker"])
