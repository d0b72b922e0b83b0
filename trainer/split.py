"""Which samples a model learns from, and which judge it. Pure.

Samples go by the moment they were decided: time is cut into slices of SLICE_S, and a hash of the slice's number says which
part it is of. So a sample has the same part in every training, and a model that serves was not trained on what judges its
successor; and neighbours in time, which saw the same queue, stay together.

A slice is longer than most waits. With slices of 2 s, neighbours of a moment whose wait is seconds taught the model that it
judged: it missed the middle zone by 6.0 % where it misses other traffic by 7 to 8 %, and the p90, which is set in the same way,
held 80 % of that zone on traffic of another seed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from prediction.dataset import Dataset

SLICE_S = 10.0
PARTS = 5
"""Of these, one judges; the others teach, and set the p90 in turn."""
_FOLDS = 0x5EED
SHARE_MIN = 0.1
"""A part with less of the samples than this: too few slices for a hash to be even, so they are dealt out in turn instead."""


@dataclass(frozen=True, slots=True)
class Split:
    """part: (len(learn),) the part of each sample that teaches, 1 to PARTS - 1."""

    learn: Dataset
    part: npt.NDArray[np.int64]
    judge: Dataset


def slices(decided_at: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """(n,) the number of the slice of each."""
    return np.floor(decided_at / SLICE_S).astype(np.int64)


def parts(decided_at: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """0: judges, above: teaches. decided_at: (n,) Unix seconds, ascending."""
    return _dealt(decided_at, PARTS, salt=0)


def folds(decided_at: npt.NDArray[np.float64], count: int) -> npt.NDArray[np.int64]:
    """(n,) below count; slices stay together as they do in `parts`, of which this knows nothing."""
    return _dealt(decided_at, count, salt=_FOLDS)


def _dealt(decided_at: npt.NDArray[np.float64], count: int, *, salt: int) -> npt.NDArray[np.int64]:
    dealt = (_mixed(slices(decided_at) ^ salt) % np.uint64(count)).astype(np.int64)
    shares = [float(np.mean(dealt == part)) for part in (0, 1)]
    if min(shares) < SHARE_MIN or max(shares) > 2 / count:
        runs = np.arange(len(decided_at)) * 4 * count // max(1, len(decided_at))
        dealt = runs % count
    return dealt


def split(samples: Dataset, *, turn: int = 0) -> Split:
    """turn: below PARTS; over all of them every sample judges once."""
    dealt = (parts(samples.decided_at) + turn) % PARTS
    return Split(samples.take(dealt > 0), dealt[dealt > 0], samples.take(dealt == 0))


def judges(samples: Dataset, *, turn: int) -> npt.NDArray[np.intp]:
    """Places of those that judge in this turn."""
    return np.flatnonzero((parts(samples.decided_at) + turn) % PARTS == 0)


def _mixed(numbers: npt.NDArray[np.int64]) -> npt.NDArray[np.uint64]:
    """splitmix64: consecutive numbers become unrelated ones."""
    mixed = numbers.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))
