"""What a model sees of a feature row: the row itself, and the quotients and products that trees cannot form by themselves.

The estimate is where a model starts: when the engine would begin with this prompt, as the router foresees it, and the time that
the endpoint's own speed would take for it. Models of trees learn the logarithm of (truth / estimate). So they carry
over from a fast worker to a slow one, and go on rising where a queue is longer than any they were trained on, which trees
alone do not.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from contract.features import FEATURES, INDEX, PAIRS_A_TOKEN, SPEED_UNKNOWN

Floats = npt.NDArray[np.float64]

SPEED_MIN = 1e-3
"""Below, a speed is taken for unknown: its inverse is no time."""
FLOOR_S = 0.015
"""Of the estimate: what a first token costs when nothing is to be computed."""

EXTRA: tuple[str, ...] = (
    "queue_s",  # prefill work there, at the endpoint's speed
    "own_s",  # this prompt's own, at that speed
    "spent_s",  # of queue_s, how much the endpoint has been at it already
    "seat_s",  # of begins_s, what is no work: the wait for answers to end
    "todo_s",  # begins_s + own_s
    "own_pairs",  # pairs of an uncached token of this prompt and a token before it
    "mean_pairs",  # attention pairs a token, of the queue and this prompt
    "decoding",  # requests there beyond their first token
    "fill",  # context of active requests over the cache's capacity
)
COLUMNS: tuple[str, ...] = FEATURES + EXTRA
"""Names of what `inputs` returns, in order."""

_WIDTH = len(FEATURES)
_INPUT, _UNCACHED = INDEX["input_tokens"], INDEX["uncached_tokens"]
_PREFILL, _PAIRS, _WAIT = INDEX["prefill_tokens"], INDEX["prefill_pairs"], INDEX["prefill_wait_s"]
_SPEED, _ACTIVE, _QUEUED = INDEX["prefill_tokens_per_s"], INDEX["active"], INDEX["no_first_byte"]
_CONTEXT, _CACHE = INDEX["context_tokens"], INDEX["cache_tokens"]
_BEGINS = INDEX["begins_s"]
_ESTIMATE = _WIDTH + EXTRA.index("todo_s")


def inputs(rows: Floats) -> Floats:
    """rows: (n, len(FEATURES)). C-contiguous float64 (n, len(COLUMNS))."""
    out = np.empty((len(rows), len(COLUMNS)))
    out[:, :_WIDTH] = rows
    seconds = rows[:, _SPEED]
    seconds = 1.0 / np.where(seconds > SPEED_MIN, seconds, SPEED_UNKNOWN)
    uncached, prefill = rows[:, _UNCACHED], rows[:, _PREFILL]
    own_pairs = uncached * np.maximum(rows[:, _INPUT] - 0.5 * uncached, 0.0)
    queue_s = (prefill + rows[:, _PAIRS] / PAIRS_A_TOKEN) * seconds
    own_s = (uncached + own_pairs / PAIRS_A_TOKEN) * seconds
    spent_s = np.minimum(rows[:, _WAIT], queue_s)
    extra = out[:, _WIDTH:]
    extra[:, 0] = queue_s
    extra[:, 1] = own_s
    extra[:, 2] = spent_s
    extra[:, 3] = np.maximum(rows[:, _BEGINS] - (queue_s - spent_s), 0.0)
    extra[:, 4] = rows[:, _BEGINS] + own_s
    extra[:, 5] = own_pairs
    extra[:, 6] = (rows[:, _PAIRS] + own_pairs) / np.maximum(prefill + uncached, 1.0)
    extra[:, 7] = rows[:, _ACTIVE] - rows[:, _QUEUED]
    extra[:, 8] = rows[:, _CONTEXT] / np.maximum(rows[:, _CACHE], 1.0)
    return out


def speed_unknown(rows: Floats) -> npt.NDArray[np.bool_]:
    """rows: (n, len(FEATURES)). (n,) whether the endpoint has not shown its prefill speed yet."""
    unknown: npt.NDArray[np.bool_] = rows[:, _SPEED] <= SPEED_MIN
    return unknown


def log_estimate(columns: Floats) -> Floats:
    """columns: as `inputs` returns. (n,) log seconds."""
    return np.log(columns[:, _ESTIMATE] + FLOOR_S)
