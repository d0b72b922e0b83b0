"""What the spread of a model learns from: medians by models that had not seen the sample."""

from __future__ import annotations

import numpy as np
import pytest

from prediction import booster, derive
from prediction.calibration import Floats
from tests.trainer.traffic import law, rows, samples
from trainer.split import SLICE_S, folds, parts, slices
from trainer.zoo import boosted
from trainer.zoo.kind import THREADS, Training


def test_slices_stay_together_in_a_fold() -> None:
    decided_at = np.sort(np.random.default_rng(1).uniform(1e9, 1e9 + 400 * SLICE_S, 5_000))
    fold = folds(decided_at, 3)
    assert set(fold) == {0, 1, 2}
    for number in np.unique(slices(decided_at)):
        assert len(set(fold[slices(decided_at) == number])) == 1
    assert all(np.mean(fold == number) == pytest.approx(1 / 3, abs=0.1) for number in range(3))


def test_folds_are_not_the_parts_by_another_name() -> None:
    """Of the slices of each part, every fold has some."""
    decided_at = 1e9 + SLICE_S * np.arange(600.0)
    fold, part = folds(decided_at, 5), parts(decided_at)
    for number in range(5):
        assert len(set(fold[part == number])) == 5


def test_few_slices_are_dealt_out_in_turn() -> None:
    decided_at = np.linspace(1e9, 1e9 + 0.5 * SLICE_S, 300)
    fold = folds(decided_at, 3)
    assert [int((fold == number).sum()) for number in range(3)] == [100, 100, 100]


def noisy(count: int, seed: int) -> Training:
    """True TTFTs by the law of the test's traffic, with an error of 0.4 that nothing foretells."""
    rng = np.random.default_rng(seed)
    made = rows(count, rng)
    ttft_s = law(made) * np.exp(rng.normal(0, 0.4, count))
    return Training(made, ttft_s, 1e9 + 0.5 * np.arange(float(count)), np.full(count, "w0", dtype=np.object_))


def test_the_p90_is_near_its_place_before_it_is_calibrated() -> None:
    """A model that is asked about what taught it thinks itself far too sure."""
    training, fresh = noisy(2_000, 1), noisy(2_000, 2)
    files = boosted.fit(training, 1, lambda _: None)
    columns = derive.inputs(fresh.rows)

    def of(text: bytes) -> Floats:
        return booster.Booster(text.decode(), columns=columns.shape[1]).predict(columns)

    median, spread = of(files[booster.P50_FILE]), of(files[booster.SPREAD_FILE])
    covered = np.mean(fresh.target <= median + np.maximum(0.0, spread))
    assert covered == pytest.approx(0.9, abs=0.04)

    model = boosted.booster(training.columns, training.target, boosted.MEDIAN, boosted.TREES, seed=1, progress=lambda _: None)
    seen = training.target - np.asarray(model.predict(training.columns, num_threads=THREADS))
    sure = boosted.booster(training.columns, seen, boosted.SPREAD, boosted.SPREAD_TREES, seed=1, progress=lambda _: None)
    blind = np.mean(fresh.target <= median + np.maximum(0.0, of(boosted.text(sure))))
    assert blind < covered - 0.05


def test_progress_only_goes_on() -> None:
    data = samples(400, 1)
    told: list[float] = []
    training = Training(data.rows, data.ttft_s, data.decided_at, data.worker)
    boosted.fit(training, 1, told.append)
    assert told == sorted(told)
    assert told[-1] == pytest.approx(1.0)
