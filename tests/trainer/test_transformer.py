"""The transformer's own gradients, and what it sees."""

from __future__ import annotations

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from tests.trainer.traffic import samples
from trainer.zoo import sequences, transformer
from trainer.zoo.kind import Training


def small(rng: np.random.Generator) -> tuple[transformer.Parameters, np.ndarray, np.ndarray, np.ndarray]:
    parameters = transformer.start(rng, inputs=5, length=4, width=6, hidden=7)
    for name in parameters:  # zeros have no gradient to check behind a ReLU
        parameters[name] = parameters[name] + rng.normal(0, 0.1, parameters[name].shape)
    present = np.ones((3, 4), dtype=bool)
    present[0, :2] = False
    return parameters, rng.normal(0, 1, (3, 4, 5)), present, rng.normal(0, 1, 3)


def test_gradients_are_what_small_changes_say() -> None:
    rng = np.random.default_rng(0)
    parameters, tokens, present, target = small(rng)

    def value() -> float:
        return transformer.loss(transformer.forward(parameters, tokens, present).answers, target)[0]

    run = transformer.forward(parameters, tokens, present)
    grads = transformer.backward(parameters, run, transformer.loss(run.answers, target)[1])
    assert set(grads) == set(parameters)
    for name, grad in grads.items():
        assert grad.shape == parameters[name].shape
        for place in rng.choice(grad.size, min(6, grad.size), replace=False):
            at = np.unravel_index(place, grad.shape)
            kept, step = parameters[name][at], 1e-6
            parameters[name][at] = kept + step
            above = value()
            parameters[name][at] = kept - step
            below = value()
            parameters[name][at] = kept
            assert grad[at] == pytest.approx((above - below) / (2 * step), rel=1e-4, abs=1e-8), f"{name}{at}"


def test_absent_tokens_are_not_seen() -> None:
    rng = np.random.default_rng(1)
    parameters, tokens, present, _ = small(rng)
    before = transformer.forward(parameters, tokens, present).answers
    tokens[0, :2] += 100.0
    assert np.array_equal(transformer.forward(parameters, tokens, present).answers, before)


def test_it_learns_what_only_the_past_tells() -> None:
    rng = np.random.default_rng(2)
    tokens = rng.normal(0, 1, (2_000, 4, 3))
    target = tokens[:, 2, 0]  # of the one before the last
    present = np.ones((2_000, 4), dtype=bool)
    with threadpool_limits(1):
        parameters = transformer.train(tokens, present, target, rng=rng, epochs=30, progress=lambda _: None)
    error = transformer.answers(parameters, tokens, present) - target
    assert np.mean(error**2) < 0.1


def test_sequences_hold_nothing_that_was_not_known() -> None:
    data = samples(400, 1)
    training = Training(data.rows, data.ttft_s, data.decided_at, data.worker)
    tokens, present = sequences.build(training)
    width = tokens.shape[2] - sequences.MARKS
    assert present[:, -1].all()
    checked = 0
    for place in range(50, 400):
        mine = [other for other in range(place) if data.worker[other] == data.worker[place]][-sequences.PAST :]
        for back, other in enumerate(reversed(mine), start=1):
            token = tokens[place, sequences.PAST - back]
            known = data.decided_at[other] + data.ttft_s[other] <= data.decided_at[place]
            assert token[width + 1] == known
            assert token[width] == (training.target[other] if known else 0.0)
            checked += 1
    assert checked > 1_000
