"""A profile of a fleet, step by step: every request's features as the router knew them, beside what became of it.

The fleet is behind a protocol: `profile_fleet` is a running one behind its proxy; the command has another in virtual time.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

from loadgen import sweep
from loadgen.errors import LoadError
from loadgen.profile_progress import SweepView
from loadgen.profile_rows import Played, table
from loadgen.profile_run import Plan, RunDirectory
from loadgen.rows import Row
from loadgen.sweep import Combination, Grid, Step
from loadgen.sweep_rows import Source
from runtime import rng

PROBE_REQUESTS = 24
"""Of the burst that looks for saturation, a worker."""
BURST_RPS = 1e6
PROBE_REQUESTS_MAX = 480
"""Of each probe after it, over all workers: enough for four times the requests that are in flight, up to this."""


@dataclass(slots=True)
class Result:
    """What became of a step. ended_s: of each completed request, fleet seconds from the step's begin; interrupted: someone
    ended it before its end; why: the first failure in words, "" for none."""

    played: list[Played] = field(default_factory=list)
    ended_s: list[float] = field(default_factory=list)
    failed: int = 0
    why: str = ""
    interrupted: bool = False


class Fleet(Protocol):
    """speed: how many of its seconds pass in one of the machine's."""

    workers: int
    speed: float

    async def play(self, step: Step, rows: list[Row]) -> Result:
        """Sends the step's requests at its rate and waits for the last end. LoadError: the fleet is not there (any more)."""


class Interrupted(Exception):
    """Someone ended the run; what is finished is kept."""


async def find_saturation(fleet: Fleet, source: Source, grid: Grid, view: SweepView) -> dict[str, float]:
    """Requests a second at which the fleet ends no more than arrive, by combination.

    A burst gives a first rate; it is doubled until fewer than 8 of 10 arrivals end meanwhile, and that rate of ends is taken.
    LoadError: a probe was not answered. Interrupted.
    """
    found: dict[str, float] = {}
    combinations = [] if grid.rates_rps else grid.combinations()
    for number, combination in enumerate(combinations):
        view.calibrating(number, len(combinations), str(combination))
        found[str(combination)] = await _saturation(fleet, source, grid, combination, number)
    return found


async def _saturation(fleet: Fleet, source: Source, grid: Grid, combination: Combination, number: int) -> float:
    least = PROBE_REQUESTS * fleet.workers

    async def probe(rate_rps: float, attempt: int, requests: int) -> Result:
        seed = rng.stream(grid.seed, f"probe {number} {attempt}").getrandbits(31)
        step = Step(
            index=-1 - number * 100 - attempt,
            combination=combination,
            rate_rps=rate_rps,
            level=sweep.LEVEL_UNKNOWN,
            requests=requests,
            seed=seed,
            policy=grid.policies[0],
            process="constant",
        )
        result = await fleet.play(step, source.rows(combination, requests, rng.stream(seed, "rows")))
        if result.interrupted:
            raise Interrupted
        if len(result.ended_s) < requests // 2:
            raise LoadError(f"looking for saturation: {result.failed} of {requests} requests failed: {result.why}")
        return result

    burst = (await probe(BURST_RPS, 0, least)).ended_s
    lasted_s = sorted(burst)[len(burst) // 2]
    ends = rate_rps = 0.0
    for attempt, rate_rps in enumerate(sweep.probe_rates(len(burst) / max(burst)), start=1):
        requests = min(max(PROBE_REQUESTS_MAX, least), max(least, round(4 * rate_rps * lasted_s)))
        ends = sweep.ends_per_s((await probe(rate_rps, attempt, requests)).ended_s)
        if ends < sweep.KEPT_UP * rate_rps:
            return ends
    return min(ends, rate_rps)


def plan_of(
    grid: Grid, saturation_rps: dict[str, float], *, run: str, started_at: float, speed: float, options: dict[str, Any]
) -> Plan:
    """LoadError: the grid has no end."""
    try:
        steps = sweep.steps(grid, lambda combination: saturation_rps[str(combination)])
    except ValueError as error:
        raise LoadError(str(error)) from None
    return Plan(
        run=run,
        started_at=started_at,
        speed=speed,
        grid=grid,
        steps=steps,
        saturation_rps={name: round(rate, 4) for name, rate in saturation_rps.items()},
        options=options,
    )


async def play(plan: Plan, fleet: Fleet, source: Source, directory: RunDirectory, view: SweepView) -> int:
    """Every step that has no part yet. The number of requests that failed, of these. LoadError, Interrupted."""
    finished = directory.finished(plan)
    failed = 0
    rows = sum(directory.rows(index) for index in finished)
    done = sum(step.requests for step in plan.steps if step.index in finished)
    for step in plan.steps:
        if step.index in finished:
            continue
        view.playing(step, plan, done=done, rows=rows, failed=failed)
        result = await fleet.play(step, source.rows(step.combination, step.requests, rng.stream(step.seed, "rows")))
        if result.interrupted:
            raise Interrupted
        if not result.played:
            raise LoadError(
                f"step {step.index} ({step.combination}, {step.rate_rps:.3g}/s): none of its {step.requests} requests became "
                f"a sample: {result.why or 'no outcome came with features'}"
            )
        part = table(result.played, step, run=plan.run, speed=plan.speed, start_s=plan.started_at)
        directory.write_part(step.index, part)
        done += step.requests
        rows += len(part)
        failed += result.failed
    view.playing(None, plan, done=done, rows=rows, failed=failed)
    return failed
