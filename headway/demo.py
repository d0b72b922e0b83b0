"""`headway demo`: a tour of two conversations. Uses the stack that is up here, else starts one and ends it again."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import grpc
from rich.console import Console
from rich.table import Table

from controlplane.profiles import NAMES as POLICIES
from headway import explain, runfile, workers
from headway.errors import UsageError
from proto import fleet_pb2, fleet_pb2_grpc, routing_pb2, routing_pb2_grpc

CALL_TIMEOUT_S = 60.0

_GUIDE = (
    "You are the travel desk of a railway company. Answer with the route, the changes and the travel time. "
    "Never invent a train. When a journey takes more than a day, name a town to sleep in. "
)
_CONVERSATIONS = (
    ("Anna", ["How do I get from Lisbon to Tallinn?", "And with a night in Vienna?", "Which part is the slowest?"]),
    ("Bert", ["Is there a night train to Rome?", "How long does it take from Paris?", "And back again on Sunday?"]),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--policy", default="prefix", help="routing policy of the tour (default: %(default)s)")


def run(args: argparse.Namespace) -> int:
    if args.policy not in POLICIES:
        raise UsageError(f"--policy: no policy {args.policy!r}; there are {', '.join(POLICIES)}")
    console = Console()
    with _stack(console, args.policy) as facts, grpc.insecure_channel(facts["control"].split(",")[0]) as channel:
        fleet = fleet_pb2_grpc.FleetStub(channel)
        try:
            before = fleet.GetPolicy(fleet_pb2.GetPolicyRequest(), timeout=CALL_TIMEOUT_S).name
            fleet.SetPolicy(fleet_pb2.SetPolicyRequest(name=args.policy), timeout=CALL_TIMEOUT_S)
        except grpc.RpcError as error:
            raise UsageError(str(error.details())) from error
        try:
            console.print("Two callers share a system prompt and each has a conversation that grows turn by turn.\n")
            answers = _talk(facts["url"], facts["model"])
        finally:  # it may be somebody's stack
            fleet.SetPolicy(fleet_pb2.SetPolicyRequest(name=before), timeout=CALL_TIMEOUT_S)
        explain.show(_table(answers), console)
        decision = next((answer.decision for answer in reversed(answers) if answer.decision), "")
        if decision:
            console.print("\nWhy the last one went where it went:\n", style="bold")
            request = routing_pb2.ExplainRequest(decision_id=int(decision, 16))
            told = routing_pb2_grpc.RoutingStub(channel).Explain(request, timeout=CALL_TIMEOUT_S)
            explain.show(explain.render(told), console)
        reply = fleet.ListWorkers(fleet_pb2.ListWorkersRequest(), timeout=CALL_TIMEOUT_S)
        console.print("\nThe fleet:\n", style="bold")
        console.print(workers.render(reply, console.width))
    return 0


@dataclass(frozen=True)
class Answer:
    """One turn as the caller saw it. decision: "" where the data plane decided by itself."""

    caller: str
    turn: int
    worker: str
    decision: str
    prompt_tokens: int
    matched_tokens: int
    cached_tokens: int
    ttft_ms: float


def _talk(url: str, model: str) -> list[Answer]:
    answers = []
    histories: dict[str, list[dict[str, str]]] = {
        name: [{"role": "system", "content": _GUIDE * 6}] for name, _ in _CONVERSATIONS
    }
    for turn in range(3):
        for name, questions in _CONVERSATIONS:
            history = histories[name]
            history.append({"role": "user", "content": questions[turn]})
            answer, text = _ask(url, model, name, turn + 1, history)
            history.append({"role": "assistant", "content": text})
            answers.append(answer)
    return answers


def _ask(url: str, model: str, caller: str, turn: int, messages: list[dict[str, str]]) -> tuple[Answer, str]:
    body = {
        "model": model,
        "messages": messages,
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": 60,
    }
    request = urllib.request.Request(
        url + "/v1/chat/completions", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    started = time.monotonic()
    ttft_s, text = 0.0, ""
    usage: dict[str, Any] = {}
    try:
        with urllib.request.urlopen(request, timeout=CALL_TIMEOUT_S) as reply:
            headers = reply.headers
            for event in _events(reply):
                if "error" in event:
                    raise UsageError(f"a stream broke off: {event['error']['message']}")
                usage = event.get("usage") or usage
                for choice in event["choices"]:
                    ttft_s = ttft_s or time.monotonic() - started
                    text += choice["delta"].get("content") or ""
    except urllib.error.HTTPError as error:
        with error:
            raise UsageError(f"the stack at {url} answered {error.code}: {error.read(300).decode(errors='replace')}") from error
    except OSError as error:
        raise UsageError(f"the stack at {url} does not answer: {error}") from error
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    answer = Answer(
        caller,
        turn,
        headers["x-headway-worker"],
        headers["x-headway-decision"] or "",
        usage.get("prompt_tokens", 0),
        int(headers["x-headway-matched-tokens"] or 0),
        cached,
        ttft_s * 1000,
    )
    return answer, text


def _events(lines: Any) -> Iterator[dict[str, Any]]:
    for line in lines:
        data = line.decode().strip().removeprefix("data: ")
        if data and data != "[DONE]":
            yield json.loads(data)


def _table(answers: list[Answer]) -> Table:
    table = Table(box=None, padding=(0, 2), header_style="bold")
    for name in ("caller", "turn", "served by", "prompt", "predicted match", "engine found", "TTFT"):
        table.add_column(name, justify="left" if name in ("caller", "served by") else "right")
    for answer in answers:
        table.add_row(
            answer.caller,
            str(answer.turn),
            answer.worker,
            f"{answer.prompt_tokens:,} tok",
            f"{answer.matched_tokens:,} tok",
            f"{answer.cached_tokens:,} tok",
            f"{answer.ttft_ms:.0f} ms",
        )
    return table


def _why(said: list[str]) -> str:
    """The line of `headway up` that says so, with what the process said last."""
    told = [line.strip() for line in said if line.strip() and line not in ("ending ...", "ended.")]
    return " ".join(told[-2:]) or "it said nothing"


@contextmanager
def _stack(console: Console, policy: str) -> Iterator[dict[str, Any]]:
    """The running stack's facts; of one of our own where none runs. UsageError: ours did not come up."""
    facts = runfile.read()
    if facts is not None:
        console.print(f"Using the stack at {facts['url']}.")
        yield facts
        return
    console.print("Starting a stack of two emulated workers ...")
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "headway", "up", "--workers", "2", "--policy", policy],
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=os.environ,
        )
        try:
            while (facts := runfile.read()) is None or facts["pid"] != process.pid:
                if process.poll() is not None:
                    output.seek(0)
                    raise UsageError(f"the stack did not come up: {_why(output.read().splitlines())}")
                time.sleep(0.1)  # another process writes the file
            yield facts
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
                process.wait(timeout=60)
