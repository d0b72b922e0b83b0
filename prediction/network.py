"""A small multilayer perceptron as arrays: standardised log1p of derive.COLUMNS in, log (seconds / estimate) out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from prediction import derive
from prediction.arrays import pack, unpack
from prediction.bundle import Bundle
from prediction.errors import BundleError

Floats = npt.NDArray[np.float64]

FILE = "network.npz"
LAYERS_MAX = 8
REACH = 6.0
"""Standard deviations beyond which an input is cut: a network says anything far outside of what it saw."""


def standard_inputs(columns: Floats, mean: Floats, scale: Floats) -> Floats:
    """columns: (n, len(derive.COLUMNS)). Same shape."""
    return np.clip((np.log1p(np.maximum(columns, 0.0)) - mean) / scale, -REACH, REACH)


@dataclass(frozen=True, slots=True)
class Network:
    """mean, scale: (columns,); layers: weights (in, out) and bias (out,), ReLU between; bound: of the output, both ways."""

    mean: Floats
    scale: Floats
    layers: tuple[tuple[Floats, Floats], ...]
    bound: float

    def encode(self) -> bytes:
        arrays = {"mean": self.mean, "scale": self.scale, "bound": np.array([self.bound])}
        for number, (weights, bias) in enumerate(self.layers):
            arrays |= {f"weights{number}": weights, f"bias{number}": bias}
        return pack(layers=np.array([len(self.layers)]), **arrays)

    def log_quantiles(self, rows: Floats) -> tuple[Floats, Floats]:
        columns = derive.inputs(rows)
        hidden = standard_inputs(columns, self.mean, self.scale)
        for number, (weights, bias) in enumerate(self.layers):
            if number:
                hidden = np.maximum(hidden, 0.0)
            hidden = hidden @ weights + bias
        middle = derive.log_estimate(columns) + np.clip(hidden[:, 0], -self.bound, self.bound)
        return middle, middle


def load(bundle: Bundle) -> Network:
    """BundleError: no such file, or arrays that do not fit each other."""
    where = f"model {bundle.manifest.model_id}: {FILE}"
    first = unpack(bundle, FILE, "layers", "mean", "scale", "bound")
    if first["layers"].shape != (1,) or not 1 <= int(first["layers"][0]) <= LAYERS_MAX or first["bound"].shape != (1,):
        raise BundleError(f"{where}: not a network of 1 to {LAYERS_MAX} layers")
    count = int(first["layers"][0])
    names = [name for number in range(count) for name in (f"weights{number}", f"bias{number}")]
    found = unpack(bundle, FILE, *names)
    width = len(derive.COLUMNS)
    if first["mean"].shape != (width,) or first["scale"].shape != (width,) or not np.all(first["scale"] > 0):
        raise BundleError(f"{where}: not of {width} columns")
    layers = tuple((found[f"weights{number}"], found[f"bias{number}"]) for number in range(count))
    for weights, bias in layers:
        if weights.ndim != 2 or weights.shape[0] != width or bias.shape != (weights.shape[1],):
            raise BundleError(f"{where}: a layer of shape {weights.shape} does not follow one of {width} outputs")
        width = weights.shape[1]
    if width != 1:
        raise BundleError(f"{where}: {width} outputs")
    return Network(first["mean"], first["scale"], layers, float(first["bound"][0]))
