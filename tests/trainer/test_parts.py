"""The small pure parts: reservoir, schedule, live windows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract.features import FEATURES, INDEX
from trainer import reservoir
from trainer.live import LiveScores
from trainer.schedule import Cadence, Schedule


def rows(active: list[float], share: list[float]) -> np.ndarray:
    made = np.zeros((len(active), len(FEATURES)))
    made[:, INDEX["active"]] = active
    made[:, INDEX["input_tokens"]] = 1_000
    made[:, INDEX["matched_tokens"]] = np.array(share) * 1_000
    return made


def test_strata_are_load_by_prefix() -> None:
    found = reservoir.strata(rows([0, 0, 1, 2, 3, 500, 500], [0.0, 0.1, 0.0, 0.0, 0.0, 0.0, 1.0]))
    assert found[2] == found[3]
    assert len(set(found.tolist())) == 6
    assert found.max() < reservoir.STRATA


def test_rare_states_are_kept_whole_and_common_ones_thinned() -> None:
    many = rows([1.0] * 9_000 + [150.0] * 40, [0.0] * 9_040)
    kept = reservoir.thin(many, 500, np.random.default_rng(0))
    assert len(kept) == 500
    assert np.sum(many[kept, INDEX["active"]] == 150.0) == 40
    assert np.all(np.diff(kept) > 0)


@given(st.lists(st.integers(0, 500), min_size=1, max_size=40), st.integers(0, 2_000))
def test_quotas_fill_the_limit_evenly(counts: list[int], limit: int) -> None:
    kept = reservoir.quotas(np.array(counts), limit)
    assert np.all(kept <= counts)
    assert kept.sum() == min(limit, sum(counts))
    thinned = kept < np.array(counts)
    if thinned.any():  # nobody has more than a thinned one, but for what does not divide
        assert kept.max() <= kept[thinned].min() + 1


def test_few_samples_stay_all() -> None:
    assert list(reservoir.thin(rows([1.0] * 5, [0.0] * 5), 10, np.random.default_rng(0))) == [0, 1, 2, 3, 4]


CADENCE = Cadence(every_s=600, pause_s=60, samples_min=1_000, new_samples_min=500)


@pytest.mark.parametrize(
    ("ever", "at", "samples", "taken", "drifted", "why"),
    [
        (False, 0, 999, 999, False, ""),
        (False, 0, 1_000, 1_000, False, "first"),
        (True, 700, 5_000, 1_499, False, ""),
        (True, 700, 5_000, 1_500, False, "schedule"),
        (True, 599, 5_000, 1_500, False, ""),
        (True, 61, 5_000, 1_500, True, "drift"),
        (True, 59, 5_000, 1_500, True, ""),
        (True, 61, 5_000, 1_400, True, ""),
        (True, 10_000, 0, 0, True, ""),
    ],
)
def test_when_a_training_is_due(ever: bool, at: float, samples: int, taken: int, drifted: bool, why: str) -> None:
    schedule = Schedule(CADENCE, trained_at=0.0, trained_taken=1_000, ever=ever)
    assert schedule.due(at, samples=samples, taken=taken, drifted=drifted) == why


def test_a_failed_training_is_not_tried_again_at_once() -> None:
    schedule = Schedule(CADENCE, trained_at=0.0)
    assert schedule.due(0, samples=1_000, taken=1_000, drifted=False) == "first"
    schedule.trained(5.0, taken=1_000)
    assert schedule.due(6.0, samples=1_001, taken=1_001, drifted=True) == ""


def test_windows_are_of_the_latest_outcomes() -> None:
    live = LiveScores(window_max=100)
    ttft_s = np.full(90, 2.0)
    live.add("a", ttft_s, ttft_s, ttft_s)
    live.add("a", np.full(20, 2.0), np.full(20, 1.0), np.full(20, 1.0))
    assert live.count("a") == 100
    assert live.of("a", 101) is None
    assert live.of("b", 1) is None
    latest = live.of("a", 20)
    assert latest is not None
    assert latest.coverage == 0.0
    assert latest.loss == pytest.approx(np.log(2.0) * 1.4)
    whole = live.of("a", 100)
    assert whole is not None
    assert whole.coverage == pytest.approx(0.8)
    live.follow({"b"})
    assert live.count("a") == 0
