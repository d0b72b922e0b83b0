"""The recent requests at an endpoint, as a sequence that ends with the one to predict.

A sample's sequence is made of the samples decided before it at the same worker, the latest PAST of them. Of each it holds the
columns a model sees, how long ago it was decided, and its target where its first token had come by then (else 0, and a flag
says so): nothing that was not known at decision time.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from prediction.network import standard_inputs
from trainer.zoo.kind import Floats, Training
from trainer.zoo.linear import standardise

PAST = 8
MARKS = 3
"""Beside the columns: target where known, whether it is known, log1p of seconds ago."""
AGE_S_MAX = 300.0


def build(training: Training) -> tuple[Floats, npt.NDArray[np.bool_]]:
    """tokens (n, PAST + 1, columns + MARKS), the sample itself last; present (n, PAST + 1), false where there is no token."""
    mean, scale = standardise(np.log1p(np.maximum(training.columns, 0.0)))
    own = standard_inputs(training.columns, mean, scale)
    count, width = own.shape
    tokens = np.zeros((count, PAST + 1, width + MARKS))
    present = np.zeros((count, PAST + 1), dtype=np.bool_)
    tokens[:, PAST, :width], present[:, PAST] = own, True
    at, ended = training.decided_at, training.decided_at + training.ttft_s
    for worker in np.unique(training.worker.astype(str)):
        mine = np.flatnonzero(training.worker.astype(str) == worker)
        for back in range(1, min(PAST, len(mine) - 1) + 1):
            here, there = mine[back:], mine[:-back]
            ago = at[here] - at[there]
            near = (ago >= 0) & (ago <= AGE_S_MAX)
            here, there, ago = here[near], there[near], ago[near]
            known = ended[there] <= at[here]
            place = PAST - back
            present[here, place] = True
            tokens[here, place, :width] = own[there]
            tokens[here, place, width] = np.where(known, training.target[there], 0.0)
            tokens[here, place, width + 1] = known
            tokens[here, place, width + 2] = np.log1p(ago)
    return tokens, present
