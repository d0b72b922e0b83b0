"""The rounds: every router in turn, again and again, so that what else the machine does falls on all alike.

Who measures starts the routers anew for every round: a process keeps for life what fell to it when it began (threads and
connections on which core, memory where), and that is worth a factor of two to some of them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
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
PEAK_S = 1.0

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Figures:
    """Medians over the rounds, of one router in one scenario. cpu_us: user + system of all its processes."""

    router: str
    scenario: str
    requests_per_s: float
    chunks_per_s: float
    cpu_us_per_request: float
    cpu_us_least: float  # per request, of the rounds
    cpu_us_most: float
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

    @property
    def cpu_us(self) -> float:
        """Per request."""
        return 1e6 * self.cpu_s / max(1, self.result.responses)


class Measurement(ABC):
    """One scenario. requests: the file that the load reads; seconds: of one run; warm_s: of the load before it."""

    def __init__(
        self, scenario: Scenario, requests: Path, programs: Programs, seconds: float, tell: Tell, *, warm_s: float = WARM_S
    ) -> None:
        self.scenario = scenario
        self._requests = requests
        self._programs = programs
        self._seconds = seconds
        self._tell = tell
        self._warm_s = warm_s
        self._runs: dict[str, list[_Run]] = {}

    @abstractmethod
    def round(self, routers: Sequence[Router]) -> None:
        """Each of them once, by name the same as in other rounds."""

    @abstractmethod
    def figures(self) -> list[Figures]: ...

    def _measure(self, router: Router, seconds: float, rate: float) -> _Run:
        """One run, warmed up."""
        router.prepare()
        self._load(router.port, self._warm_s, rate)
        before = cpu_s(router.pids)
        result = self._load(router.port, seconds, rate)
        return _Run(result, cpu_s(router.pids) - before)

    def _load(self, port: int, seconds: float, rate: float) -> Result:
        return self._programs.run_load(port, self._requests, clients=self.scenario.clients, seconds=seconds, rate=rate)


class Throughput(Measurement):
    """Closed loop: `scenario.clients` connections, each with one request in flight."""

    def round(self, routers: Sequence[Router]) -> None:
        for router in routers:
            self._tell(f"{self.scenario.name}: {router.name}")
            self._runs.setdefault(router.name, []).append(self._measure(router, self._seconds, rate=0.0))

    def figures(self) -> list[Figures]:
        return [_figures(name, self.scenario, runs) for name, runs in self._runs.items()]


class AddedTtft(Measurement):
    """Open loop at half of each router's own peak, found in its first round unless given (requests/s by router); what the
    engine alone takes at that rate is subtracted."""

    def __init__(
        self,
        scenario: Scenario,
        requests: Path,
        programs: Programs,
        seconds: float,
        tell: Tell,
        *,
        engine_port: int,
        peaks: dict[str, float] | None = None,
        peak_s: float = PEAK_S,
        warm_s: float = WARM_S,
    ) -> None:
        super().__init__(scenario, requests, programs, seconds, tell, warm_s=warm_s)
        self._peak_s = peak_s
        self._engine_port = engine_port
        self._peaks = dict(peaks or {})
        self._alone: dict[str, list[Result]] = {}

    def round(self, routers: Sequence[Router]) -> None:
        for router in routers:
            if router.name not in self._peaks:
                self._tell(f"{self.scenario.name}, peak: {router.name}")
                run = self._measure(router, self._peak_s, rate=0.0)
                self._peaks[router.name] = run.result.responses / run.result.seconds
            self._tell(f"{self.scenario.name}, half load: {router.name}")
            rate = HALF * self._peaks[router.name]
            self._runs.setdefault(router.name, []).append(self._measure(router, self._seconds, rate))
            self._alone.setdefault(router.name, []).append(self._load(self._engine_port, self._seconds, rate))

    def figures(self) -> list[Figures]:
        found = []
        for name, runs in self._runs.items():
            base = _figures(name, self.scenario, runs)
            alone = self._alone[name]
            p50 = base.first_us_p50 - median(result.first_us_p50 for result in alone)
            p99 = base.first_us_p99 - median(result.first_us_p99 for result in alone)
            added = {"added_ttft_us_p50": p50, "added_ttft_us_p99": p99, "rate": HALF * self._peaks[name]}
            found.append(Figures(**{**asdict(base), **added}))
        return found


def _figures(name: str, scenario: Scenario, runs: Sequence[_Run]) -> Figures:
    def middle(read: Callable[[_Run], float]) -> float:
        return median(read(run) for run in runs)

    per_request = middle(lambda run: run.cpu_us)
    rate = middle(lambda run: run.result.responses / run.result.seconds)
    return Figures(
        router=name,
        scenario=scenario.name,
        requests_per_s=rate,
        chunks_per_s=rate * scenario.chunks,
        cpu_us_per_request=per_request,
        cpu_us_least=min(run.cpu_us for run in runs),
        cpu_us_most=max(run.cpu_us for run in runs),
        cpu_us_per_chunk=per_request / scenario.chunks if scenario.chunks else 0.0,
        first_us_p50=middle(lambda run: run.result.first_us_p50),
        first_us_p99=middle(lambda run: run.result.first_us_p99),
        errors=sum(run.result.errors for run in runs),
    )
