"""The experiment of a fleet that becomes slow under load: half of its workers take 2.5 times as long from one moment on.

Three runs of the same arrivals, for each seed:

predictive      with a model trained on the fleet as it was; nothing is trained anew, only corrections follow
oracle          the same policy in a fleet that is slow from its start, with a model trained on that state
lmetric         knows tokens and requests, no speeds

What is told: the 90th percentile of TTFT over a sliding window, all seeds together, and how far the first is above the second
once 60 s have passed. Virtual time; the same seeds give the same figures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import msgspec
import numpy as np

from emulator.presets import PRESETS
from loadgen.arrivals import RateProfile, Segment, steady
from runtime import rng
from simulation.chats import Chats
from simulation.faults import SlowEngine
from simulation.learning import Learning
from simulation.parallel import play
from simulation.proxy import Fate, Result
from simulation.world import WARM_UP_S, Report, Setup

CURVES = LIVE, ORACLE, PLAIN = "predictive", "oracle", "lmetric"
WITHIN_S = 60.0
"""After the slowdown: from here on the live policy should do what the oracle does."""
WITHIN_SHARE = 0.15
WINDOW_S = 20.0
STEP_S = 5.0
SHOWN_BEFORE_S = 30.0
"""Of the time before the slowdown; earlier, the oracle's fleet is still unknown to its router."""
TEACHING_SEED = 1_000_003
"""Added to a seed: models are taught by other arrivals than they are judged by."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Slowdown:
    """rate: requests a second of the whole fleet; capacity: what the healthy fleet can serve of these at most; at_s: of the
    slowdown, after_s: how long the runs go on from there.

    Models are taught by ramps of `teach_s` over the loads in `teach_loads`, as a day of traffic has them.
    """

    workers: int = 8
    slowed: int = 4
    factor: float = 2.5
    preset: str = "tiny-cpu"
    rate: float = 18.0
    capacity: float = 36.0
    at_s: float = 90.0
    after_s: float = 180.0
    teach_s: float = 80.0
    teach_ramps: int = 3
    teach_loads: tuple[float, float] = (0.2, 1.1)
    chats: Chats | None = None

    @property
    def duration_s(self) -> float:
        return self.at_s + self.after_s

    def faults(self, at_s: float) -> tuple[SlowEngine, ...]:
        return tuple(SlowEngine(at_s, worker, self.factor) for worker in range(self.slowed))

    def setup(self, seed: int, policy: str, *, slow_at_s: float | None) -> Setup:
        """slow_at_s: None for never."""
        return self._setup(seed, policy, steady(self.rate), self.duration_s, slow_at_s)

    def teaching(self, seed: int, *, slow: bool) -> Setup:
        """From low load to overload and again, on a fleet that is healthy or slow throughout; one model at its end."""
        capacity = self.capacity
        if slow:
            capacity *= 1 - self.slowed / self.workers * (1 - 1 / self.factor)
        low, high = (load * capacity for load in self.teach_loads)
        ramps = RateProfile((Segment(low, high, self.teach_s),) * self.teach_ramps)
        duration_s = self.teach_s * self.teach_ramps
        made = self._setup(seed + TEACHING_SEED, LIVE, ramps, duration_s, 0.0 if slow else None)
        return replace(made, learning=Learning(every_s=self.teach_s))

    def _setup(self, seed: int, policy: str, rates: RateProfile, duration_s: float, slow_at_s: float | None) -> Setup:
        chats = self.chats or Chats(PRESETS[self.preset].model)
        return Setup(
            jobs=chats.jobs(rates, duration_s=duration_s, rng=rng.stream(seed, "chats")),
            shape=chats.shape,
            policy=policy,
            presets=(self.preset,) * self.workers,
            seed=seed,
            faults=() if slow_at_s is None else self.faults(slow_at_s),
        )


class Point(msgspec.Struct, frozen=True):
    """at_s: middle of a window, from the slowdown on (before it: negative); p90_s by curve, nan where nothing ended well."""

    at_s: float
    p90_s: dict[str, float]


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """p90 by curve: before_s just before the slowdown, first_s within WITHIN_S of it, settled_s from there on. ratio: settled,
    the live policy's over the oracle's; plain_ratio: lmetric's over it; unserved: requests that did not end well."""

    seeds: list[int]
    points: list[Point]
    before_s: dict[str, float]
    first_s: dict[str, float]
    settled_s: dict[str, float]
    ratio: float
    plain_ratio: float
    unserved: dict[str, int]

    @property
    def met(self) -> bool:
        return self.ratio <= 1 + WITHIN_SHARE


