"""A small transformer in numpy, with its own gradients: two blocks of attention and ReLU, no normalisation.

    x = tokens We + be + position
    twice:  x = x + softmax(x Wq (x Wk)^T / sqrt(d)) x Wv Wo;   x = x + relu(x W1 + b1) W2 + b2
    answer = x[last] w + b

Loss: pseudo-Huber, whose gradient is bounded, so that a few absurd samples do not steer. Optimiser: Adam.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from trainer.zoo.kind import Floats, Progress

Parameters = dict[str, Floats]
Flags = npt.NDArray[np.bool_]

WIDTH = 24
HIDDEN = 48
BLOCKS = 2
EPOCHS = 8
BATCH = 256
RATE = 2e-3
HUBER = 0.5
"""Error in log seconds beyond which the loss grows in a straight line."""
FAR = -1e9


def start(rng: np.random.Generator, *, inputs: int, length: int, width: int = WIDTH, hidden: int = HIDDEN) -> Parameters:
    """inputs: numbers a token; length: tokens a sequence."""

    def matrix(rows: int, columns: int, gain: float = 1.0) -> Floats:
        return rng.normal(0.0, gain / np.sqrt(rows), (rows, columns))

    parameters = {
        "We": matrix(inputs, width),
        "be": np.zeros(width),
        "position": rng.normal(0.0, 0.1, (length, width)),
        "w": matrix(width, 1, 0.1)[:, 0],
        "b": np.zeros(1),
    }
    for block in range(BLOCKS):
        for name in ("Wq", "Wk", "Wv"):
            parameters[f"{name}{block}"] = matrix(width, width)
        parameters[f"Wo{block}"] = matrix(width, width, 0.5)
        parameters[f"W1{block}"] = matrix(width, hidden)
        parameters[f"b1{block}"] = np.zeros(hidden)
        parameters[f"W2{block}"] = matrix(hidden, width, 0.5)
        parameters[f"b2{block}"] = np.zeros(width)
    return parameters


@dataclass(slots=True)
class _Block:
    """What a block's backward pass needs of its forward pass."""

    x: Floats
    q: Floats
    k: Floats
    v: Floats
    weights: Floats
    mixed: Floats
    middle: Floats
    hidden: Floats


@dataclass(slots=True)
class Pass:
    """A forward pass. answers: (n,)."""

    tokens: Floats
    blocks: list[_Block] = field(default_factory=list)
    last: Any = None
    answers: Any = None


def forward(p: Parameters, tokens: Floats, present: Flags) -> Pass:
    """tokens: (n, length, inputs); present: (n, length)."""
    run = Pass(tokens)
    x = tokens @ p["We"] + p["be"] + p["position"]
    unseen = np.where(present, 0.0, FAR)[:, None, :]
    for block in range(BLOCKS):
        q, k, v = (x @ p[f"{name}{block}"] for name in ("Wq", "Wk", "Wv"))
        scores = q @ k.transpose(0, 2, 1) / np.sqrt(q.shape[-1]) + unseen
        scores -= scores.max(axis=-1, keepdims=True)
        weights = np.exp(scores)
        weights /= weights.sum(axis=-1, keepdims=True)
        mixed = weights @ v
        middle = x + mixed @ p[f"Wo{block}"]
        hidden = np.maximum(middle @ p[f"W1{block}"] + p[f"b1{block}"], 0.0)
        run.blocks.append(_Block(x, q, k, v, weights, mixed, middle, hidden))
        x = middle + hidden @ p[f"W2{block}"] + p[f"b2{block}"]
    run.last = x[:, -1]
    run.answers = run.last @ p["w"] + p["b"][0]
    return run


def loss(answers: Floats, target: Floats) -> tuple[float, Floats]:
    """The mean pseudo-Huber loss, and its gradient by answer (n,)."""
    error = answers - target
    root = np.sqrt(1.0 + (error / HUBER) ** 2)
    return float(np.mean(HUBER**2 * (root - 1.0))), error / root / len(error)


