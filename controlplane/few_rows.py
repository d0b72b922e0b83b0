"""Rows of a few candidates for a model that answers for few (prediction.few), in plain Python: features and derived columns
in one go, into the model's own memory.

What a row takes from its endpoint alone is packed once a standing (`Still`), as it is for many rows (see feature_rows); what
the question and the time bring is computed here, by the formulas of controlplane.endpoint and prediction.derive. A test holds
both ways to the same numbers.
"""

from __future__ import annotations

from itertools import groupby
from math import log, nan
from operator import attrgetter
from struct import Struct
from typing import NamedTuple

from contract.features import PAIRS_A_TOKEN, SPEED_UNKNOWN
from controlplane.endpoint import Candidate, Standing
from prediction.derive import COLUMNS, FLOOR_S, SPEED_MIN
from prediction.few import Few

FEW_MAX = 32
"""Rows; for more of them numpy is the cheaper way."""

_MOVING = (
    *("input_tokens", "matched_tokens", "uncached_tokens", "prefill_wait_s", "step_age_s", "report_age_s", "max_tokens"),
    *("begins_s", "queue_s", "own_s", "spent_s", "seat_s", "todo_s", "own_pairs", "mean_pairs"),
)
"""Columns written for each candidate, in the order of COLUMNS; queue_s among them, since it lies between others."""
_RUNS = tuple((moves, tuple(names)) for moves, names in groupby(COLUMNS, key=lambda name: name in _MOVING))
_ROW = Struct("=" + "".join(f"{len(names)}d" if moves else f"{8 * len(names)}s" for moves, names in _RUNS))
_STILL = tuple(names for moves, names in _RUNS if not moves)
_FIRST, _SECOND, _THIRD = (Struct(f"={len(names)}d") for names in _STILL[:3])
_FIRST_OF, _SECOND_OF, _THIRD_OF = (attrgetter(*names) for names in _STILL[:3])
_LAST = Struct("=2d")
assert tuple(name for moves, names in _RUNS if moves for name in names) == _MOVING
assert len(_STILL) == 4 and _STILL[3] == ("decoding", "fill"), "as Still and write have them"  # noqa: PT018


class Still(NamedTuple):
    """Of one standing, whatever is asked. Moments in monotonic seconds; first to last: its columns, packed, as they lie between
    the others."""

    first: bytes
    second: bytes
    third: bytes
    last: bytes
    queued_since: float
    moved_at: float
    reported_at: float
    token_s: float  # a token's prefill
    queue_s: float
    prefill_tokens: float
    prefill_pairs: float
    begins_at: float
    rest_s: float
    unknown: bool  # its speed


def still(there: Standing) -> Still:
    speed = there.prefill_tokens_per_s
    known = speed > SPEED_MIN
    token_s = 1.0 / (speed if known else SPEED_UNKNOWN)
    beginning = there.beginning()
    return Still(
        _FIRST.pack(*_FIRST_OF(there)),
        _SECOND.pack(*_SECOND_OF(there)),
        _THIRD.pack(*_THIRD_OF(there)),
        _LAST.pack(there.active - there.no_first_byte, there.context_tokens / max(there.cache_tokens, 1.0)),
        there.queued_since,
        there.moved_at,
        there.reported_at,
        token_s,
        (there.prefill_tokens + there.prefill_pairs / PAIRS_A_TOKEN) * token_s,
        there.prefill_tokens,
        there.prefill_pairs,
        beginning.at,
        beginning.rest_s,
        not known,
    )


def write(few: Few, place: int, candidate: Candidate, there: Still) -> float:
    """Row `place` of few.rows; where the model starts for it, log seconds (derive.log_estimate); nan: nowhere."""
    first, second, third, last, since, moved, reported, token_s, queue_s, prefill, pairs, begins_at, rest_s, _ = there
    tokens, uncached, now, token_at = candidate.input_tokens, candidate.uncached_tokens, candidate.now, candidate.token_at
    waited = now - since
    if waited < 0.0:
        waited = 0.0
    came = now - (moved if moved > token_at else token_at)
    begins = begins_at - now
    begins = begins + rest_s if begins > 0.0 else rest_s
    half = tokens - 0.5 * uncached
    own_pairs = uncached * half if half > 0.0 else 0.0
    own_s = (uncached + own_pairs / PAIRS_A_TOKEN) * token_s
    spent = waited if waited < queue_s else queue_s
    seat = begins - (queue_s - spent)
    todo = begins + own_s
    work = prefill + uncached
    _ROW.pack_into(
        few.rows,
        place * _ROW.size,
        tokens,
        candidate.matched_tokens,
        uncached,
        first,
        waited,
        came if came > 0.0 else 0.0,
        second,
        now - reported,
        candidate.max_tokens,
        third,
        begins,
        queue_s,
        own_s,
        spent,
        seat if seat > 0.0 else 0.0,
        todo,
        own_pairs,
        (pairs + own_pairs) / (work if work > 1.0 else 1.0),
        last,
    )
    return log(todo + FLOOR_S) if todo > -FLOOR_S else nan
