"""A fleet in virtual time, to be profiled as a running one is: the same cores, a thousand times faster, from one seed.

Each step is a simulation of its own: caches are cold and nothing is known of the workers, so WARM_UP requests a worker go
ahead, slowly, and are no rows. They begin as the step's own requests do, where those share beginnings, and end otherwise. The
router has no bound on a worker's requests: the tail of an overload is wanted, too.
"""

from __future__ import annotations

import functools
from bisect import bisect_right
from collections import Counter, defaultdict
from dataclasses import replace
from itertools import islice

import msgspec

from contract.keyspace import EngineReport
from contract.outcome import Outcome
from controlplane import profiles
from emulator.presets import PRESETS
from headway.errors import UsageError
from headway.profile_choices import Choices
from loadgen import arrivals
from loadgen.profile import Result
from loadgen.profile_rows import Gauges, Played
from loadgen.rows import NAMESPACE_BITS, Blocks, Messages, Row
from loadgen.sweep import Step
from loadgen.workload import Shape
from runtime import rng
from simulation import faults
from simulation.control import Parts
from simulation.proxy import Fate
from simulation.timeline import UNIX_OFFSET_S
from simulation.workload import Job, jobs
from simulation.world import WARM_UP_S, Setup, Simulation

POLICY_DEFAULT = "lmetric"
WARM_UP = 6
WARM_UP_NAMESPACE = 1 << 20
"""Of block ids; below are those of the rows."""
WARM_UP_SHARE = 0.25
"""Of the step's rate."""
SLOT_S = 3_600.0
"""Of virtual time, for each step: decisions of two steps are never close to each other."""
ACTIVE_MAX = 1_000_000


class _Listened(Simulation):
    """Keeps what the engines' reports said."""

    def __init__(self, setup: Setup) -> None:
        self.gauges: dict[str, list[Gauges]] = defaultdict(list)
        super().__init__(setup)

    def reported(self, report: EngineReport) -> None:
        now = self._timeline.unix()
        self.gauges[report.worker].append(
            Gauges(now - report.scrape_age_s, report.running, report.waiting, report.kv_usage, report.preemptions)
        )
        super().reported(report)


