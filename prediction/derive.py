"""What a model sees of a feature row: the row itself, and the quotients and products that trees cannot form by themselves.

The estimate is where a model starts: the time that the endpoint's own speed would take for what is queued there and for
this prompt, less what it has already spent on it. Models of trees learn the logarithm of (truth / estimate). So they carry
over from a fast worker to a slow one, and go on rising where a queue is longer than any they were trained on, which trees
alone do not.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from contract.features import FEATURES, INDEX, PAIRS_A_TOKEN

Floats = npt.NDArray[np.float64]

SPEED_UNKNOWN = 10_000.0
"""Prefill tokens a second, of an endpoint that has not shown its own yet."""
SPEED_MIN = 1e-3
"""Below, a speed is taken for unknown: its inverse is no time."""
FLOOR_S = 0.015
"""Of the estimate: what a first token costs when nothing is to be computed."""

EXTRA: tuple[str, ...] = (
    "queue_s",  # prefill work there, at the endpoint's speed
    "own_s",  # this prompt's own, at that speed
    "spent_s",  # of queue_s, how much the endpoint has been at it already
    "seat_s",  # until a seat is free for it, where all are taken: the ends that must come first
    "todo_s",  # queue_s - spent_s + seat_s + own_s
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
_SEATS, _HOLD, _DUE = INDEX["seats"], INDEX["hold_s"], INDEX["seat_due_s"]
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
    extra[:, 3] = seat_s = _seat_s(rows)
    extra[:, 4] = queue_s - spent_s + seat_s + own_s
    extra[:, 5] = own_pairs
    extra[:, 6] = (rows[:, _PAIRS] + own_pairs) / np.maximum(prefill + uncached, 1.0)
    extra[:, 7] = rows[:, _ACTIVE] - rows[:, _QUEUED]
    extra[:, 8] = rows[:, _CONTEXT] / np.maximum(rows[:, _CACHE], 1.0)
    return out


def _seat_s(rows: Floats) -> Floats:
    """As the ends of the answers under way are foreseen; of those that have not begun, one ends every hold_s / seats. (n,)
    seconds, 0 where a seat is free."""
    seats, due = rows[:, _SEATS], rows[:, _DUE]
    ends = np.where(seats > 0.0, rows[:, _ACTIVE] + 1.0 - seats, 0.0)
    foreseen = np.where(due > 0.0, rows[:, _ACTIVE] - rows[:, _QUEUED], 0.0)
    seconds: Floats = due + rows[:, _HOLD] * np.maximum(ends - foreseen, 0.0) / np.maximum(seats, 1.0)
    return seconds


def log_estimate(columns: Floats) -> Floats:
    """columns: as `inputs` returns. (n,) log seconds."""
    return np.log(columns[:, _ESTIMATE] + FLOOR_S)
