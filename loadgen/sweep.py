"""The plan of a profile: which steps, each a shape of requests at one rate. Pure.

A combination (prompt lengths, shared prefix, answer lengths) has a saturation of its own, so rates are shares of it ("levels")
unless they are given in requests a second. Steps rotate through combinations and policies from level to level, which covers all
pairs with far fewer requests than every combination at every level; whole rounds are added until there are as many requests as
were asked for. Their order is shuffled: a run that is cut short has seen all levels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import product

import msgspec

from runtime import rng

MIXED = "mixed"
BUCKETS: Mapping[str, tuple[int, int]] = {
    "<128": (16, 127),
    "128-512": (128, 512),
    "512-1024": (513, 1024),
    ">1024": (1025, 0),
}
"""Prompt tokens, both ends included; 0: as long as the run allows."""
MIXES = (MIXED, *BUCKETS)
OUTPUTS: Mapping[str, tuple[int, int]] = {"short": (8, 64), "long": (65, 256)}
"""Answer tokens, both ends included."""
RECORDED = "recorded"
"""The answers' class where a recorded workload says how long they are."""
OVERLAP_RECORDED = -1.0
LEVEL_UNKNOWN = -1.0
LEVELS = (*(round(0.1 * n, 1) for n in range(1, 13)), 1.4, 1.7, 2.0, 2.5, 3.0)
OVERLAPS = (0.0, 0.5, 0.9)
ROUNDS_MAX = 1_000
REQUESTS_TOTAL_MAX = 5_000_000


class Combination(msgspec.Struct, frozen=True):
    """What the requests of a step have in common. mix: of MIXES; overlap: share of a prompt that others begin with, too."""

    mix: str
    overlap: float
    output: str

    def __str__(self) -> str:
        overlap = RECORDED if self.overlap < 0 else f"{self.overlap:g}"
        return f"{self.mix} tokens, overlap {overlap}, answers {self.output}"


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """rate_rps: requests a second, in the fleet's time; level: the same as a share of saturation, LEVEL_UNKNOWN without one."""

    index: int
    combination: Combination
    rate_rps: float
    level: float
    requests: int
    seed: int
    policy: str = ""  # "" leaves the fleet's own
    process: str = "poisson"  # of arrivals


class Grid(msgspec.Struct, frozen=True, kw_only=True):
    """What to sweep. rates_rps, where given, replace levels; rows: at least so many requests over all steps."""

    mixes: tuple[str, ...] = MIXES
    overlaps: tuple[float, ...] = OVERLAPS
    outputs: tuple[str, ...] = tuple(OUTPUTS)
    levels: tuple[float, ...] = LEVELS
    rates_rps: tuple[float, ...] = ()
    policies: tuple[str, ...] = ("",)
    rows: int = 13_500
    step_s: float = 15.0
    requests_min: int = 24
    requests_max: int = 400
    seed: int = 0

    def combinations(self) -> list[Combination]:
        return [Combination(*each) for each in product(self.mixes, self.overlaps, self.outputs)]


def bucket_of(tokens: float) -> str:
    """The bucket of a prompt; shorter than the first one's least is still the first."""
    for name, (_, most) in BUCKETS.items():
        if tokens <= most:
            return name
    return tuple(BUCKETS)[-1]


def steps(grid: Grid, saturation_rps: Callable[[Combination], float]) -> list[Step]:
    """In the order in which they are to be played. saturation_rps: not asked where rates are given. ValueError: endless."""
    planned: list[Step] = []
    total = 0
    for turn in range(ROUNDS_MAX):
        for number, (combination, level, rate_rps) in enumerate(_round(grid, turn, saturation_rps)):
            requests = min(grid.requests_max, max(grid.requests_min, math.ceil(rate_rps * grid.step_s)))
            index = len(planned)
            policy = grid.policies[(number + turn) % len(grid.policies)]
            seed = rng.stream(grid.seed, f"step {index}").getrandbits(31)
            planned.append(
                Step(
                    index=index,
                    combination=combination,
                    rate_rps=rate_rps,
                    level=level,
                    requests=requests,
                    seed=seed,
                    policy=policy,
                )
            )
            total += requests
        if total >= grid.rows:
            break
        if total > REQUESTS_TOTAL_MAX:
            raise ValueError(f"more than {REQUESTS_TOTAL_MAX} requests")
    else:
        raise ValueError(f"{grid.rows} requests need more than {ROUNDS_MAX} rounds of {len(planned) // ROUNDS_MAX} steps")
    rng.stream(grid.seed, "order of steps").shuffle(planned)
    return [msgspec.structs.replace(step, index=index) for index, step in enumerate(planned)]


def _round(grid: Grid, turn: int, saturation_rps: Callable[[Combination], float]) -> list[tuple[Combination, float, float]]:
    """Every mix at every level once; of the other two, the next pair for each."""
    pairs = list(product(grid.overlaps, grid.outputs))
    found = []
    for place, mix in enumerate(grid.mixes):
        for number in range(len(grid.rates_rps or grid.levels)):
            combination = Combination(mix, *pairs[(place + number + turn) % len(pairs)])
            if grid.rates_rps:
                found.append((combination, LEVEL_UNKNOWN, grid.rates_rps[number]))
            else:
                level = grid.levels[number]
                found.append((combination, level, level * saturation_rps(combination)))
    return found


# ------------------------------------------------------------------------------------------------------------------ saturation

PROBES_MAX = 6
FASTER = 2.0
KEPT_UP = 0.8
"""Ends a second over arrivals a second: below this the fleet did not keep up."""


def probe_rates(first_rps: float) -> Sequence[float]:
    """Rates to try in turn until the fleet does not keep up. first_rps: what a burst came to, which is less."""
    return [first_rps * FASTER ** (n + 0.5) for n in range(PROBES_MAX)]


def ends_per_s(ended_s: Sequence[float]) -> float:
    """Of the middle of a run, where neither filling nor draining is seen: from the first fifth of the ends to the fourth."""
    ordered = sorted(ended_s)
    first, last = len(ordered) // 5, len(ordered) * 4 // 5
    if last <= first or ordered[last] <= ordered[first]:
        return math.inf
    return (last - first) / (ordered[last] - ordered[first])