class SimulatedFleet:
    """presets: a name a worker; speeds: how fast each is beside its preset, in turn; empty: all as their presets.

    Where they serve several models, each request is for one of them: drawn by shares (a number a model, in the order in which
    presets name them first; empty: as many workers as serve it). model_len_max: tokens that every one of them takes.
    """

    speed = 1.0

    def __init__(
        self,
        presets: tuple[str, ...],
        speeds: tuple[float, ...],
        *,
        run: str,
        started_at: float,
        choices: Choices | None = None,
        shares: tuple[float, ...] = (),
    ) -> None:
        """choices: who asks what the other workers would have been. UsageError: a preset that there is not, shares that are not
        those of its models, or choices among workers of several models."""
        if unknown := [name for name in presets if name not in PRESETS]:
            raise UsageError(f"--preset: no preset {unknown[0]!r}; there are {', '.join(PRESETS)}")
        self._models = Counter(PRESETS[name].model for name in presets)
        if shares and len(shares) != len(self._models):
            raise UsageError(f"--shares: {len(shares)} numbers for the models {', '.join(self._models)}")
        if choices is not None and len(self._models) > 1:
            raise UsageError(f"--choices: among workers of one model; {', '.join(dict.fromkeys(presets))} serve several")
        self._shares = shares or tuple(map(float, self._models.values()))
        self.model_len_max = min(PRESETS[name].max_model_len for name in presets)
        self.workers = len(presets)
        self._presets = presets
        self._speeds = speeds
        self._run = run
        self._started_at = started_at
        self._choices = choices

    async def play(self, step: Step, rows: list[Row]) -> Result:
        shape = Shape(model=next(iter(self._models)))
        warm_up = min(WARM_UP * self.workers, len(rows)) if step.index >= 0 else 0
        arriving, _ = jobs(
            [*map(_other, rows[:warm_up], range(warm_up)), *rows],
            iter(self._times(step, warm_up, len(rows))),
            shape,
            model_len_max=self.model_len_max,
        )
        if len(self._models) > 1:
            drawn = rng.stream(step.seed, "models").choices(tuple(self._models), self._shares, k=len(arriving))
            arriving = [replace(job, model=model) for job, model in zip(arriving, drawn, strict=True)]
        outcomes: list[Outcome] = []
        first = next((job.index for job in arriving if job.index >= warm_up), 0)
        parts = Parts(profiles=_unbounded, outcome=outcomes.append)
        if self._choices is None or step.index < 0:
            simulation = _Listened(self._setup(step, arriving, shape, parts))
            report = simulation.run()
        else:
            chooser = self._choices.chooser(step, workers=self.workers, skipped=first)
            simulation = _Listened(self._setup(step, arriving, shape, chooser.parts(parts, step.policy or POLICY_DEFAULT)))
            with chooser.contained():
                report = simulation.run()
            self._choices.keep(step, chooser)
        good = [result for result in report.results if result.fate is Fate.COMPLETE and result.index >= warm_up]
        bad = [result for result in report.results if result.fate is not Fate.COMPLETE and result.index >= warm_up]
        begin_s = WARM_UP_S + (arriving[first].at_s if arriving else 0.0)
        return Result(
            played=[
                Played(self._placed(outcome, step), self._shifted(_newest(simulation.gauges[outcome.worker], outcome), step))
                for outcome in outcomes
                if int(outcome.request_id) >= warm_up
            ],
            ended_s=[result.ended_s - begin_s for result in good],
            failed=len(bad),
            why=bad[0].why if bad else "",
        )

    def _setup(self, step: Step, arriving: list[Job], shape: Shape, parts: Parts) -> Setup:
        slow = [(place, 1 / self._speeds[place % len(self._speeds)]) for place in range(self.workers) if self._speeds]
        return Setup(
            jobs=arriving,
            shape=shape,
            policy=step.policy or POLICY_DEFAULT,
            presets=self._presets,
            seed=step.seed,
            faults=faults.slow(slow),
            parts=parts,
        )

    def _times(self, step: Step, warm_up: int, count: int) -> list[float]:
        slowly = WARM_UP_SHARE * step.rate_rps
        times = [number / slowly for number in range(warm_up)]
        begin_s = warm_up / slowly
        process = arrivals.process(step.process, arrivals.steady(step.rate_rps), rng=rng.stream(step.seed, "arrivals"))
        return [*times, *(begin_s + at_s for at_s in islice(process, count))]

    def _placed(self, outcome: Outcome, step: Step) -> Outcome:
        """As if the steps had been played one after the other."""
        return msgspec.structs.replace(
            outcome,
            decided_at=self._at(outcome.decided_at, step),
            decision_id=(step.index << 32) + outcome.decision_id if step.index >= 0 else outcome.decision_id,
            request_id=f"{self._run}-{step.index}-{outcome.request_id}",
        )

    def _shifted(self, gauges: Gauges | None, step: Step) -> Gauges | None:
        if gauges is None:
            return None
        return Gauges(self._at(gauges.at_s, step), gauges.running, gauges.waiting, gauges.kv_usage, gauges.preemptions)

    def _at(self, unix_s: float, step: Step) -> float:
        return unix_s - UNIX_OFFSET_S + self._started_at + max(0, step.index) * SLOT_S


def _other(row: Row, number: int) -> Row:
    """As long as `row`, with its shared beginning where it has one, and an end that no row has. Messages differ at once."""
    prompt = row.prompt
    if not isinstance(prompt, Blocks):
        return Row(row.at_s, Messages([{"role": "user", "content": f"Warm-up {number}."}, *prompt.items]), row.output_tokens)
    own = (WARM_UP_NAMESPACE + number) << NAMESPACE_BITS
    ids = (*prompt.ids[:-1], range(own, own + len(prompt.ids[-1])))
    return Row(row.at_s, Blocks(prompt.tokens, ids, prompt.block_tokens), row.output_tokens)


_unbounded = functools.partial(profiles.build, active_max=ACTIVE_MAX)


def _newest(known: list[Gauges], outcome: Outcome) -> Gauges | None:
    """Before the decision."""
    place = bisect_right(known, outcome.decided_at, key=lambda gauges: gauges.at_s)
    return known[place - 1] if place else None
