"""Which model may serve: the gate, the shadow, the watch on the one that serves, and the call for another training. Pure.

All are judged by one figure, `loss`: pinball loss of the median plus that of the p90, log seconds, so that fast and slow count
alike. Each rule returns a Verdict with the sentence that goes into the history.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from prediction.scores import Score, Scores
from prediction.zones import ZONES

COVERAGE_BOUNDS = (0.88, 0.92)


@dataclass(frozen=True, slots=True)
class Verdict:
    good: bool
    why: str


@dataclass(frozen=True, slots=True)
class Live:
    """How one model did on live outcomes. loss: mean, log seconds; coverage: share of the truth at or below its p90."""

    samples: int
    loss: float
    coverage: float


@dataclass(frozen=True, slots=True)
class Rules:
    """coverage: of the p90, widened by two standard errors of 90 % of the samples that judge. A perfect p90 judged by 400 would
    else be refused one time in four; with one standard error one set by 1,600 samples, which know it to a percent, still is
    now and then. zone_samples_min: a zone with fewer is not judged apart. zone_slack: what a zone may be worse while the whole
    is better. better_by: of the whole. baseline_share: of a constant's loss, at most, where nothing serves to be compared
    with."""

    coverage: tuple[float, float] = COVERAGE_BOUNDS
    judged_min: int = 200
    zone_samples_min: int = 50
    zone_slack: float = 0.02
    better_by: float = 0.005
    baseline_share: float = 0.7
    shadow_coverage: tuple[float, float] = (0.83, 0.97)
    shadow_slack: float = 0.02
    shadow_share_of_evaluation: float = 1.5
    watch_share_of_previous: float = 1.15
    watch_share_of_evaluation: float = 2.0
    drift_share_of_evaluation: float = 1.3


def loss(score: Score) -> float:
    return score.pinball_p50 + score.pinball_p90


def gate(new: Scores, serving: Scores | None, baseline_loss: float, rules: Rules) -> Verdict:
    """May it go on to shadow? Both scored on the same samples. baseline_loss: of the best constant on them."""
    whole = new.overall
    if whole.samples < rules.judged_min:
        return Verdict(False, f"judged by {whole.samples} samples, {rules.judged_min} are needed")
    slack = 2.0 * math.sqrt(0.9 * 0.1 / whole.samples)
    low, high = rules.coverage[0] - slack, rules.coverage[1] + slack
    if not low <= whole.coverage_p90 <= high:
        return Verdict(False, f"its p90 covers {whole.coverage_p90:.1%} of {whole.samples}, not {low:.1%} to {high:.1%}")
    if not loss(whole) <= rules.baseline_share * baseline_loss:
        return Verdict(False, f"loss {loss(whole):.4f}, a constant has {baseline_loss:.4f}: it has learned too little")
    if serving is None:
        return Verdict(True, f"nothing serves; loss {loss(whole):.4f}, a constant's {baseline_loss:.4f}")
    for name, mine, theirs in zip(ZONES, new.zones, serving.zones, strict=True):
        if mine.samples >= rules.zone_samples_min and not loss(mine) <= (1 + rules.zone_slack) * loss(theirs):
            return Verdict(False, f"zone {name}: loss {loss(mine):.4f}, the serving model has {loss(theirs):.4f}")
    if not loss(whole) <= (1 - rules.better_by) * loss(serving.overall):
        return Verdict(False, f"loss {loss(whole):.4f}, the serving model has {loss(serving.overall):.4f}: not better")
    return Verdict(True, f"loss {loss(whole):.4f}, the serving model has {loss(serving.overall):.4f}")


def shadow(new: Live, serving: Live | None, evaluated_loss: float, rules: Rules) -> Verdict:
    """After its time in shadow: may it serve? Both on the same live outcomes."""
    low, high = rules.shadow_coverage
    if not low <= new.coverage <= high:
        return Verdict(False, f"live, its p90 covers {new.coverage:.1%}, not {low:.0%} to {high:.0%}")
    if serving is None:
        if not new.loss <= rules.shadow_share_of_evaluation * evaluated_loss:
            return Verdict(False, f"live loss {new.loss:.4f}, {evaluated_loss:.4f} when it was judged")
        return Verdict(True, f"nothing serves; live loss {new.loss:.4f} over {new.samples} outcomes")
    if not new.loss <= (1 + rules.shadow_slack) * serving.loss:
        return Verdict(False, f"live loss {new.loss:.4f}, the serving model has {serving.loss:.4f}")
    return Verdict(True, f"live loss {new.loss:.4f}, the serving model has {serving.loss:.4f} over {new.samples} outcomes")


def watch(serving: Live, previous: Live | None, evaluated_loss: float, rules: Rules) -> Verdict:
    """Of the serving model, on the latest outcomes: may it go on? good False: it is to be rolled back.

    Against the model it replaced, on the same outcomes; where there is none, against its own evaluation. Traffic that is harder
    than it was is harder for both, so with a previous model at hand a bad figure alone is no reason.
    """
    if not math.isfinite(serving.loss):
        return Verdict(False, "live, its predictions are not numbers")
    if previous is not None:
        if serving.loss > rules.watch_share_of_previous * previous.loss:
            return Verdict(False, f"live loss {serving.loss:.4f}, the model it replaced has {previous.loss:.4f}")
        return Verdict(True, "")
    if serving.loss > rules.watch_share_of_evaluation * evaluated_loss:
        return Verdict(
            False, f"live loss {serving.loss:.4f}, {evaluated_loss:.4f} when it was judged; nothing is left to serve"
        )
    return Verdict(True, "")


def drifted(serving: Live, evaluated_loss: float, rules: Rules) -> Verdict:
    """good True: the traffic or the fleet is no longer what the serving model was trained on."""
    if serving.loss > rules.drift_share_of_evaluation * evaluated_loss:
        return Verdict(True, f"live loss {serving.loss:.4f}, {evaluated_loss:.4f} when it was judged")
    return Verdict(False, "")
