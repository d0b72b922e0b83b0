"""One training, from samples to a bundle with its figures: fit, calibrate the p90, judge. No files, no clock, no sockets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from contract.features import FEATURES, VERSION
from prediction import bundle, calibration, predictor
from prediction.bundle import Bundle
from prediction.dataset import Dataset
from prediction.predictor import Predictor
from prediction.scores import Scores
from trainer.evaluate import evaluate
from trainer.split import Split, split
from trainer.zoo import KINDS, fit_of
from trainer.zoo.kind import THREADS, Fit, Training, TrainingStopped

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
    tell("fit", 0.0, f"{kind} on {len(divided.fit)} of {len(samples)} samples")
    training = Training(divided.fit.rows, divided.fit.ttft_s, divided.fit.decided_at, divided.fit.worker)
    with threadpool_limits(THREADS):  # the threads of BLAS, too
        files = _fitted(fit or fit_of(kind), training, kind, seed, tell)
    return _finished(files, divided, kind, model_id, seed, now_unix, tell, note)


def _fitted(fit: Fit, training: Training, kind: str, seed: int, tell: Tell) -> dict[str, bytes]:
    try:
        return fit(training, seed, lambda done: tell("fit", done, ""))
    except TrainingStopped:
        raise
    except Exception as error:  # whatever a library of learning may throw: a training that failed, and no more
        raise TrainError(f"{kind} cannot be fitted to these samples: {type(error).__name__}: {error}") from error


def _finished(
    files: dict[str, bytes],
    divided: Split,
    kind: str,
    model_id: str,
    seed: int,
    now_unix: float,
    tell: Tell,
    note: str,
) -> Trained:
    tell("calibrate", 0.0, f"the p90 on {len(divided.calibrate)} samples")

    def built(calibrated: calibration.Calibration) -> Bundle:
        return bundle.build(
            model_id=model_id,
            kind=kind,
            feature_version=VERSION,
            features=FEATURES,
            trained_at=now_unix,
            samples=len(divided.fit),
            seed=seed,
            note=note,
            files=files | {calibration.FILE: calibrated.encode()},
        )

    raw = predictor.LOADERS[kind](built(calibration.Calibration()))
    log_p50, log_p90 = raw.log_quantiles(divided.calibrate.rows)
    done = built(calibration.fit(log_p50, log_p90, divided.calibrate.ttft_s))
    tell("judge", 0.0, f"on {len(divided.judge)} samples")
    serving = predictor.load(done)
    figures = evaluate(serving, divided.judge, seed=seed)
    tell("judge", 1.0, "")
    return Trained(done, serving, figures, divided.judge)
