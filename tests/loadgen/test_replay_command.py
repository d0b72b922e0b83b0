"""The command as it is typed, against the hand-written server."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from headway.__main__ import dispatch
from headway.errors import UsageError
from loadgen import recorder
from proto import fleet_pb2, fleet_pb2_grpc
from tests.fakes.sse_server import Reply, Request, SseServer, complete, in_thread, json_reply, models, stream_head
from tests.waiting import until

pytestmark = pytest.mark.usefixtures("own_home")


def mooncake(path: Path, count: int, *, gap_ms: int = 5) -> Path:
    lines = [{"timestamp": n * gap_ms, "input_length": 600, "output_length": 3, "hash_ids": [0, n + 1]} for n in range(count)]
    path.write_bytes(gzip.compress("".join(json.dumps(line) + "\n" for line in lines).encode()))
    return path


def headway(*argv: object) -> int:
    return dispatch(["replay", *map(str, argv)])


async def routed(request: Request, reply: Reply) -> bool:
    """As the data plane answers: its headers, and usage with cached tokens."""
    headers = {"x-headway-worker": f"w{len(request.body) % 2}", "x-headway-matched-tokens": "16", "x-headway-attempts": "1"}
    return await complete(request, reply, headers=headers, cached=16)


def test_a_trace_is_replayed_summarised_and_recorded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace, out = mooncake(tmp_path / "t.jsonl.gz", 30), tmp_path / "run.jsonl"
    with in_thread(routed) as server:
        code = headway(trace, "--url", server.url, "--out", out, "--slo-ttft-ms", 10_000, "--limit", 20, "--send-slo")
    assert code == 0
    printed = capsys.readouterr().out
    assert "20 ok, 0 failed" in printed
    assert "goodput" in printed
    assert "100.0 % of 20 (over 0.0 %, under 0.0 %)" in printed
    records = recorder.read(out)
    assert sorted(entry.index for entry in records) == list(range(20))
    assert all(entry.end == "ok" and entry.output_tokens == 3 and entry.lateness_s >= 0 for entry in records)
    posts = [request for request in server.requests if request.method == "POST"]
    assert posts[0].json["model"] == "m"
    assert posts[0].headers["x-headway-slo-ttft-ms"] == "10000"
    first, second = (request.json["messages"][0]["content"].split() for request in posts[:2])
    assert len(first) == len(second) == 600
    assert first[:512] == second[:512]
    assert first[512:] != second[512:]


def test_blocks_and_lengths_shrink_together(tmp_path: Path) -> None:
    trace = mooncake(tmp_path / "t.jsonl.gz", 2)
    with in_thread(routed) as server:
        assert headway(trace, "--url", server.url, "--block-tokens", 128, "--endpoint", "completions") == 0
        assert headway(trace, "--url", server.url, "--scale", 0.25, "--endpoint", "completions") == 0
    prompts = [request.json["prompt"] for request in server.requests if request.method == "POST"]
    assert [len(prompt.split()) for prompt in prompts] == [150] * 4
    assert prompts[:2] == prompts[2:]


@pytest.mark.parametrize("trace", ["sample", "sample-mooncake", "shared-prefix:groups=2,prompts=5", "multi-round"])
def test_shipped_and_made_up_workloads_need_no_file(trace: str, capsys: pytest.CaptureFixture[str]) -> None:
    with in_thread(routed) as server:
        assert headway(trace, "--url", server.url, "--limit", 10, "--rate", "200:1", "--max-tokens", 2, "--json") == 0
    figures = json.loads(capsys.readouterr().out)
    assert (figures["ok"], figures["failed"]) == (10, 0)


def test_rounds_have_the_same_times_and_other_prompts(tmp_path: Path) -> None:
    trace, out = mooncake(tmp_path / "t.jsonl.gz", 5), tmp_path / "run.jsonl"
    with in_thread(routed) as server:
        assert headway(trace, "--url", server.url, "--rounds", 2, "--out", out) == 0
    contents = [request.json["messages"][0]["content"] for request in server.requests if request.method == "POST"]
    assert len(set(contents)) == 10
    records = recorder.read(out)
    times = [[entry.scheduled_s for entry in records if entry.round == place] for place in (0, 1)]
    assert sorted(times[0]) == sorted(times[1])


class Fleet(fleet_pb2_grpc.FleetServicer):
    """A control plane that only has a policy, and remembers what it was told."""

    def __init__(self) -> None:
        self.policies = ["lmetric"]

    def GetPolicy(self, request: fleet_pb2.GetPolicyRequest, context: grpc.ServicerContext) -> fleet_pb2.Policy:  # noqa: N802
        return fleet_pb2.Policy(name=self.policies[-1])

    def SetPolicy(self, request: fleet_pb2.SetPolicyRequest, context: grpc.ServicerContext) -> fleet_pb2.Policy:  # noqa: N802
        if request.name == "none":
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "no policy 'none'; there are prefix, lmetric")
        self.policies.append(request.name)
        return fleet_pb2.Policy(name=request.name)


@pytest.fixture
def control() -> Iterator[tuple[Fleet, str]]:
    fleet = Fleet()
    server = grpc.server(ThreadPoolExecutor(2))
    fleet_pb2_grpc.add_FleetServicer_to_server(fleet, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield fleet, f"127.0.0.1:{port}"
    server.stop(None).wait(10)


def test_policies_are_compared_round_by_round_and_the_one_before_comes_back(
    tmp_path: Path, control: tuple[Fleet, str], capsys: pytest.CaptureFixture[str]
) -> None:
    fleet, address = control
    options = ("--policy", "prefix,round_robin", "--rounds", 2, "--json", "--control", address)
    with in_thread(routed) as server:
        assert headway(mooncake(tmp_path / "t.gz", 5), "--url", server.url, *options) == 0
    assert fleet.policies == ["lmetric", "prefix", "round_robin", "prefix", "round_robin", "lmetric"]
    figures = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(each["policy"], each["ok"]) for each in figures] == [("prefix", 10), ("round_robin", 10)]


def test_a_policy_that_is_none_is_refused_in_the_control_planes_words(
    tmp_path: Path, control: tuple[Fleet, str], free_port: int
) -> None:
    fleet, address = control
    trace = mooncake(tmp_path / "t.gz", 5)
    with in_thread(routed) as server:
        with pytest.raises(UsageError, match="no policy 'none'; there are prefix, lmetric"):
            headway(trace, "--url", server.url, "--policy", "none", "--control", address)
        with pytest.raises(UsageError, match="no control plane answers"):
            headway(trace, "--url", server.url, "--policy", "prefix", "--control", f"127.0.0.1:{free_port}")
    assert fleet.policies[-1] == "lmetric"


def test_failed_requests_are_counted_by_kind_and_the_exit_code_is_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async def sick(request: Request, reply: Reply) -> bool:
        if request.method == "GET":
            return await routed(request, reply)
        if len(server.requests) % 2:
            await reply.write(stream_head())
            return False
        await reply.write(json_reply(503, {"error": {"message": "full", "type": "overloaded"}}))
        return True

    with in_thread(sick) as server:
        assert headway(mooncake(tmp_path / "t.gz", 10), "--url", server.url, "--slo-ttft-ms", 1000) == 1
    printed = capsys.readouterr().out
    assert "5 truncated" in printed
    assert "5 shed" in printed
    assert "5 x shed: overloaded: full" in printed
    assert "0.0 %, 0/s" in printed
    assert "requests with TTFT <= 1 s" in printed


def test_requests_too_long_for_the_model_are_left_out_and_that_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async def small(request: Request, reply: Reply) -> bool:
        if request.method == "GET":
            await reply.write(models("m", 700))
            return True
        return await routed(request, reply)

    trace = mooncake(tmp_path / "t.jsonl.gz", 3)
    long = {"timestamp": 99, "input_length": 650, "output_length": 3, "hash_ids": [0, 1]}
    trace.write_bytes(trace.read_bytes() + gzip.compress(json.dumps(long).encode()))
    with in_thread(small) as server:
        assert headway(trace, "--url", server.url) == 0
        with pytest.raises(UsageError, match="longer than the 700 tokens of m"):
            headway(trace, "--url", server.url, "--output-scale", 400)
    captured = capsys.readouterr()
    assert "1 of 4 requests are longer than the 700 tokens of m" in captured.err
    assert "3 ok" in captured.out


@pytest.mark.parametrize(
    ("argv", "complaint"),
    [
        (["none.jsonl"], r"none\.jsonl: No such file"),
        (["BAD"], r"bad\.jsonl:2: not JSON"),
        (["sample", "--speed", "2"], "no recorded times"),
        (["sample", "--block-tokens", "16"], "carries its own text"),
        (["sample-mooncake", "--arrivals", "gamma"], "--arrivals needs --rate"),
        (["sample-mooncake", "--rate", "5", "--speed", "2"], "--rate replaces the recorded times"),
        (["sample-mooncake", "--rate", "much"], "'much' is no rate"),
        (["sample-mooncake", "--scale", "0.5", "--block-tokens", "128"], "differ"),
        (["sample-mooncake", "--scale", "0"], "--scale: 0 is not above 0"),
        (["sample", "--limit", "x"], "--limit: invalid"),
        (["sample", "--url", "localhost"], "is not an address"),
        (["sample", "--tokenizer", "/nowhere"], "--tokenizer"),
        (["shared-prefix:what=1"], "no 'what'"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(tmp_path: Path, argv: list[str], complaint: str, free_port: int) -> None:
    (tmp_path / "bad.jsonl").write_text('{"timestamp":0,"input_length":5,"output_length":3,"hash_ids":[0]}\n{"timest\n')
    given = [str(tmp_path / "bad.jsonl") if word == "BAD" else word for word in argv]
    url = [] if "--url" in argv else ["--url", f"http://127.0.0.1:{free_port}"]
    with pytest.raises(UsageError, match=complaint) as caught:
        headway(*given, *url)
    assert "\n" not in str(caught.value)


def test_a_fleet_that_is_not_there_is_named(free_port: int) -> None:
    with pytest.raises(UsageError, match=f"http://127.0.0.1:{free_port} does not answer"):
        headway("sample", "--url", f"http://127.0.0.1:{free_port}")


def command(*argv: object) -> list[str]:
    """As the installed console script starts it."""
    return [sys.executable, "-m", "headway", "replay", *map(str, argv)]


def test_a_bad_line_ends_the_process_with_code_two_and_one_line(tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text('{"timestamp":0,"input_length":5,"output_length":3,"hash_ids":[0]}\n{"timest\n')
    done = subprocess.run(command(path), capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert f"{path}:2: not JSON" in done.stderr


def test_an_interrupt_ends_cleanly_with_the_summary_so_far(tmp_path: Path) -> None:
    answered: list[bool] = []

    async def half(request: Request, reply: Reply) -> bool:
        if len(server.requests) < 6:  # one of /v1/models and four
            kept = await routed(request, reply)
            answered.append(kept)
            return kept
        await until(lambda: len(answered) == 5, "those before it are answered")
        os.kill(process.pid, signal.SIGINT)
        return bool(await asyncio.Event().wait())

    trace = mooncake(tmp_path / "t.gz", 5, gap_ms=300)
    due = {"timestamp": 600_000, "input_length": 600, "output_length": 3, "hash_ids": [0, 9]}  # long after the interrupt
    trace.write_bytes(trace.read_bytes() + gzip.compress(json.dumps(due).encode()))
    with in_thread(half) as server:
        server: SseServer
        with subprocess.Popen(
            command(trace, "--url", server.url, "--out", tmp_path / "run.jsonl"),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "4 ok, 0 failed, 1 interrupted" in out
    assert "Traceback" not in err
    assert len(recorder.read(tmp_path / "run.jsonl")) == 5