def backward(p: Parameters, run: Pass, by_answer: Floats) -> Parameters:
    """The gradient of what `by_answer` is the gradient of, by parameter."""
    grads: Parameters = {"w": run.last.T @ by_answer, "b": np.array([by_answer.sum()])}
    count, length, _ = run.tokens.shape
    dx = np.zeros((count, length, len(p["w"])))
    dx[:, -1] = by_answer[:, None] * p["w"]
    for block in reversed(range(BLOCKS)):
        dx = _block_backward(p, grads, run.blocks[block], block, dx)
    grads["We"] = _outer(run.tokens, dx)
    grads["be"] = dx.sum(axis=(0, 1))
    grads["position"] = dx.sum(axis=0)
    return grads


def _block_backward(p: Parameters, grads: Parameters, saved: _Block, block: int, dx: Floats) -> Floats:
    """From the gradient by the block's output to that by its input; the parameters' gradients go into `grads`."""
    grads[f"b2{block}"] = dx.sum(axis=(0, 1))
    grads[f"W2{block}"] = _outer(saved.hidden, dx)
    dhidden = (dx @ p[f"W2{block}"].T) * (saved.hidden > 0)
    grads[f"b1{block}"] = dhidden.sum(axis=(0, 1))
    grads[f"W1{block}"] = _outer(saved.middle, dhidden)
    dmiddle = dx + dhidden @ p[f"W1{block}"].T
    grads[f"Wo{block}"] = _outer(saved.mixed, dmiddle)
    dmixed = dmiddle @ p[f"Wo{block}"].T
    dv = saved.weights.transpose(0, 2, 1) @ dmixed
    dweights = dmixed @ saved.v.transpose(0, 2, 1)
    dscores = saved.weights * (dweights - (dweights * saved.weights).sum(axis=-1, keepdims=True))
    dscores /= np.sqrt(saved.q.shape[-1])
    dq, dk = dscores @ saved.k, dscores.transpose(0, 2, 1) @ saved.q
    into = dmiddle
    for name, grad in (("Wq", dq), ("Wk", dk), ("Wv", dv)):
        grads[f"{name}{block}"] = _outer(saved.x, grad)
        into = into + grad @ p[f"{name}{block}"].T
    return into


def _outer(left: Floats, right: Floats) -> Floats:
    """Sum over sequences and places of left^T right."""
    product: Floats = left.reshape(-1, left.shape[-1]).T @ right.reshape(-1, right.shape[-1])
    return product


class Adam:
    def __init__(self, parameters: Parameters) -> None:
        self._first = {name: np.zeros_like(value) for name, value in parameters.items()}
        self._second = {name: np.zeros_like(value) for name, value in parameters.items()}
        self._steps = 0

    def step(self, parameters: Parameters, grads: Parameters, rate: float) -> None:
        """Changes the parameters in place."""
        self._steps += 1
        warm = 1.0 - 0.9**self._steps, 1.0 - 0.999**self._steps
        for name, grad in grads.items():
            first, second = self._first[name], self._second[name]
            first += 0.1 * (grad - first)
            second += 0.001 * (grad * grad - second)
            parameters[name] -= rate * (first / warm[0]) / (np.sqrt(second / warm[1]) + 1e-8)


def train(
    tokens: Floats, present: Flags, target: Floats, *, rng: np.random.Generator, epochs: int = EPOCHS, progress: Progress
) -> Parameters:
    """tokens: (n, length, inputs); target: (n,). The rate falls in a straight line to nothing."""
    parameters = start(rng, inputs=tokens.shape[2], length=tokens.shape[1])
    adam = Adam(parameters)
    batches = -(-len(target) // BATCH)
    for epoch in range(epochs):
        order = rng.permutation(len(target))
        for number in range(batches):
            places = order[number * BATCH : (number + 1) * BATCH]
            run = forward(parameters, tokens[places], present[places])
            _, by_answer = loss(run.answers, target[places])
            rate = RATE * (1.0 - (epoch * batches + number) / (epochs * batches))
            adam.step(parameters, backward(parameters, run, by_answer), rate)
        progress((epoch + 1) / epochs)
    return parameters


def answers(parameters: Parameters, tokens: Floats, present: Flags) -> Floats:
    """(n,), computed in pieces so that memory stays bounded."""
    pieces = [
        forward(parameters, tokens[begin : begin + 4096], present[begin : begin + 4096]).answers
        for begin in range(0, len(tokens), 4096)
    ]
    return np.concatenate(pieces)
