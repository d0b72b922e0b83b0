"""A whole comparison: the same rows, one round a policy, each round with prompts of its own.

A round that asked the same texts again would find the caches of the round before; so every round has its own salt. The times
are the same in each: policies face the same arrivals.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

from loadgen import arrivals, progress
from loadgen.client import Client, Exchange
from loadgen.recorder import Record, record
from loadgen.rows import Trace
from loadgen.runner import IN_FLIGHT_MAX_DEFAULT, Runner
from loadgen.summary import Figures, Slo, Summary
from loadgen.synthetic import BlockText
from loadgen.workload import Shape, TimedRequest, requests
from runtime import rng
from runtime.clock import Clock

BeforeRound = Callable[[str], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Timing:
    """When requests are due. `rate` None: as recorded."""

    rate: arrivals.RateProfile | None = None
    process: str = "poisson"
    cv: float = 2.0
    speed: float = 1.0
    smooth: bool = False

    def times(self, trace: Trace, seed: int) -> Iterator[float]:
        if self.rate is not None:
            return arrivals.process(self.process, self.rate, rng=rng.stream(seed, "arrivals"), cv=self.cv)
        at_s = [row.at_s for row in trace.rows]
        return arrivals.recorded(arrivals.smooth(at_s) if self.smooth else at_s, speed=self.speed)


@dataclass(frozen=True, slots=True)
class Plan:
    """policies: one round each, in this order; "" leaves the router's policy as it is."""

    trace: Trace
    timing: Timing
    shape: Shape
    words: Sequence[str]
    policies: tuple[str, ...] = ("",)
    seed: int = 0
    slo: Slo | None = None
    match_block_tokens: int = 16
    in_flight_max: int = IN_FLIGHT_MAX_DEFAULT


async def play(
    plan: Plan,
    client: Client,
    *,
    clock: Clock,
    ending: asyncio.Event,
    before_round: BeforeRound | None = None,
    on_record: Callable[[Record], None] | None = None,
    title: str = "replay",
) -> list[Figures]:
    """Figures per policy, in the order in which they came first; of what was done until `ending`, if that was set."""
    summaries: dict[str, Summary] = {}
    for place, policy in enumerate(plan.policies):
        if ending.is_set():
            break
        if policy and before_round is not None:
            await before_round(policy)
        new = Summary(
            policy=policy, slo=plan.slo, match_block_tokens=plan.match_block_tokens, exact_outputs=plan.shape.ignore_eos
        )
        summary = summaries.setdefault(policy, new)
        name = " ".join(filter(None, (title, f"{place + 1}/{len(plan.policies)}" if len(plan.policies) > 1 else "", policy)))
        await _round(plan, place, policy, client, summary, on_record, clock=clock, ending=ending, title=name)
    return [summary.figures() for summary in summaries.values()]


async def _round(
    plan: Plan,
    place: int,
    policy: str,
    client: Client,
    summary: Summary,
    on_record: Callable[[Record], None] | None,
    *,
    clock: Clock,
    ending: asyncio.Event,
    title: str,
) -> None:
    def on_end(request: TimedRequest, exchange: Exchange) -> None:
        entry = record(request, exchange, start=runner.start, round_index=place, policy=policy)
        summary.add(entry, exchange.answer.gaps)
        if on_record is not None:
            on_record(entry)

    runner = Runner(client, on_end, clock=clock, in_flight_max=plan.in_flight_max)
    shown = asyncio.create_task(progress.follow(runner.counts, progress.view(title, len(plan.trace.rows))))
    try:
        await runner.run(requests_of(plan, place), ending)
    finally:
        shown.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await shown


def requests_of(plan: Plan, place: int) -> Iterator[TimedRequest]:
    """The requests of one round."""
    salt = "-".join(filter(None, (plan.shape.salt, f"round-{place}" if place else "")))
    shape = replace(plan.shape, salt=salt, request_id_prefix=f"{plan.shape.request_id_prefix}-{place}")
    text = BlockText(plan.words, salt=salt)
    times = islice(plan.timing.times(plan.trace, plan.seed), len(plan.trace.rows))
    return requests(plan.trace.rows, times, shape, text)
