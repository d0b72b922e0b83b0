"""The rounds: every router in turn, again and again, so that what else the machine does falls on all alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

from headway.bench_proxy.processes import cpu_s
from headway.bench_proxy.programs import Programs, Result
from headway.bench_proxy.prompts import Scenario
from headway.bench_proxy.routers import Router

WARM_S = 0.5
HALF = 0.5


@dataclass(frozen=True)
class Figures:
    """Medians over the rounds, of one router in one scenario. cpu_us: user + system of all its processes."""

    router: str
    scenario: str
    requests_per_s: float
    chunks_per_s: float
    cpu_us_per_request: float
    cpu_us_per_chunk: float
    first_us_p50: float
    first_us_p99: float
    errors: int
    added_ttft_us_p50: float | None = None  # over the engine alone, at the rate in `rate`
    added_ttft_us_p99: float | None = None
    rate: float = 0.0

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


@dataclass(frozen=True)
class _Run:
    result: Result
    cpu_s: float


def throughput(
    routers: Sequence[Router],
    scenario: Scenario,
    requests: Path,
    programs: Programs,
    *,
    rounds: int,
    seconds: float,
    tell: Callable[[str], None],
) -> list[Figures]:
    """Closed loop: `scenario.clients` connections, each with one request in flight."""
    runs: dict[str, list[_Run]] = {router.name: [] for router in routers}
    for number in range(rounds):
        for router in routers:
            tell(f"{scenario.name}, round {number + 1} of {rounds}: {router.name}")
            router.prepare()
            programs.run_load(router.port, requests, clients=scenario.clients, seconds=WARM_S)
            runs[router.name].append(_run(router, scenario, requests, programs, seconds, rate=0.0))
    return [_figures(router.name, scenario, runs[router.name]) for router in routers]


def added_ttft(
    routers: Sequence[Router],
    engine_port: int,
    scenario: Scenario,
    requests: Path,
    programs: Programs,
    peaks: dict[str, float],
    *,
    rounds: int,
    seconds: float,
    tell: Callable[[str], None],
) -> list[Figures]:
    """Open loop at half of each router's own peak (requests/s by router); the engine alone at the same rate is subtracted."""
    runs: dict[str, list[_Run]] = {router.name: [] for router in routers}
    alone: dict[str, list[Result]] = {router.name: [] for router in routers}
    for number in range(rounds):
        for router in routers:
            tell(f"{scenario.name}, half load, round {number + 1} of {rounds}: {router.name}")
            rate = HALF * peaks[router.name]
            router.prepare()
            programs.run_load(router.port, requests, clients=scenario.clients, seconds=WARM_S, rate=rate)
            runs[router.name].append(_run(router, scenario, requests, programs, seconds, rate=rate))
            alone[router.name].append(
                programs.run_load(engine_port, requests, clients=scenario.clients, seconds=seconds, rate=rate)
            )
    found = []
    for router in routers:
        base = _figures(router.name, scenario, runs[router.name])
        direct_p50 = median(result.first_us_p50 for result in alone[router.name])
        direct_p99 = median(result.first_us_p99 for result in alone[router.name])
        added = {"added_ttft_us_p50": base.first_us_p50 - direct_p50, "added_ttft_us_p99": base.first_us_p99 - direct_p99}
        found.append(Figures(**{**asdict(base), **added, "rate": HALF * peaks[router.name]}))
    return found


def _run(router: Router, scenario: Scenario, requests: Path, programs: Programs, seconds: float, *, rate: float) -> _Run:
    before = cpu_s(router.pids)
    result = programs.run_load(router.port, requests, clients=scenario.clients, seconds=seconds, rate=rate)
    return _Run(result, cpu_s(router.pids) - before)


def _figures(name: str, scenario: Scenario, runs: Sequence[_Run]) -> Figures:
    def middle(read: Callable[[_Run], float]) -> float:
        return median(read(run) for run in runs)

    per_request = middle(lambda run: 1e6 * run.cpu_s / max(1, run.result.responses))
    rate = middle(lambda run: run.result.responses / run.result.seconds)
    return Figures(
        router=name,
        scenario=scenario.name,
        requests_per_s=rate,
        chunks_per_s=rate * scenario.chunks,
        cpu_us_per_request=per_request,
        cpu_us_per_chunk=per_request / scenario.chunks if scenario.chunks else 0.0,
        first_us_p50=middle(lambda run: run.result.first_us_p50),
        first_us_p99=middle(lambda run: run.result.first_us_p99),
        errors=sum(run.result.errors for run in runs),
    )
