"""What a newcomer does in the first five minutes, step by step."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import openai
import pytest

from tests.e2e.stack import RunningStack, curl_line
from tests.waiting import wait_until


def headway(stack: RunningStack, *arguments: str, home: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "headway", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "HEADWAY_HOME": str(home or stack.home), "COLUMNS": "250"},
    )


def client(stack: RunningStack) -> openai.OpenAI:
    return openai.OpenAI(base_url=stack.url + "/v1", api_key="none", max_retries=0)


def model_of(stack: RunningStack) -> str:
    return client(stack).models.list().data[0].id


def test_the_printed_curl_line_streams_and_says_which_worker_served(stack: RunningStack) -> None:
    done = subprocess.run(["bash", "-c", curl_line(stack.output)], capture_output=True, text=True, timeout=60, check=True)
    head, _, body = done.stdout.replace("\r\n", "\n").partition("\n\n")
    assert head.startswith("HTTP/1.1 200")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head.splitlines()[1:])}
    assert headers["x-headway-worker"] in stack.alive_workers()
    events = [line.removeprefix("data: ") for line in body.splitlines() if line.startswith("data: ")]
    assert events[-1] == "[DONE]"
    text = "".join(choice["delta"].get("content") or "" for event in events[:-1] for choice in json.loads(event)["choices"])
    assert len(events) > 20
    assert text.strip()
    decision = headers["x-headway-decision"]
    explained = wait_until(  # an answer is reported after its last byte
        lambda: next(filter(lambda told: "COMPLETE" in told, (headway(stack, "explain", decision).stdout,)), ""),
        what="the decision and its end",
    )
    assert headers["x-headway-worker"] in explained


def test_the_openai_client_streams_a_chat_and_reads_usage(stack: RunningStack) -> None:
    chunks = list(
        client(stack).chat.completions.create(
            model=model_of(stack),
            messages=[{"role": "user", "content": "Count to ten."}],
            max_tokens=12,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    usage = chunks[-1].usage
    assert usage is not None
    assert usage.completion_tokens == 12
    assert usage.prompt_tokens > 5


def test_the_openai_client_gets_typed_errors(stack: RunningStack) -> None:
    with pytest.raises(openai.NotFoundError, match="no-such-model"):
        client(stack).chat.completions.create(model="no-such-model", messages=[{"role": "user", "content": "hi"}])
    with pytest.raises(openai.BadRequestError, match="messages"):
        client(stack).chat.completions.create(model=model_of(stack), messages="not a list")  # type: ignore[call-overload]


def test_workers_and_policy_are_shown_and_switched(stack: RunningStack) -> None:
    shown = headway(stack, "workers")
    assert shown.returncode == 0, shown.stderr
    assert all(worker in shown.stdout for worker in ("worker-1", "worker-2", "worker-3"))
    switched = headway(stack, "policy", "prefix")
    assert headway(stack, "policy", "lmetric").returncode == 0
    assert "* prefix" in switched.stdout
    wrong = headway(stack, "policy", "best")
    assert wrong.returncode == 2
    assert "lmetric" in wrong.stderr


def test_the_tour_uses_the_stack_that_is_up_and_leaves_it_as_it_was(stack: RunningStack) -> None:
    before = headway(stack, "policy").stdout
    shown = headway(stack, "demo", "--policy", "kv_cost")
    assert shown.returncode == 0, shown.stderr
    assert stack.url in shown.stdout
    assert shown.stdout.count("Anna") == shown.stdout.count("Bert") == 3
    assert "policy kv_cost" in shown.stdout
    assert headway(stack, "policy").stdout == before
    wrong = headway(stack, "demo", "--policy", "best")
    assert (wrong.returncode, wrong.stderr.count("\n")) == (2, 1)
    assert headway(stack, "policy").stdout == before


def test_a_drained_worker_gets_nothing_until_it_is_back(stack: RunningStack) -> None:
    assert headway(stack, "drain", "worker-1").returncode == 0
    try:
        model = model_of(stack)
        served = {
            client(stack)
            .completions.with_raw_response.create(model=model, prompt=f"{n}", max_tokens=1)
            .headers["x-headway-worker"]
            for n in range(6)
        }
        assert "worker-1" not in served
    finally:
        assert headway(stack, "drain", "worker-1", "--undo").returncode == 0
    assert headway(stack, "drain", "worker-99").returncode == 2


def test_a_second_stack_is_told_of_the_first_or_of_its_port(stack: RunningStack, tmp_path: Path) -> None:
    port = stack.url.rpartition(":")[2]
    for home, says in ((stack.home, f"up here already, at {stack.url}"), (tmp_path, f"port {port} is taken")):
        done = headway(stack, "up", "--port", port, home=home)
        assert done.returncode == 2
        assert done.stderr.count("\n") == 1
        assert says in done.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("up", "--workers", "0"), "--workers"),
        (("up", "--preset", "gpt-9"), "--preset"),
        (("up", "--prot", "1"), "--prot"),
        (("workers", "--control", "127.0.0.1:1"), "127.0.0.1:1"),
        (("explain", "xyz"), "decision id"),
        (("fly",), "fly"),
    ],
)
def test_a_wrong_command_line_is_one_line_and_exit_code_2(stack: RunningStack, arguments: tuple[str, ...], says: str) -> None:
    done = headway(stack, *arguments)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1, done.stderr
    assert says in done.stderr
