"""A multilayer perceptron of scikit-learn, exported as arrays."""

from __future__ import annotations

import warnings

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPRegressor

from prediction.network import FILE, Network, standard_inputs
from trainer.zoo.kind import Progress, Training
from trainer.zoo.linear import standardise

HIDDEN = (64, 32)
EPOCHS = 60
BATCH = 256
SLACK = 0.5
"""Log seconds by which an answer may leave the range of its training."""


def fit(training: Training, seed: int, progress: Progress) -> dict[str, bytes]:
    mean, scale = standardise(np.log1p(np.maximum(training.columns, 0.0)))
    inputs = standard_inputs(training.columns, mean, scale)
    model = MLPRegressor(
        hidden_layer_sizes=HIDDEN,
        batch_size=min(BATCH, len(training)),
        max_iter=1,
        warm_start=True,
        learning_rate_init=2e-3,
        random_state=seed,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # one epoch a call, so that progress can be told
        for epoch in range(EPOCHS):
            model.set_params(learning_rate_init=2e-3 * (1 - epoch / EPOCHS) + 1e-4)
            model.fit(inputs, training.target)
            progress((epoch + 1) / EPOCHS)
    layers = tuple(zip(model.coefs_, model.intercepts_, strict=True))
    bound = float(np.abs(training.target).max()) + SLACK
    return {FILE: Network(mean, scale, layers, bound).encode()}
