"""One training, from samples to a bundle with its figures: fit, calibrate the p90, judge. No files, no clock, no sockets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from contract.features import FEATURES, VERSION
from prediction import bundle, calibration, derive, predictor
from prediction.bundle import Bundle
from prediction.calibration import Calibration
from prediction.dataset import Dataset
from prediction.predictor import Predictor, Quantiles
from prediction.scores import Scores
from trainer.evaluate import evaluate
from trainer.split import PARTS, Split, slices, split
from trainer.zoo import KINDS, fit_of
from trainer.zoo.kind import THREADS, Fit, Progress, Training, TrainingStopped

SAMPLES_MIN = 200
"""Below this a model would be chance."""

Tell = Callable[[str, float, str], None]
"""stage, how much of it is done (0 to 1), a word on it."""


class TrainError(ValueError):
    """There is nothing to train, or too little to train on."""


@dataclass(frozen=True, slots=True)
class Trained:
    """scores: on samples that had no part in it; judged_by: these samples."""

    bundle: Bundle
    predictor: Predictor
    scores: Scores
    judged_by: Dataset


def nothing(_stage: str, _done: float, _message: str) -> None:
    """Tells nobody."""


def train(
    samples: Dataset,
    *,
    kind: str,
    model_id: str,
    seed: int,
    now_unix: float,
    tell: Tell = nothing,
    note: str = "",
    fit: Fit | None = None,
    turn: int = 0,
) -> Trained:
    """fit: another way of fitting the kind (on a cluster); turn: of trainer.split. TrainError: an unknown
    kind, or too few samples."""
    if kind not in KINDS:
        raise TrainError(f"no kind {kind!r}; there are {', '.join(KINDS)}")
    if len(samples) < SAMPLES_MIN:
        raise TrainError(f"{len(samples)} samples, a model needs {SAMPLES_MIN}")
    divided = split(samples, turn=turn)
    learn = divided.learn
    tell("fit", 0.0, f"{kind} on {len(learn)} of {len(samples)} samples")
    with threadpool_limits(THREADS):  # the threads of BLAS, too
        files, calibrated = _learned(fit or fit_of(kind), divided, kind, seed, tell)
    tell("judge", 0.0, f"on {len(divided.judge)} samples")
    done = bundle.build(
        model_id=model_id,
        kind=kind,
        feature_version=VERSION,
        features=FEATURES,
        trained_at=now_unix,
        samples=len(learn),
        seed=seed,
        note=note,
        files=files | {calibration.FILE: calibrated.encode()},
    )
    serving = predictor.load(done)
    figures = evaluate(serving, divided.judge, seed=seed)
    tell("judge", 1.0, "")
    return Trained(done, serving, figures, divided.judge)


def _learned(fit: Fit, divided: Split, kind: str, seed: int, tell: Tell) -> tuple[dict[str, bytes], Calibration]:
    """A model of all that teach, and the calibration of its p90: by models that did not see what they are compared with.

    Each part in turn is left out, and predicted by a model of the others. Calibrated on one part alone, the p90 is as good as
    the few moments in it: errors of one queue are of one kind.
    """
    learn, part = divided.learn, divided.part
    left_out = [number for number in range(1, PARTS) if np.any(part == number)]
    log_p50, log_p90 = np.zeros(len(learn)), np.zeros(len(learn))
    fits = len(left_out) + 1

    def share(place: int) -> Progress:
        return lambda done: tell("fit", (place + done) / fits, "")

    for place, number in enumerate(left_out):
        files = _fitted(fit, learn.take(part != number), kind, seed, share(place))
        judged = np.flatnonzero(part == number)
        log_p50[judged], log_p90[judged] = _raw(files, kind).log_quantiles(learn.take(judged).rows)
    files = _fitted(fit, learn, kind, seed, share(fits - 1))
    tell("calibrate", 0.0, f"the p90 on {len(learn)} samples")
    return files, calibration.fit(log_p50, log_p90, learn.ttft_s, derive.speed_unknown(learn.rows), slices(learn.decided_at))


def _raw(files: dict[str, bytes], kind: str) -> Quantiles:
    """Before calibration."""
    unnamed = bundle.build(
        model_id="unnamed",
        kind=kind,
        feature_version=VERSION,
        features=FEATURES,
        trained_at=0.0,
        samples=0,
        seed=0,
        files=files,
    )
    return predictor.LOADERS[kind](unnamed)


def _fitted(fit: Fit, samples: Dataset, kind: str, seed: int, progress: Progress) -> dict[str, bytes]:
    """TrainError."""
    training = Training(samples.rows, samples.ttft_s, samples.decided_at, samples.worker)
    try:
        return fit(training, seed, progress)
    except TrainingStopped:
        raise
    except Exception as error:  # whatever a library of learning may throw: a training that failed, and no more
        raise TrainError(f"{kind} cannot be fitted to these samples: {type(error).__name__}: {error}") from error
