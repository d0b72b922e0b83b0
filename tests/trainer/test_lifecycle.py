"""From a trained model to the one that serves, and back: with real models and made-up traffic."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from prediction.dataset import Dataset
from tests.trainer.traffic import samples
from trainer.lifecycle import Lifecycle, RefusedError, Windows
from trainer.registry import Registry, RegistryError, Standing
from trainer.train import Trained, train
from trainer.zoo.kind import Training
from trainer.zoo.linear import fit as fit_linear

WINDOWS = Windows(shadow=200, watch=150)


@pytest.fixture(scope="module")
def data() -> Dataset:
    return samples(4_000, 1)


@pytest.fixture(scope="module")
def plain(data: Dataset) -> Trained:
    return train(data, kind="linear", model_id="plain", seed=1, now_unix=1.0)


@pytest.fixture(scope="module")
def good(data: Dataset) -> Trained:
    return train(data, kind="lightgbm", model_id="good", seed=1, now_unix=2.0)


@pytest.fixture(scope="module")
def poisoned(data: Dataset) -> Trained:
    """Trained on TTFTs of other requests, judged by the true ones."""

    def shuffle(training: Training, seed: int, progress: object) -> dict[str, bytes]:
        mixed = np.random.default_rng(seed).permutation(training.ttft_s)
        return fit_linear(Training(training.rows, mixed, training.decided_at, training.worker), seed, progress)  # type: ignore[arg-type]

    return train(data, kind="linear", model_id="poisoned", seed=1, now_unix=3.0, fit=shuffle)


@pytest.fixture
def lifecycle(tmp_path: Path) -> Lifecycle:
    return Lifecycle(Registry(tmp_path), windows=WINDOWS)


def live(lifecycle: Lifecycle, count: int, seed: int = 7, **options: object) -> list[str]:
    """Outcomes as they come, in batches of 50."""
    said: list[str] = []
    traffic = samples(count, seed, **options)
    for begin in range(0, count, 50):
        said += lifecycle.observe(traffic.rows[begin : begin + 50], traffic.ttft_s[begin : begin + 50], now_unix=100.0)
    return said


def test_the_first_model_shadows_then_serves(lifecycle: Lifecycle, good: Trained) -> None:
    assert lifecycle.submit(good, now_unix=1.0).good
    assert lifecycle.registry.state.shadow == "good"
    assert live(lifecycle, 150) == []
    [sentence] = live(lifecycle, 50)
    assert "good serves" in sentence
    state = lifecycle.registry.state
    assert (state.serving, state.previous, state.shadow) == ("good", "", "")
    assert state.standing("good") == Standing.SERVING


def test_a_better_model_replaces_the_serving_one_and_a_worse_one_does_not(
    lifecycle: Lifecycle, plain: Trained, good: Trained
) -> None:
    lifecycle.submit(plain, now_unix=1.0)
    lifecycle.promote("plain", force=True, now_unix=1.0)
    assert lifecycle.submit(good, now_unix=2.0).good
    live(lifecycle, 250)
    assert lifecycle.registry.state.serving == "good"
    assert lifecycle.registry.state.previous == "plain"
    assert lifecycle.registry.state.standing("plain") == Standing.RETIRED
    worse = train(samples(4_000, 1), kind="linear", model_id="worse", seed=1, now_unix=3.0)
    verdict = lifecycle.submit(worse, now_unix=3.0)
    assert not verdict.good
    assert lifecycle.registry.state.standing("worse") == Standing.REJECTED
    assert lifecycle.registry.state.serving == "good"


@pytest.mark.parametrize("serves", [True, False])
def test_a_poisoned_model_never_serves(serves: bool, lifecycle: Lifecycle, plain: Trained, poisoned: Trained) -> None:
    if serves:
        lifecycle.submit(plain, now_unix=1.0)
        lifecycle.promote("plain", force=True, now_unix=1.0)
    assert not lifecycle.submit(poisoned, now_unix=2.0).good
    live(lifecycle, 1_000)
    assert lifecycle.registry.state.serving == ("plain" if serves else "")
    assert lifecycle.registry.state.shadow == ""
    assert lifecycle.registry.state.standing("poisoned") == Standing.REJECTED


def test_labels_that_are_poison_throughout_teach_nothing_that_passes(lifecycle: Lifecycle) -> None:
    """Judged by shuffled TTFTs, too: no model beats a constant there."""
    shuffled = samples(4_000, 1, shuffled=True)
    assert not lifecycle.submit(train(shuffled, kind="lightgbm", model_id="m", seed=1, now_unix=1.0), now_unix=1.0).good


def test_a_promoted_model_that_is_bad_is_rolled_back_by_itself(lifecycle: Lifecycle, good: Trained, poisoned: Trained) -> None:
    lifecycle.submit(good, now_unix=1.0)
    live(lifecycle, 200)
    lifecycle.submit(poisoned, now_unix=2.0)
    lifecycle.promote("poisoned", force=True, now_unix=2.0)
    assert lifecycle.registry.state.serving == "poisoned"
    assert live(lifecycle, 100, seed=8) == []
    [sentence] = live(lifecycle, 50, seed=9)
    assert "poisoned rolled back" in sentence
    state = lifecycle.registry.state
    assert (state.serving, state.previous) == ("good", "")
    assert state.standing("poisoned") == Standing.ROLLED_BACK
    assert live(lifecycle, 500, seed=10) == []  # and stays so


def test_with_nothing_to_go_back_to_a_bad_model_is_taken_out_of_service(lifecycle: Lifecycle, good: Trained) -> None:
    lifecycle.submit(good, now_unix=1.0)
    live(lifecycle, 200)
    [sentence] = live(lifecycle, 150, seed=8, slower=3.0)
    assert "nothing is left to serve" in sentence
    assert lifecycle.registry.state.serving == ""


def test_traffic_that_is_harder_for_both_rolls_nothing_back_and_calls_for_training(
    lifecycle: Lifecycle, plain: Trained, good: Trained
) -> None:
    lifecycle.submit(plain, now_unix=1.0)
    lifecycle.promote("plain", force=True, now_unix=1.0)
    lifecycle.submit(good, now_unix=2.0)
    live(lifecycle, 200)
    assert lifecycle.registry.state.serving == "good"
    live(lifecycle, 150, seed=8)
    assert not lifecycle.drifted().good
    live(lifecycle, 300, seed=8, slower=1.3)
    assert lifecycle.registry.state.serving == "good"
    assert lifecycle.drifted().good


def test_a_shadow_that_fails_live_is_rejected(lifecycle: Lifecycle, good: Trained) -> None:
    lifecycle.submit(good, now_unix=1.0)
    [sentence] = live(lifecycle, 200, slower=2.0)
    assert "rejected in shadow" in sentence
    assert lifecycle.registry.state.serving == lifecycle.registry.state.shadow == ""


def test_a_restart_goes_on_with_what_serves_and_begins_the_windows_anew(tmp_path: Path, good: Trained, plain: Trained) -> None:
    first = Lifecycle(Registry(tmp_path), windows=WINDOWS)
    first.submit(plain, now_unix=1.0)
    first.promote("plain", force=True, now_unix=1.0)
    first.submit(good, now_unix=2.0)
    live(first, 150)
    again = Lifecycle(Registry(tmp_path), windows=WINDOWS)
    assert again.registry.state.shadow == "good"
    assert live(again, 150) == []
    assert "good serves" in live(again, 50)[0]


def test_by_hand(lifecycle: Lifecycle, plain: Trained, poisoned: Trained) -> None:
    with pytest.raises(RefusedError, match="no model to go back to"):
        lifecycle.rollback(now_unix=1.0)
    with pytest.raises(RegistryError, match="no model 'x'"):
        lifecycle.promote("x", force=False, now_unix=1.0)
    lifecycle.submit(poisoned, now_unix=1.0)
    with pytest.raises(RefusedError, match="rejected; --force"):
        lifecycle.promote("poisoned", force=False, now_unix=1.0)
    lifecycle.submit(plain, now_unix=1.0)
    lifecycle.promote("plain", force=True, now_unix=1.0)
    with pytest.raises(RefusedError, match="serves already"):
        lifecycle.promote("plain", force=True, now_unix=1.0)
    lifecycle.promote("poisoned", force=True, now_unix=2.0)
    assert lifecycle.rollback(now_unix=3.0) == "plain"
    assert lifecycle.registry.state.serving == "plain"


def test_a_newer_model_takes_the_shadows_place(lifecycle: Lifecycle, good: Trained, data: Dataset) -> None:
    lifecycle.submit(good, now_unix=1.0)
    live(lifecycle, 100)
    lifecycle.submit(train(data, kind="lightgbm", model_id="newer", seed=2, now_unix=2.0), now_unix=2.0)
    assert lifecycle.registry.state.shadow == "newer"
    assert lifecycle.registry.state.standing("good") == Standing.RETIRED
    assert live(lifecycle, 150) == []
    assert "newer serves" in live(lifecycle, 50)[0]
