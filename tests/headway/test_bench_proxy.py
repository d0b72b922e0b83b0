"""`headway bench proxy`: what its figures are made of, its arguments, and its load against its engine."""

from __future__ import annotations

import argparse
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random
from statistics import median

import pytest
from rich.console import Console

from headway import bench
from headway.bench_proxy import measure, processes, programs, prompts, table
from headway.bench_proxy.measure import AddedTtft, Figures, Throughput
from headway.bench_proxy.processes import NotStarted, Process, cpu_s, free_ports
from headway.bench_proxy.programs import LoadFailed, Programs, Result
from headway.bench_proxy.prompts import MODEL, Scenario
from headway.bench_proxy.routers import Router
from headway.errors import UsageError


def figures(router: str, cost_us: float, **more: float) -> Figures:
    fields = {"requests_per_s": 1000.0, "chunks_per_s": 0.0, "cpu_us_per_chunk": 0.0, "first_us_p50": 5.0, "first_us_p99": 9.0}
    costs = {"cpu_us_per_request": cost_us, "cpu_us_least": 0.9 * cost_us, "cpu_us_most": 2 * cost_us}
    return Figures(router, "small", errors=0, **costs | fields | more)  # type: ignore[arg-type]


MEASURED = [
    figures("nginx", 20.0),
    figures("vllm:round_robin", 60.0),
    figures("sglang:round_robin", 80.0),
    figures("sglang:cache_aware", 100.0),
    figures("litellm", 2000.0),
    figures("headway:round_robin", 45.0),
]


def printed(found: list[Figures]) -> dict[str, list[str]]:
    """Cells by router."""
    console = Console(width=250, record=True, file=io.StringIO())
    console.print(table.cost_table("title", found))
    lines = [
        [cell.strip() for cell in line.strip("│ ").split("│")] for line in console.export_text().splitlines() if "│" in line
    ]
    return {cells[0]: cells[1:] for cells in lines}


def test_ratios_are_to_nginx_and_to_the_cheaper_rust_router() -> None:
    assert dict(table.references(MEASURED)) == {"x nginx": 20.0, "x Rust round robin": 60.0, "x Rust cache_aware": 100.0}
    ours = printed(MEASURED)["headway:round_robin"]
    assert ours[1:6] == ["45.0", "40.5-90.0", "2.25", "0.75", "0.45"]


def test_what_was_not_measured_has_no_ratio() -> None:
    assert table.cheapest([figures("litellm", 9.0)], "round_robin") is None
    assert printed([figures("headway:round_robin", 45.0)])["headway:round_robin"][3:6] == ["-", "-", "-"]


def run_of(responses: int, cpu: float, p50: float, errors: int = 0, seconds: float = 2.0) -> measure._Run:
    return measure._Run(Result(responses, errors, seconds, p50, 2 * p50, p50), cpu)


def test_figures_are_medians_of_the_rounds_and_errors_their_sum() -> None:
    runs = [run_of(100, 0.01, 50, 1), run_of(200, 0.01, 70), run_of(400, 0.02, 900, 2)]
    found = measure._figures("r", Scenario("chunks", 200, 4, chunks=10), runs)
    assert found.cpu_us_per_request == pytest.approx(median([100, 50, 50]))
    assert found.cpu_us_per_chunk == pytest.approx(5.0)
    assert (found.requests_per_s, found.chunks_per_s) == (100.0, 1000.0)
    assert (found.first_us_p50, found.first_us_p99, found.errors) == (70, 140, 3)


def test_a_run_without_a_response_is_no_division_by_zero() -> None:
    found = measure._figures("r", Scenario("small", 200, 4), [run_of(0, 0.01, 0)])
    assert (found.requests_per_s, found.cpu_us_per_chunk) == (0.0, 0.0)


BUSY_CHILD = """
import subprocess, sys, time
busy = "import signal, time\\nwhile time.process_time() < 0.4: pass\\nsignal.pause()"
subprocess.run([sys.executable, "-c", busy])
"""


def test_the_time_of_children_counts() -> None:
    parent = subprocess.Popen([sys.executable, "-c", BUSY_CHILD], start_new_session=True)
    try:
        until = time.monotonic() + 60
        while cpu_s([parent.pid]) < 0.3:  # counted in whole ticks, so a little less than the 0.4 that it takes
            assert time.monotonic() < until, cpu_s([parent.pid])
    finally:
        os.killpg(parent.pid, signal.SIGKILL)
        parent.wait()
    assert cpu_s([parent.pid]) == 0.0  # gone


