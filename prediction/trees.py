"""A LightGBM model text as trees that compiled code walks (`_trees.c`), where an installation found a C compiler."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from prediction import few

if TYPE_CHECKING:
    from prediction._trees import Trees
    from prediction.booster import Booster

_VERSION = 1
"""Of the compiled part; one that was built from other sources is left alone."""
try:
    from prediction import _trees as compiled
except ImportError:
    compiled = None  # type: ignore[assignment]
else:
    if getattr(compiled, "VERSION", 0) != _VERSION:
        compiled = None  # type: ignore[assignment]

PROOF_ROWS = 256
_LISTS = ("split_feature", "threshold", "decision_type", "left_child", "right_child", "leaf_value")


def read(text: str, booster: Booster) -> Trees | None:
    """booster: made from the text. None: there is no compiled code, or it does not say of rows of all kinds what the booster
    says, to the last bit."""
    if compiled is None or booster.outputs != 1:
        return None
    sizes: list[int] = []
    lists: list[list[float]] = [[] for _ in _LISTS]
    try:
        for tree in few.parts(text)[1]:
            said = dict(line.split("=", 1) for line in tree.split("\n") if "=" in line)
            if said.get("is_linear", "0") != "0" or said["num_cat"] != "0":
                return None
            sizes.append(int(said["num_leaves"]))
            for name, found in zip(_LISTS, lists, strict=True):
                found += map(float, said.get(name, "").split())
        trees = compiled.Trees(booster.columns, sizes, *lists)
    except (KeyError, ValueError):
        return None
    return trees if _is_proven(trees, booster, lists[1]) else None


def _is_proven(trees: Trees, booster: Booster, thresholds: list[float]) -> bool:
    """On rows of many sizes, with zeros, numbers below it, none at all, and the very thresholds."""
    rng = np.random.default_rng(0)
    rows = rng.lognormal(sigma=4.0, size=(PROOF_ROWS, booster.columns))
    kinds = rng.integers(0, 10, size=rows.shape)
    rows[kinds == 0] = 0.0
    rows[kinds == 1] = np.nan
    rows[kinds == 2] *= -1e-30
    rows[kinds == 3] = 1e-36
    if thresholds:
        rows[kinds >= 8] = rng.choice(thresholds, size=int(np.sum(kinds >= 8)))
    memory = bytearray(rows.tobytes())
    found = [trees.ask(memory, place)() for place in range(PROOF_ROWS)]
    return bool(np.array_equal(booster.predict(rows), found))
