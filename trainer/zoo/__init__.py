"""The kinds of models, one interface: `fit(training, seed, progress)` gives files that `prediction.predictor` loads."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from trainer.zoo import boosted, distilled, linear, mlp, online, trees, zoned
from trainer.zoo.kind import Fit

DEFAULT = "lightgbm"

KINDS: Mapping[str, Fit] = MappingProxyType(
    {
        "linear": linear.fit,
        "linear_online": online.fit,
        "tree": trees.fit_tree,
        "forest": trees.fit_forest,
        "mlp": mlp.fit,
        "lightgbm": boosted.fit,
        "zoned": zoned.fit,
        "distilled": distilled.fit,
    }
)