@pytest.mark.parametrize("scenario", [Scenario("small", 200, 4), Scenario("paced", 50, 4, chunks=7, pace_ms=10)])
def test_requests_are_whole_and_no_two_are_alike(tmp_path: Path, scenario: Scenario) -> None:
    path = tmp_path / "requests"
    prompts.write(scenario, path, Random(1))
    data, seen, at = path.read_bytes(), set(), 0
    while at < len(data) and len(seen) < 500:
        end = data.index(b"\n", at)
        request = data[end + 1 : end + 1 + int(data[at:end])]
        head, _, body = request.partition(b"\r\n\r\n")
        assert int(head.lower().partition(b"content-length: ")[2]) == len(body)
        asked = json.loads(body)
        assert (asked["model"], len(asked["messages"][0]["content"])) == (MODEL, scenario.prompt_chars)
        assert asked.get("max_tokens", 0) == scenario.chunks
        assert asked.get("seed", 0) == scenario.pace_ms
        seen.add(body)
        at = end + 1 + len(request)
    assert len(seen) == 500


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--routers", "traefik"], "traefik"),
        (["--scenarios", "small,huge"], "huge"),
        (["--rounds", "0"], "not above 0"),
        (["--clients", "many"], "--clients"),
        (["--routers", "headway-model:predictive"], "--model"),
        (["--model", "/nowhere/at/all"], "/nowhere/at/all: no such directory"),
    ],
)
def test_a_wrong_argument_is_one_line_and_exit_code_2(arguments: list[str], says: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "headway", "bench", "proxy", *arguments], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1, done.stderr
    assert says in done.stderr


def test_a_registry_without_models_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no model there"):
        bench._model(tmp_path)


def test_names_are_chosen_once_each_and_all_is_all() -> None:
    assert bench._chosen("b, a,b", ("a", "b"), "thing") == ["b", "a"]
    assert bench._chosen("all", ("a", "b"), "thing") == ["a", "b"]
    with pytest.raises(UsageError, match="no thing 'c'; there are a, b"):
        bench._chosen("a,c", ("a", "b"), "thing")


@pytest.fixture(params=["C", "Python"])
def built(request: pytest.FixtureRequest, tmp_path: Path) -> Programs:
    """Engine and load in each of their languages. Without a C compiler there is one language only to test."""
    found = programs.build(tmp_path, compiler="cc" if request.param == "C" else "no-such-compiler")
    if found.language != request.param:
        pytest.skip("no compiler")
    return found


@pytest.fixture
def engine(built: Programs, tmp_path: Path) -> Iterator[int]:
    """Its port."""
    port = free_ports(2)
    process = Process("engine", [*built.backend, str(port), "2"], tmp_path)
    process.wait_for(port)
    yield port
    process.end()


@pytest.mark.parametrize("scenario", [Scenario("small", 200, 4), Scenario("chunks", 200, 4, chunks=16)])
@pytest.mark.parametrize("rate", [0.0, 100.0])
def test_the_load_gets_what_the_engine_writes(
    built: Programs, engine: int, tmp_path: Path, scenario: Scenario, rate: float
) -> None:
    path = tmp_path / "requests"
    prompts.write(scenario, path, Random(1))
    found = built.run_load(engine, path, clients=4, seconds=0.4, rate=rate)
    assert found.errors == 0
    assert found.responses > 10
    assert 0 < found.first_us_p50 <= found.first_us_p99
    assert not rate or found.responses <= 1.5 * rate * found.seconds


def test_rounds_are_interleaved_and_added_up(built: Programs, engine: int, tmp_path: Path) -> None:
    """The engine itself in the place of two routers: nothing is added, and both are alike."""
    scenario, path, told = Scenario("small", 200, 2), tmp_path / "requests", []
    prompts.write(scenario, path, Random(1))
    routers = [Router(name, engine, []) for name in ("a", "b")]
    throughput = Throughput(scenario, path, built, 0.1, told.append, warm_s=0.05)
    for _ in range(2):
        throughput.round(routers)
    found = throughput.figures()
    assert [one.router for one in found] == ["a", "b"]
    assert [text.rpartition(" ")[2] for text in told] == ["a", "b", "a", "b"]
    assert all(one.requests_per_s > 10 and one.errors == 0 for one in found)
    assert all(one.cpu_us_least <= one.cpu_us_per_request <= one.cpu_us_most for one in found)
    at_half = AddedTtft(
        scenario, path, built, 0.2, told.append, engine_port=engine, peaks={"a": 200.0}, peak_s=0.2, warm_s=0.05
    )
    at_half.round(routers)
    added = at_half.figures()
    assert added[0].rate == 100.0
    assert added[1].rate > 10  # half of the peak that it found by itself
    assert all(one.added_ttft_us_p50 is not None for one in added)


def test_a_load_that_cannot_run_says_why(built: Programs, tmp_path: Path) -> None:
    with pytest.raises(LoadFailed):
        built.run_load(1, tmp_path / "absent", clients=1, seconds=0.1)


def test_a_process_that_does_not_start_is_quoted(tmp_path: Path) -> None:
    process = Process("bad", [sys.executable, "-c", "print('no luck'); raise SystemExit(3)"], tmp_path)
    with pytest.raises(NotStarted, match="no luck"):
        process.wait_for(processes.free_port())


def test_its_arguments_have_sensible_defaults() -> None:
    parser = argparse.ArgumentParser()
    bench.add_arguments(parser)
    args = parser.parse_args(["proxy"])
    assert (args.rounds, args.clients, args.install_peers) == (5, 64, False)
    assert set(args.scenarios.split(",")) <= set(bench.SCENARIOS)


def test_a_benchmark_that_is_none_is_named() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench", "speed"], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 2
    assert "'speed'" in done.stderr
    names = done.stderr.partition("there are")[2].split(", ")
    assert "tokens" in [name.strip() for name in names]
    assert not any(name.strip().startswith("_") for name in names)  # parts of others are not offered
