"""The kinds of models, one interface: `fit(training, seed, progress)` gives files that `prediction.predictor` loads.

Libraries of learning are loaded when a kind is first trained: a trainer that waits for samples stays small, and starts at
once.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from types import MappingProxyType

from trainer.zoo.kind import Fit

DEFAULT = "lightgbm"

KINDS: Mapping[str, str] = MappingProxyType(
    {
        "lightgbm": "boosted:fit",
        "zoned": "zoned:fit",
        "forest": "trees:fit_forest",
        "tree": "trees:fit_tree",
        "distilled": "distilled:fit",
        "mlp": "mlp:fit",
        "linear": "linear:fit",
        "linear_online": "online:fit",
    }
)
"""Name -> module here, and its function."""


def fit_of(kind: str) -> Fit:
    """KeyError: no such kind."""
    module, _, function = KINDS[kind].partition(":")
    fit: Fit = getattr(import_module(f"trainer.zoo.{module}"), function)
    return fit
