"""Robust least squares for constants that are all positive, with one nuisance factor a group.

Gauss-Newton on logarithms with a pseudo-Huber loss. A simulation is behind every residual, so that derivatives are central
differences over steps of several per cent, and a step that does not lower the loss is shortened. Factors of groups do not
touch each other's rows: one pair of simulations gives all their derivatives.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from emulator.fidelity.recording import Floats, Ints

Residuals = Callable[[Floats, Floats], Floats]
"""(constants, factors) -> residuals, one row a kind, one column a request."""

SCALE = 0.12
"""Residuals (of logarithms) beyond this count less and less."""
_STEP_CONSTANT, _STEP_FACTOR, _STEP_MAX = 0.06, 0.04, 0.3
_DAMPING, _TRIES = 0.02, 4


@dataclass(frozen=True, slots=True)
class Fit:
    constants: Floats
    factors: Floats
    loss: float


def fit(
    residuals: Residuals,
    constants: Floats,
    factors: Floats,
    groups: Ints,
    rows: npt.NDArray[np.bool_],
    *,
    free: Sequence[int],
    iterations: int,
    prior: float = 2.0,
) -> Fit:
    """groups: of every request; rows: requests that count; free: which constants may move; prior: what keeps factors at 1."""
    used = np.unique(groups[rows])
    where = groups[rows][None, :] == used[:, None]

    def at(x: Floats, v: Floats) -> tuple[Floats, float]:
        values = residuals(x, v)[:, rows]
        loss = float(np.sum(2 * SCALE**2 * (np.sqrt(1 + (values / SCALE) ** 2) - 1)))
        return values, loss + prior * float(np.sum(np.log(v[used]) ** 2))

    values, loss = at(constants, factors)
    damping = 1.0
    for _ in range(iterations):
        slopes = [_slope(residuals, constants, factors, index, rows) for index in free]
        by_factor = (
            residuals(constants, factors * np.exp(_STEP_FACTOR)) - residuals(constants, factors / np.exp(_STEP_FACTOR))
        )[:, rows] / (2 * _STEP_FACTOR)
        weight = 1 / np.sqrt(np.sqrt(1 + (values / SCALE) ** 2))
        columns = [(slope * weight).ravel() for slope in slopes]
        columns += [(by_factor * weight * mask).ravel() for mask in where]
        matrix = np.array(columns).T
        normal, target = matrix.T @ matrix, -matrix.T @ (values * weight).ravel()
        tail = np.arange(len(free), len(columns))
        normal[tail, tail] += 2 * prior
        target[tail] -= 2 * prior * np.log(factors[used])
        for _ in range(_TRIES):
            # Constants that these rows know nothing of stay where they are.
            damped = normal + damping * _DAMPING * np.diag(np.maximum(np.diag(normal), _DAMPING))
            step = np.clip(np.linalg.solve(damped, target), -_STEP_MAX, _STEP_MAX)
            next_constants, next_factors = constants.copy(), factors.copy()
            next_constants[list(free)] *= np.exp(step[: len(free)])
            next_factors[used] *= np.exp(step[len(free) :])
            next_values, next_loss = at(next_constants, next_factors)
            if next_loss < loss:
                break
            damping *= 5
        else:
            break
        constants, factors, values, loss, gain = next_constants, next_factors, next_values, next_loss, loss - next_loss
        damping = max(0.2, damping / 3)
        if gain < 1e-3 * loss:
            break
    return Fit(constants, factors, loss)


def _slope(residuals: Residuals, constants: Floats, factors: Floats, index: int, rows: npt.NDArray[np.bool_]) -> Floats:
    high, low = constants.copy(), constants.copy()
    high[index] *= np.exp(_STEP_CONSTANT)
    low[index] *= np.exp(-_STEP_CONSTANT)
    slope: Floats = (residuals(high, factors) - residuals(low, factors))[:, rows] / (2 * _STEP_CONSTANT)
    return slope
