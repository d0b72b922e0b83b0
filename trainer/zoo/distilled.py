"""A transformer over an endpoint's recent requests, distilled into a decision tree that sees one row.

The teacher knows what a control plane could only know with every endpoint's history at hand; the tree learns the teacher's
answer from the row alone, which is smoother than the truth: one sample's chance is averaged out by its neighbours' in time.
"""

from __future__ import annotations

import numpy as np
from sklearn.tree import DecisionTreeRegressor

from prediction.tree import FILE
from trainer.zoo import sequences, transformer
from trainer.zoo.kind import Progress, Training
from trainer.zoo.trees import LEAF_SAMPLES_MIN, TREE_LEAVES, flat

TEACHER_SAMPLES_MAX = 30_000
"""The newest: beyond, a training would take minutes."""


def fit(training: Training, seed: int, progress: Progress) -> dict[str, bytes]:
    tokens, present = sequences.build(training)
    rng = np.random.default_rng(seed)
    newest = slice(max(0, len(training) - TEACHER_SAMPLES_MAX), None)
    parameters = transformer.train(
        tokens[newest],
        present[newest],
        training.target[newest],
        rng=rng,
        progress=lambda done: progress(0.9 * done),
    )
    taught = transformer.answers(parameters, tokens, present)
    leaf_min = max(1, min(LEAF_SAMPLES_MIN, len(training) // 50))
    student = DecisionTreeRegressor(max_leaf_nodes=TREE_LEAVES, min_samples_leaf=leaf_min, random_state=seed)
    student.fit(training.columns, taught)
    trees = flat(student.tree_, student.apply(training.columns), training.target, middle=taught)
    progress(1.0)
    return {FILE: trees.encode()}
