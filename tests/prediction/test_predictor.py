"""Every kind of model, from a bundle to seconds."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contract.features import FEATURES, VERSION
from prediction import booster, bundle, calibration, derive, predictor, tree
from prediction.bundle import Bundle, BundleError
from prediction.calibration import Calibration, Floats
from tests.trainer.traffic import foresee, law, rows, samples
from trainer.train import Trained, train
from trainer.zoo import KINDS


@pytest.fixture(scope="module")
def zoo() -> dict[str, Trained]:
    data = samples(1_500, 1)
    return {kind: train(data, kind=kind, model_id=f"{kind.replace('_', '-')}-1", seed=1, now_unix=0.0) for kind in KINDS}


def changed(model: Bundle, **fields: object) -> Bundle:
    manifest = model.manifest
    made = {name: getattr(manifest, name) for name in manifest.__struct_fields__ if name != "files"} | fields
    return bundle.build(**made, files=model.files) if "files" not in fields else bundle.build(**made)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", KINDS)
def test_what_travelled_predicts_what_was_trained(kind: str, zoo: dict[str, Trained]) -> None:
    asked = rows(64, np.random.default_rng(9))
    loaded = predictor.load(bundle.decode(bundle.encode(zoo[kind].bundle)))
    for mine, theirs in zip(loaded.predict(asked), zoo[kind].predictor.predict(asked), strict=True):
        assert mine.shape == (64,)
        assert np.array_equal(mine, theirs)


@pytest.mark.parametrize("kind", KINDS)
def test_one_row_is_answered_as_among_others(kind: str, zoo: dict[str, Trained]) -> None:
    asked = rows(16, np.random.default_rng(9))
    together, _ = zoo[kind].predictor.predict(asked)
    alone = np.concatenate([zoo[kind].predictor.predict(np.ascontiguousarray(asked[i : i + 1]))[0] for i in range(16)])
    assert np.allclose(together, alone)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_whatever_is_asked_the_answer_is_a_time(kind: str, zoo: dict[str, Trained], data: st.DataObject) -> None:
    values = data.draw(st.lists(st.floats(0, 1e9), min_size=len(FEATURES), max_size=len(FEATURES)))
    p50_s, p90_s = zoo[kind].predictor.predict(np.array([values]))
    assert 0 < p50_s[0] <= p90_s[0] < np.inf


def test_the_booster_answers_as_lightgbm_does(zoo: dict[str, Trained]) -> None:
    import lightgbm

    model = zoo["lightgbm"].bundle
    text = booster.text_of(model, booster.P50_FILE)
    columns = derive.inputs(rows(100, np.random.default_rng(3)))
    theirs = lightgbm.Booster(model_str=text).predict(columns)
    assert np.array_equal(booster.Booster(text, columns=columns.shape[1]).predict(columns), theirs)


def test_queues_longer_than_any_seen_are_longer_waits(zoo: dict[str, Trained]) -> None:
    asked = rows(200, np.random.default_rng(4))
    asked[:, FEATURES.index("prefill_tokens")] = 2_000_000
    foresee(asked)
    p50_s, _ = zoo["lightgbm"].predictor.predict(asked)
    assert np.median(p50_s / law(asked)) == pytest.approx(1.0, abs=0.25)


def test_other_features_and_unknown_kinds_are_refused(zoo: dict[str, Trained]) -> None:
    model = zoo["linear"].bundle
    for wrong, words in (
        ({"feature_version": VERSION + 1}, "features of version"),
        ({"features": FEATURES[::-1]}, "features of version"),
        ({"kind": "oracle"}, "'oracle'"),
        ({"kind": "lightgbm"}, "has no p50.txt"),
    ):
        with pytest.raises(BundleError, match=words):
            predictor.load(changed(model, **wrong))
    with pytest.raises(BundleError, match=r"calibration\.json"):
        predictor.load(changed(model, files={"linear.json": model.files["linear.json"]}))


@pytest.mark.parametrize("kind", KINDS)
def test_files_that_are_garbage_are_refused(kind: str, zoo: dict[str, Trained]) -> None:
    model = zoo[kind].bundle
    for name in model.files:
        for content in (b"", b"garbage", model.files[name][: len(model.files[name]) // 2]):
            if name.endswith(".txt") and content.startswith(b"tree"):
                continue  # half of a text model: its hash, not LightGBM, is what refuses it
            with pytest.raises(BundleError):
                predictor.load(changed(model, files=model.files | {name: content}))


def test_trees_that_would_walk_in_a_circle_are_refused(zoo: dict[str, Trained]) -> None:
    model = zoo["tree"].bundle
    whole = tree.load(model)
    circle = tree.Trees(
        whole.feature, whole.threshold, np.zeros_like(whole.left), whole.right, whole.p50, whole.p90, whole.roots
    )
    with pytest.raises(BundleError, match="no trees"):
        tree.load(changed(model, files=model.files | {tree.FILE: circle.encode()}))


def test_the_p90_is_lifted_by_the_offset_of_the_predicted_zone() -> None:
    middle = np.log(np.array([0.5, 5.0, 50.0]))
    p50_s, p90_s = Calibration((0.1, 0.2, 0.3)).apply(middle, middle)
    assert np.allclose(p50_s, [0.5, 5.0, 50.0])
    assert np.allclose(np.log(p90_s / p50_s), [0.1, 0.2, 0.3])


def test_the_p90_never_falls_below_the_median() -> None:
    middle = np.log(np.array([0.5]))
    p50_s, p90_s = Calibration((-1.0, 0.0, 0.0)).apply(middle, middle + 0.2)
    assert p90_s[0] == p50_s[0]


def test_calibration_covers_nine_in_ten_of_each_zone() -> None:
    rng = np.random.default_rng(5)
    middle = rng.uniform(np.log(0.05), np.log(60.0), 20_000)
    spread = np.array([0.1, 0.5, 0.9])[np.searchsorted(np.log([1.0, 10.0]), middle)]
    ttft_s = np.exp(middle + rng.normal(0, 1, len(middle)) * spread)
    fitted = calibration.fit(middle[::2], middle[::2], ttft_s[::2])
    p50_s, p90_s = fitted.apply(middle[1::2], middle[1::2])
    covered = ttft_s[1::2] <= p90_s
    assert np.mean(covered) == pytest.approx(0.9, abs=0.02)
    for low, high in ((0.0, 1.0), (1.0, 10.0), (10.0, 100.0)):
        assert np.mean(covered[(p50_s >= low) & (p50_s < high)]) == pytest.approx(0.9, abs=0.05)


def sparse(rng: np.random.Generator, high: int, scale: float, *, others: int = 300) -> tuple[Floats, Floats]:
    """Predicted log medians and true TTFTs: plenty, and in a slow zone a few, `scale` times as unsure."""
    plenty = rng.uniform(np.log(0.05), np.log(9.0), others)
    middle = np.concatenate([plenty, rng.uniform(np.log(15.0), np.log(60.0), high)])
    spread = np.where(middle > np.log(12.0), 0.1 * scale, 0.1)
    return middle, np.exp(middle + rng.normal(0, 1, len(middle)) * spread)


@pytest.mark.parametrize("samples", [9, 25, 59, 300])
@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_a_zone_with_few_samples_is_covered_like_the_others(samples: int, scale: float) -> None:
    rng = np.random.default_rng(7)
    covered = []
    for _ in range(100):
        middle, ttft_s = sparse(rng, samples, scale)
        fitted = calibration.fit(middle, middle, ttft_s)
        middle, ttft_s = sparse(rng, 200, scale, others=0)
        covered.append(np.mean(ttft_s <= fitted.apply(middle, middle)[1]))
    assert 0.88 < np.mean(covered) < 0.97


@pytest.mark.parametrize("samples", [0, 3, 9, 40])
def test_a_zone_with_few_samples_is_not_believed_to_be_surer_than_its_neighbour(samples: int) -> None:
    rng = np.random.default_rng(8)
    for _ in range(20):
        middle, ttft_s = sparse(rng, samples, 0.2)
        _, medium, high = calibration.fit(middle, middle, ttft_s).offsets
        assert high >= medium * (1 - samples / calibration.ZONE_SAMPLES_MIN)


def test_the_worst_of_very_few_samples_is_covered() -> None:
    middle, ttft_s = sparse(np.random.default_rng(9), 3, 1.0)
    ttft_s[-1] = np.exp(middle[-1] + 2.0)
    fitted = calibration.fit(middle, middle, ttft_s)
    assert (ttft_s <= fitted.apply(middle, middle)[1])[-3:].all()


def test_where_a_speed_is_not_known_the_prediction_decides_nothing_until_it_was_seen_to_be_right() -> None:
    rng = np.random.default_rng(10)
    middle, ttft_s = sparse(rng, 100, 1.0, others=700)
    unknown = np.arange(len(middle)) % 20 == 0
    few = calibration.fit(middle, middle, ttft_s, unknown)
    p50_s, p90_s = few.apply(middle, middle, unknown)
    assert (p90_s[unknown] >= 0.999 * calibration.UNKNOWN_FACTOR * p50_s[unknown]).all()
    assert (p90_s[~unknown] < 2 * p50_s[~unknown]).all()
    unknown = np.arange(len(middle)) % 4 == 0
    ttft_s[unknown] *= np.exp(rng.uniform(0.0, 1.0, unknown.sum()))
    many = calibration.fit(middle, middle, ttft_s, unknown)
    p50_s, p90_s = many.apply(middle, middle, unknown)
    assert np.mean(ttft_s[unknown] <= p90_s[unknown]) == pytest.approx(0.9, abs=0.03)
    assert (p90_s[~unknown] < 2 * p50_s[~unknown]).all(), "the others are none the wider for it"


def test_without_samples_there_is_no_calibration() -> None:
    with pytest.raises(ValueError, match="no samples"):
        calibration.fit(np.empty(0), np.empty(0), np.empty(0))
