"""Gate, shadow, watch and drift, as tables."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from prediction.scores import Score, Scores
from trainer import rules
from trainer.rules import Live, Rules

RULES = Rules()
BASELINE = 1.0


def score(loss: float, *, coverage: float = 0.9, samples: int = 1_000) -> Score:
    return Score(samples, pinball_p50=loss / 2, pinball_p90=loss / 2, coverage_p90=coverage)


def scores(low: float, medium: float, high: float, whole: float, *, coverage: float = 0.9, samples: int = 1_000) -> Scores:
    return Scores((score(low), score(medium), score(high)), score(whole, coverage=coverage, samples=samples))


SERVING = scores(0.1, 0.1, 0.1, 0.1)


@pytest.mark.parametrize(
    ("new", "serving", "good", "why"),
    [
        (scores(0.09, 0.09, 0.09, 0.09), SERVING, True, "loss 0.0900"),
        (scores(0.09, 0.09, 0.09, 0.09), None, True, "nothing serves"),
        (scores(0.1, 0.1, 0.1, 0.1), SERVING, False, "not better"),
        (scores(0.05, 0.05, 0.11, 0.06), SERVING, False, "zone high"),
        (scores(0.05, 0.05, 0.1015, 0.06), SERVING, True, "loss"),
        (scores(0.2, 0.2, 0.2, 0.2), SERVING, False, "zone low"),
        (scores(0.05, 0.05, 0.05, 0.05, coverage=0.86), SERVING, False, "covers 86.0%"),
        (scores(0.05, 0.05, 0.05, 0.05, coverage=0.94), SERVING, False, "covers 94.0%"),
        (scores(0.05, 0.05, 0.05, 0.05, coverage=0.87), SERVING, True, "loss"),
        (scores(0.05, 0.05, 0.05, 0.05, coverage=0.87, samples=100_000), SERVING, False, "covers 87.0%"),
        (scores(0.05, 0.05, 0.05, 0.05, samples=199), SERVING, False, "199 samples"),
        (scores(0.71, 0.71, 0.71, 0.71), None, False, "learned too little"),
        (scores(math.nan, math.nan, math.nan, math.nan), None, False, "learned too little"),
        (scores(0.05, 0.05, 0.05, 0.05, coverage=math.nan), None, False, "covers"),
    ],
)
def test_the_gate(new: Scores, serving: Scores | None, good: bool, why: str) -> None:
    verdict = rules.gate(new, serving, BASELINE, RULES)
    assert verdict.good is good
    assert why in verdict.why


def test_a_zone_with_few_samples_is_not_judged_apart() -> None:
    new = scores(0.05, 0.05, 0.5, 0.06)
    few = Scores((new.zones[0], new.zones[1], replace(new.zones[2], samples=RULES.zone_samples_min - 1)), new.overall)
    assert rules.gate(few, SERVING, BASELINE, RULES).good


@pytest.mark.parametrize(
    ("new", "serving", "good", "why"),
    [
        (Live(500, 0.1, 0.9), Live(500, 0.1, 0.9), True, "live loss"),
        (Live(500, 0.101, 0.9), Live(500, 0.1, 0.9), True, "live loss"),
        (Live(500, 0.11, 0.9), Live(500, 0.1, 0.9), False, "the serving model has"),
        (Live(500, 0.1, 0.8), Live(500, 0.2, 0.9), False, "covers 80.0%"),
        (Live(500, 0.1, 0.99), Live(500, 0.2, 0.9), False, "covers 99.0%"),
        (Live(500, 0.14, 0.9), None, True, "nothing serves"),
        (Live(500, 0.16, 0.9), None, False, "when it was judged"),
        (Live(500, math.nan, 0.9), None, False, "live loss"),
    ],
)
def test_the_shadow(new: Live, serving: Live | None, good: bool, why: str) -> None:
    verdict = rules.shadow(new, serving, 0.1, RULES)
    assert verdict.good is good
    assert why in verdict.why


@pytest.mark.parametrize(
    ("serving", "previous", "stays"),
    [
        (Live(300, 0.1, 0.9), Live(300, 0.1, 0.9), True),
        (Live(300, 0.114, 0.9), Live(300, 0.1, 0.9), True),
        (Live(300, 0.116, 0.9), Live(300, 0.1, 0.9), False),
        (Live(300, 5.0, 0.1), Live(300, 5.0, 0.1), True),  # harder traffic is harder for both
        (Live(300, 0.19, 0.9), None, True),
        (Live(300, 0.21, 0.9), None, False),
        (Live(300, math.nan, 0.9), None, False),
        (Live(300, math.inf, 0.9), Live(300, 0.1, 0.9), False),
    ],
)
def test_the_watch(serving: Live, previous: Live | None, stays: bool) -> None:
    assert rules.watch(serving, previous, 0.1, RULES).good is stays


@pytest.mark.parametrize(("loss", "drifted"), [(0.1, False), (0.129, False), (0.131, True)])
def test_drift(loss: float, drifted: bool) -> None:
    assert rules.drifted(Live(300, loss, 0.9), 0.1, RULES).good is drifted
