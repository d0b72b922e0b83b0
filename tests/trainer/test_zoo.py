"""Every kind learns what there is to learn, from the same call."""

from __future__ import annotations

import numpy as np
import pytest

from prediction import dataset
from tests.trainer.traffic import outcomes, samples
from trainer import rules
from trainer.lifecycle import constant_loss
from trainer.split import PARTS, parts, split
from trainer.train import SAMPLES_MIN, TrainError, train
from trainer.zoo import KINDS
from trainer.zoo.online import OnlineLinear


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_learns_more_than_a_constant(kind: str) -> None:
    told: list[tuple[str, float]] = []
    trained = train(
        samples(2_000, 1), kind=kind, model_id="m", seed=1, now_unix=5.0, tell=lambda stage, done, _: told.append((stage, done))
    )
    judged = trained.scores.overall
    assert rules.loss(judged) < 0.7 * constant_loss(trained.judged_by.ttft_s)
    assert 0.85 <= judged.coverage_p90 <= 0.95
    assert trained.scores.predict_us > 0
    assert [stage for stage, done in told if done == 1.0] == ["fit", "judge"]
    assert all(0 <= done <= 1 for _, done in told)


def test_the_default_comes_close_to_the_law() -> None:
    trained = train(samples(6_000, 1), kind="lightgbm", model_id="m", seed=1, now_unix=0.0)
    assert trained.scores.overall.rank_accuracy > 0.9
    for zone in trained.scores.zones[:2]:
        assert zone.mape < 0.09  # the noise alone makes 6.4 %
        assert zone.rank_accuracy > 0.9 or zone.rank_sets == 0
        assert 0.85 <= zone.coverage_predicted <= 0.95


@pytest.mark.parametrize("kind", ["lightgbm", "linear", "tree", "linear_online"])
def test_one_seed_gives_one_model(kind: str) -> None:
    first, second = (train(samples(500, 1), kind=kind, model_id="m", seed=3, now_unix=0.0) for _ in range(2))
    assert first.bundle == second.bundle


def test_too_little_and_unknown_kinds_are_refused() -> None:
    with pytest.raises(TrainError, match=f"a model needs {SAMPLES_MIN}"):
        train(samples(SAMPLES_MIN - 1, 1), kind="linear", model_id="m", seed=1, now_unix=0.0)
    with pytest.raises(TrainError, match="no kind 'oracle'"):
        train(samples(SAMPLES_MIN, 1), kind="oracle", model_id="m", seed=1, now_unix=0.0)


def test_a_sample_has_one_part_in_every_training() -> None:
    data = outcomes(16_000, 1)
    whole = split(dataset.of_table(dataset.from_outcomes(data)))
    later = split(dataset.of_table(dataset.from_outcomes(data[4_000:])))
    assert not set(later.judge.request_id) & set(whole.learn.request_id)
    assert set(later.judge.request_id) <= set(whole.judge.request_id)
    assert len(whole.judge) == pytest.approx(16_000 / PARTS, rel=0.4)
    names = [set(part.request_id) for part in (whole.learn, whole.judge)]
    assert sum(map(len, names)) == len(set.union(*names)) == 16_000
    assert set(np.unique(whole.part)) == {1, 2, 3, 4}


def test_a_burst_of_a_moment_is_dealt_out_all_the_same() -> None:
    dealt = parts(np.full(500, 1_800_000_000.0))
    assert np.bincount(dealt, minlength=PARTS).min() >= 75


def test_the_online_model_follows_a_change() -> None:
    rng = np.random.default_rng(0)
    model = OnlineLinear(2)
    weights = np.array([1.0, -2.0])
    for step in range(12_000):
        if step == 4_000:
            weights = np.array([-1.0, 0.5])
        row = rng.normal(0, 1, 2)
        model.learn(row, float(row @ weights + 3.0))
    assert np.allclose(model.weights, [-1.0, 0.5, 3.0], atol=0.1)
