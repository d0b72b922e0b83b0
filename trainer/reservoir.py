"""Which samples stay when there are too many: an even share of every state the fleet was in, the rare ones whole. Pure.

A state is a stratum of load (requests active at the endpoint) and prefix (share of the prompt it had cached). Most traffic
is of one kind; a model trained on its newest samples alone forgets how a full endpoint behaves until the day it has to
know.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from contract.features import INDEX

ACTIVE_EDGES = (1, 3, 6, 11, 21, 51, 101)
"""0; 1-2; 3-5; 6-10; 11-20; 21-50; 51-100; more."""
MATCHED_EDGES = (0.001, 0.25, 0.5, 0.75)
"""none; below a quarter; a half; three quarters; more."""
STRATA = (len(ACTIVE_EDGES) + 1) * (len(MATCHED_EDGES) + 1)

Places = npt.NDArray[np.intp]


def strata(rows: npt.NDArray[np.float64]) -> Places:
    """rows: (n, len(FEATURES)). (n,) numbers below STRATA."""
    share = rows[:, INDEX["matched_tokens"]] / np.maximum(rows[:, INDEX["input_tokens"]], 1.0)
    load = np.searchsorted(ACTIVE_EDGES, rows[:, INDEX["active"]], side="right")
    return load * (len(MATCHED_EDGES) + 1) + np.searchsorted(MATCHED_EDGES, share, side="right")


def quotas(counts: npt.NDArray[np.intp], limit: int) -> Places:
    """How many of each stratum stay: the same for all that have so many, all of those that have fewer; `limit` in all."""
    order = np.argsort(counts)
    kept = np.zeros(len(counts), dtype=np.intp)
    left = limit
    for place, stratum in enumerate(order):
        kept[stratum] = min(int(counts[stratum]), left // (len(counts) - place))
        left -= int(kept[stratum])
    return kept


def thin(rows: npt.NDArray[np.float64], limit: int, rng: np.random.Generator) -> Places:
    """Places of those that stay, ascending; all of them where there are no more than `limit`."""
    if len(rows) <= limit:
        return np.arange(len(rows))
    where = strata(rows)
    kept = quotas(np.bincount(where, minlength=STRATA), limit)
    drawn = [rng.choice(np.flatnonzero(where == stratum), count, replace=False) for stratum, count in enumerate(kept) if count]
    return np.sort(np.concatenate(drawn))
