"""Each mistake gets one clear error in the caller's terms, and the stack goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from tests.e2e.stack import RunningStack
from tests.ports import free_ports


def post(stack: RunningStack, body: bytes, path: str = "/v1/chat/completions") -> tuple[int, dict[str, object]]:
    """Status and error object."""
    request = urllib.request.Request(stack.url + path, body, {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as reply:
            return reply.status, json.load(reply)
    except urllib.error.HTTPError as refusal:
        with refusal:
            return refusal.code, json.load(refusal)["error"]


def model(stack: RunningStack) -> str:
    with urllib.request.urlopen(stack.url + "/v1/models", timeout=10) as reply:
        return str(json.load(reply)["data"][0]["id"])


def chat(stack: RunningStack, content: object) -> bytes:
    return json.dumps({"model": model(stack), "messages": [{"role": "user", "content": content}], "max_tokens": 1}).encode()


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        (b'{"model": "m", "messages": [', 400, "JSON"),
        (b'{"model": "\xff\xfe", "messages": []}', 400, "UTF-8"),
        (b"[1, 2, 3]", 400, "object"),
        (b"", 400, "empty"),
        (b'{"messages": [{"role": "user", "content": "hi"}]}', 400, "model"),
        (b'{"model": 7, "messages": []}', 400, "model"),
        (b'{"model": "absent", "messages": []}', 404, "absent"),
    ],
    ids=["truncated JSON", "invalid UTF-8", "not an object", "nothing", "no model", "model is a number", "absent model"],
)
def test_a_bad_body_is_one_clear_error(stack: RunningStack, body: bytes, status: int, says: str) -> None:
    got, error = post(stack, body)
    assert (got, set(error)) == (status, {"message", "type", "param", "code"}), error
    assert says.lower() in str(error["message"]).lower()


def test_a_prompt_of_10_mb_is_refused_by_name_and_not_by_a_broken_connection(stack: RunningStack) -> None:
    status, error = post(stack, chat(stack, "railway " * 1_250_000))
    assert status == 400
    assert "maximum" in str(error["message"]) or "context" in str(error["message"])


def test_a_body_beyond_the_limit_is_413(stack: RunningStack) -> None:
    status, error = post(stack, b'{"model": "' + b"x" * (33 * 1024 * 1024) + b'"}')
    assert status == 413
    assert "33,554,432" in str(error["message"])


def test_the_stack_serves_on(stack: RunningStack) -> None:
    status, answer = post(stack, chat(stack, "hello"))
    assert status == 200
    assert answer["choices"]


@pytest.mark.parametrize("process", ["dataplane", "controlplane", "worker_agent", "emulator"])
@pytest.mark.parametrize(
    ("arguments", "says"),
    [(("--prot", "1"), "--prot"), (("--log-level", "loud"), "loud")],
    ids=["unknown flag", "bad value"],
)
def test_a_mistyped_setting_is_one_line_and_exit_code_2(process: str, arguments: tuple[str, ...], says: str) -> None:
    done = subprocess.run([sys.executable, "-m", process, *arguments], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1, done.stderr
    assert says in done.stderr
    assert done.stderr.startswith(process)


def test_an_occupied_port_is_one_line_and_exit_code_2(stack: RunningStack) -> None:
    port = stack.url.rpartition(":")[2]
    done = subprocess.run(
        [sys.executable, "-m", "emulator", "--port", port], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 2
    assert "taken" in done.stderr or "in use" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_engine_that_is_not_there_is_named_while_it_is_waited_for(tmp_path: Path) -> None:
    first = free_ports(3)
    ports = ("--port", str(first), "--grpc-port", str(first + 1), "--metrics-port", str(first + 2))
    process = subprocess.Popen(
        [sys.executable, "-m", "headway", "up", "--engine", "http://127.0.0.1:1", "--no-trainer", *ports],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "HEADWAY_HOME": str(tmp_path)},
    )
    patience = threading.Timer(60, process.kill)  # a bound for the reading below
    patience.start()
    try:
        assert process.stdout is not None
        assert any("agent-1" in line and "127.0.0.1:1" in line for line in process.stdout)
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate()
        patience.cancel()
    assert process.returncode == 0
