"""The experiment of unequal fleets: policies on the same traffic, where all workers are alike and where they are not.

equal           every worker as its preset
half slow       half of them take 2.5 times as long for every step
small caches    half of them have a fifth of the KV blocks
joining         two slow workers join when the others have been known for a while
two models      half of them serve another model on another engine; half of either's workers are slow

Rates are shares of what each fleet can serve. Models are trained in the run, from nothing; requests count from the moment on
when the first one serves, and where workers join, from then on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from emulator.presets import PRESETS
from loadgen.arrivals import steady
from runtime import rng
from simulation.chats import Chats
from simulation.faults import Fault, KillEngine, slow
from simulation.learning import Learning
from simulation.summary import Figures, figures
from simulation.world import WARM_UP_S, Report, Setup

SLOW_FACTOR = 2.5
CACHE_SHARE = 0.2
FAMILIES = 48
"""Prompts that begin alike: what they share fills a tenth of a whole cache, half of a small one."""
LEARN = ("predictive",)
"""Policies for which a run trains models on its own outcomes."""


@dataclass(frozen=True, slots=True)
class Fleet:
    """slowed, small: how many of the workers, the first ones; joins_s: when the slow ones come, virtual seconds; others: how
    many, the last ones, serve OTHER, and as many of the slow ones are of them."""

    name: str
    slowed: int = 0
    small: int = 0
    joins_s: float = 0.0
    others: int = 0

    def __post_init__(self) -> None:
        assert max(self.slowed, self.small) <= WORKERS, f"{self.name}: {self.slowed} slow and {self.small} small of {WORKERS}"

    @property
    def slow_workers(self) -> list[int]:
        """Their places: of each model the first ones."""
        of_others = self.slowed * self.others // WORKERS
        first_other = WORKERS - self.others
        return [*range(self.slowed - of_others), *range(first_other, first_other + of_others)]

    def capacities(self) -> tuple[float, float]:
        """Requests a second that the workers of either model can serve, by their speed alone."""
        speeds = [1 / SLOW_FACTOR if place in self.slow_workers else 1.0 for place in range(WORKERS)]
        first_other = WORKERS - self.others
        return CAPACITY / WORKERS * sum(speeds[:first_other]), OTHER_CAPACITY / WORKERS * sum(speeds[first_other:])

    @property
    def capacity(self) -> float:
        """Requests a second that it can serve."""
        return sum(self.capacities())


WORKERS = 8
CAPACITY = 36.0
"""Requests a second of a healthy fleet under the traffic below, measured by offering 40."""
OTHER = "llama2-13b-a100-40gb"
OTHER_CAPACITY = 40.0
"""The same of a fleet of these: it keeps up with 40 and not with 60, of which it completes 54 for want of KV blocks."""
FLEETS = (
    Fleet("equal"),
    Fleet("half slow", slowed=WORKERS // 2),
    Fleet("small caches", small=WORKERS // 2),
    Fleet("joining", slowed=2, joins_s=90.0),
    Fleet("two models", slowed=WORKERS // 2, others=WORKERS // 2),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """load: share of a fleet's capacity; slo_s: of TTFT, for goodput."""

    preset: str = "tiny-cpu"
    load: float = 0.75
    duration_s: float = 300.0
    train_every_s: float = 60.0
    slo_s: float = 0.5

    def setup(self, fleet: Fleet, policy: str, seed: int) -> Setup:
        """Arrivals are the same for every policy."""
        chats = Chats(PRESETS[self.preset].model, families=FAMILIES)
        rate = steady(self.load * fleet.capacity)
        faults: tuple[Fault, ...] = slow([(worker, SLOW_FACTOR) for worker in fleet.slow_workers])
        if fleet.joins_s:
            faults += tuple(KillEngine(0.0, worker, fleet.joins_s) for worker in fleet.slow_workers)
        jobs = chats.jobs(rate, duration_s=self.duration_s, rng=rng.stream(seed, "chats"))
        if fleet.others:
            whose, share = rng.stream(seed, "models"), fleet.capacities()[1] / fleet.capacity
            jobs = [replace(job, model=PRESETS[OTHER].model) if whose.random() < share else job for job in jobs]
        return Setup(
            jobs=jobs,
            shape=chats.shape,
            policy=policy,
            presets=(self.preset,) * (WORKERS - fleet.others) + (OTHER,) * fleet.others,
            seed=seed,
            faults=faults,
            cache_shares=tuple(CACHE_SHARE if worker < fleet.small else 1.0 for worker in range(WORKERS)),
            learning=Learning(every_s=self.train_every_s) if policy in LEARN else None,
        )

    def counted_from_s(self, fleet: Fleet) -> float:
        """Virtual seconds from the first possible arrival on."""
        return max(self.train_every_s + Learning().takes_s, fleet.joins_s)

    def figures(self, fleet: Fleet, reports: Sequence[Report], *, first_s: float | None = None) -> Figures:
        """One policy on one fleet, all seeds together. first_s: since when requests count, from the first possible arrival."""
        first_s = WARM_UP_S + (self.counted_from_s(fleet) if first_s is None else first_s)
        counted = [one for report in reports for one in report.results if one.arrived_s >= first_s]
        whole = replace(reports[0], results=counted, virtual_s=sum(one.virtual_s for one in reports))
        return figures(whole, slo_ttft_s=self.slo_s, workers=[f"worker-{number}" for number in range(WORKERS)])