def run(experiment: Slowdown, seeds: Sequence[int], *, processes: int, progress: Progress = lambda *_: None) -> Outcome:
    """progress: (run, requests ended so far), over the runs of `count`. simulation.checks.Violation: an invariant broke."""
    models = taught(play(teaching(experiment, seeds[0]), processes, progress))
    reports = play(setups(experiment, seeds, models), processes, lambda place, ended: progress(place + 2, ended))
    return judged(experiment, seeds, reports)


def teaching(experiment: Slowdown, seed: int) -> list[Setup]:
    """The runs whose models serve: of the fleet as it was, and of the slow one."""
    return [experiment.teaching(seed, slow=slow) for slow in (False, True)]


def taught(reports: Sequence[Report]) -> dict[str, bytes]:
    """reports: of `teaching`. Encoded bundles by curve. ValueError: the runs were too short to train one."""
    for report in reports:
        if not report.models:
            raise ValueError(f"{len(report.results)} requests are too few to train a model from")
    return {curve: report.models[-1][1] for curve, report in zip((LIVE, ORACLE), reports, strict=True)}


def setups(experiment: Slowdown, seeds: Sequence[int], models: Mapping[str, bytes]) -> list[Setup]:
    """The three runs of each seed, in the order of CURVES."""
    made = []
    for seed in seeds:
        live = experiment.setup(seed, LIVE, slow_at_s=experiment.at_s)
        oracle = experiment.setup(seed, LIVE, slow_at_s=0.0)
        plain = experiment.setup(seed, PLAIN, slow_at_s=experiment.at_s)
        made += [
            replace(live, learning=_serving(models[LIVE])),
            replace(oracle, learning=_serving(models[ORACLE])),
            plain,
        ]
    return made


def count(seeds: Sequence[int]) -> int:
    """Runs in all."""
    return 2 + 3 * len(seeds)


def _serving(model: bytes) -> Learning:
    return Learning(every_s=0.0, given=((0.0, model),))


# ------------------------------------------------------------------------------------------------------------------ figures


def judged(experiment: Slowdown, seeds: Sequence[int], reports: Sequence[Report]) -> Outcome:
    """reports: of `setups`, in its order."""
    curves = {curve: reports[place :: len(CURVES)] for place, curve in enumerate(CURVES)}
    zero_s = WARM_UP_S + experiment.at_s
    pairs = {name: _pairs((result for one in found for result in one.results), zero_s) for name, found in curves.items()}

    def p90(begin_s: float, end_s: float) -> dict[str, float]:
        return {name: _p90(found, begin_s, end_s) for name, found in pairs.items()}

    middles = np.arange(-min(experiment.at_s - WINDOW_S / 2, SHOWN_BEFORE_S), experiment.after_s - WINDOW_S / 2 + 1e-9, STEP_S)
    points = [Point(float(at_s), p90(at_s - WINDOW_S / 2, at_s + WINDOW_S / 2)) for at_s in middles]
    settled = p90(WITHIN_S, experiment.after_s)
    return Outcome(
        seeds=list(seeds),
        points=points,
        before_s=p90(-min(experiment.at_s, SHOWN_BEFORE_S), 0.0),
        first_s=p90(0.0, WITHIN_S),
        settled_s=settled,
        ratio=settled[LIVE] / settled[ORACLE],
        plain_ratio=settled[PLAIN] / settled[ORACLE],
        unserved={
            name: sum(result.fate is not Fate.COMPLETE for one in found for result in one.results)
            for name, found in curves.items()
        },
    )


def _pairs(results: Iterable[Result], zero_s: float) -> np.ndarray:
    """(n, 2): arrival from the slowdown on, TTFT; what got no first token waited for ever."""
    rows = [(one.arrived_s - zero_s, one.ttft_s if one.ttft_s >= 0 else np.inf) for one in results]
    return np.array(rows).reshape(-1, 2)


def _p90(pairs: np.ndarray, begin_s: float, end_s: float) -> float:
    """Of the requests that arrived from begin_s up to end_s."""
    chosen = pairs[(pairs[:, 0] >= begin_s) & (pairs[:, 0] < end_s), 1]
    return float(np.quantile(chosen, 0.9, method="higher")) if len(chosen) else float("nan")
