"""Results in figures. A request that was shed, broken or left is no latency, but it is a miss."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import msgspec

from loadgen.summary import Quantiles, quantiles
from simulation.proxy import Fate, Result
from simulation.world import Report


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """One policy. Shares are 0..1, seconds are virtual unless they say wall; None where nothing could be counted."""

    policy: str
    requests: int
    complete: int
    shed: int
    broken: int
    left: int
    retried: int
    fallbacks: int
    ttft_s: Quantiles
    itl_s: Quantiles
    e2e_s: Quantiles
    slo_ttft_s: float
    goodput_share: float
    goodput_per_s: float
    input_tokens: int
    cached_tokens: int
    cached_share: float | None
    match_equal_share: float | None
    match_over_share: float | None  # the router believed in more than the engine had
    workers: dict[str, int]
    imbalance: float  # requests of the busiest worker, 1.0 is an equal share
    busy: list[float]  # share of the time each worker computed
    preemptions: int
    virtual_s: float
    wall_s: float
    speed: float  # virtual seconds a wall second
    events: int
    steps: int


def figures(report: Report, *, slo_ttft_s: float, workers: Sequence[str]) -> Figures:
    """workers: all names, so that idle ones count, too."""
    results = report.results
    good = [result for result in results if result.fate is Fate.COMPLETE]
    hits = sum(0 <= result.ttft_s <= slo_ttft_s for result in good)
    compared = [result for result in good if result.matched_tokens >= 0]
    prompt, cached = sum(result.input_tokens for result in good), sum(result.cached_tokens for result in good)
    served = Counter(result.worker for result in results if result.worker)
    per_worker = {worker: served[worker] for worker in workers}
    total = sum(per_worker.values())
    return Figures(
        policy=report.policy,
        requests=len(results),
        complete=len(good),
        shed=_count(results, Fate.SHED),
        broken=_count(results, Fate.BROKEN),
        left=_count(results, Fate.LEFT),
        retried=sum(result.attempts > 1 for result in results),
        fallbacks=sum(result.fallback for result in results),
        ttft_s=quantiles([result.ttft_s for result in good]),
        itl_s=quantiles([result.itl_s for result in good if result.itl_s >= 0]),
        e2e_s=quantiles([result.ended_s - result.arrived_s for result in good]),
        slo_ttft_s=slo_ttft_s,
        goodput_share=hits / len(results) if results else 0.0,
        goodput_per_s=hits / report.virtual_s if report.virtual_s > 0 else 0.0,
        input_tokens=prompt,
        cached_tokens=cached,
        cached_share=cached / prompt if prompt else None,
        match_equal_share=_share(sum(result.matched_tokens == result.cached_tokens for result in compared), len(compared)),
        match_over_share=_share(sum(result.matched_tokens > result.cached_tokens for result in compared), len(compared)),
        workers=per_worker,
        imbalance=max(per_worker.values(), default=0) * len(per_worker) / total if total else 1.0,
        busy=report.busy,
        preemptions=report.preemptions,
        virtual_s=report.virtual_s,
        wall_s=report.wall_s,
        speed=report.virtual_s / report.wall_s if report.wall_s > 0 else 0.0,
        events=report.events,
        steps=report.steps,
    )


def _count(results: Sequence[Result], fate: Fate) -> int:
    return sum(result.fate is fate for result in results)


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None
