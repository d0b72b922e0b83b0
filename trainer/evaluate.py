"""A model's figures on samples it was not trained on, the time of a prediction among them."""

from __future__ import annotations

import time

import numpy as np

from contract.features import INDEX
from prediction import scores
from prediction.dataset import Dataset
from prediction.predictor import Predictor
from prediction.scores import Scores

TIMED_ROWS = 64
TIMED_CALLS = 50


def evaluate(predictor: Predictor, samples: Dataset, *, seed: int = 0) -> Scores:
    """samples: oldest first, as a Dataset is."""
    p50_s, p90_s = predictor.predict(samples.rows)
    return scores.score(
        samples.ttft_s,
        p50_s,
        p90_s,
        samples.decided_at,
        lengths=samples.rows[:, INDEX["input_tokens"]],
        seed=seed,
        predict_us=predict_us(predictor, samples),
    )


def predict_us(predictor: Predictor, samples: Dataset) -> float:
    """CPU microseconds a row, in batches of TIMED_ROWS: the least of three rounds, since others share the machine."""
    rows = np.ascontiguousarray(np.resize(samples.rows, (TIMED_ROWS, samples.rows.shape[1])))
    rounds = []
    for _ in range(3):
        began = time.thread_time()
        for _ in range(TIMED_CALLS):
            predictor.predict(rows)
        rounds.append(time.thread_time() - began)
    return min(rounds) / TIMED_CALLS / TIMED_ROWS * 1e6
