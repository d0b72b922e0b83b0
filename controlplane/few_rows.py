"""Rows of a few candidates for a model that answers for few (prediction.few), in plain Python: features and derived columns
in one go, into the model's own memory.

What a row takes from its endpoint alone is packed once a standing (`Still`), as it is for many rows (see feature_rows); what
the question and the time bring is computed here, by the formulas of controlplane.endpoint and prediction.derive. A test holds
both ways to the same numbers.
"""

from __future__ import annotations

from itertools import groupby
from math import inf, log, nan
from operator import attrgetter
from struct import Struct
from typing import NamedTuple

from contract.features import FEATURES, INDEX, PAIRS_A_TOKEN, SPEED_UNKNOWN, prefill_work
from controlplane.endpoint import Candidate, Standing
from controlplane.ledger import attention_pairs
from prediction.derive import COLUMNS, EXTRA, FLOOR_S, SPEED_MIN
from prediction.few import Few, Single

ROW_BYTES = 8 * len(COLUMNS)
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


def write(few: Few | Single, place: int, candidate: Candidate, there: Still) -> float:
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


_WHOLE = Struct(f"={len(FEATURES)}d")
_PROMPT = Struct("=3d")
_ONE = Struct("=d")
_STANDS = Struct("=8d")
_EXTRA = Struct(f"={len(EXTRA)}d")
_STANDS_AT, _MAX_AT, _BEGINS_AT = 8 * INDEX["active"], 8 * INDEX["max_tokens"], 8 * INDEX["begins_s"]
_EXTRA_AT = 8 * len(FEATURES)
assert FEATURES[:11] == (
    *("input_tokens", "matched_tokens", "uncached_tokens"),
    *(
        "active",
        "no_first_byte",
        "prefill_tokens",
        "prefill_pairs",
        "prefill_wait_s",
        "step_age_s",
        "head_tokens",
        "context_tokens",
    ),
), "as Spot writes them"
assert (*("queue_s", "own_s", "spent_s", "seat_s", "todo_s", "own_pairs", "mean_pairs", "decoding", "fill"),) == EXTRA, (
    "as Spot writes them"
)


class Spot:
    """One endpoint's row in a model's memory, through one moment: written whole when that begins; then what a prompt brings,
    and what it changes where it is placed. All that depends on time alone stands still meanwhile."""

    __slots__ = (
        *("_active", "_at", "_begins_at", "_cache_tokens", "_came_s", "_context_tokens", "_decoding", "_fill"),
        *("_head_tokens", "_head_work", "_max_tokens", "_no_first_byte", "_now", "_pairs", "_prefill_tokens", "_queue_s"),
        *("_queued", "_rows", "_seat_s", "_speed", "_spent_s", "_token_s", "_waited_s", "begins_s", "unknown"),
    )

    def __init__(self, rows: bytearray, place: int, there: Standing, now: float, token_at: float) -> None:
        """rows: of the model; place: of this endpoint among them; token_at: see Candidate."""
        self._rows, self._now = rows, now
        at = self._at = place * ROW_BYTES
        speed, active, waiting = there.prefill_tokens_per_s, there.active, there.no_first_byte
        context, cache, moved_at, since = there.context_tokens, there.cache_tokens, there.moved_at, there.queued_since
        self._prefill_tokens, self._pairs = prefill, pairs = there.prefill_tokens, there.prefill_pairs
        self._active, self._no_first_byte, self._context_tokens = active, waiting, context
        self.unknown = speed <= SPEED_MIN
        self._token_s = 1.0 / (SPEED_UNKNOWN if self.unknown else speed)
        self._speed = speed or SPEED_UNKNOWN
        head = self._head_tokens = there.head_tokens
        self._cache_tokens = cache if cache > 1.0 else 1.0
        self._fill = context / self._cache_tokens
        self._decoding = active - waiting
        self._queued = since < inf
        waited = now - since
        came = now - (moved_at if moved_at > token_at else token_at)
        self._waited_s = waited = waited if waited > 0.0 else 0.0
        self._came_s = came = came if came > 0.0 else 0.0
        self._begins_at, rest_s = there.beginning()
        ahead_s = self._begins_at - now
        begins = self.begins_s = (ahead_s if ahead_s > 0.0 else 0.0) + rest_s
        self._head_work = head + attention_pairs(head, there.head_input_tokens) / PAIRS_A_TOKEN if head else 0.0
        self._max_tokens = 0
        _WHOLE.pack_into(
            rows,
            at,
            0,
            0,
            0,
            active,
            waiting,
            prefill,
            pairs,
            waited,
            came,
            head,
            context,
            there.running,
            there.waiting,
            there.kv_usage,
            now - there.reported_at,
            0,
            speed,
            there.decode_itl_s,
            there.ttft_ewma_s,
            cache,
            there.seats,
            there.hold_s,
            there.step_s,
            begins,
        )
        self._queues()

    def _queues(self) -> None:
        self._queue_s = queue_s = (self._prefill_tokens + self._pairs / PAIRS_A_TOKEN) * self._token_s
        self._spent_s = spent_s = self._waited_s if self._waited_s < queue_s else queue_s
        seat_s = self.begins_s - (queue_s - spent_s)
        self._seat_s = seat_s if seat_s > 0.0 else 0.0

    def asked(self, tokens: int, matched_tokens: int, max_tokens: int) -> float:
        """Writes what a prompt brings. Where the model starts, as `write`."""
        rows, at = self._rows, self._at
        uncached = tokens - matched_tokens
        own_pairs = uncached * (tokens - 0.5 * uncached)
        own_s = (uncached + own_pairs / PAIRS_A_TOKEN) * self._token_s
        todo_s = self.begins_s + own_s
        work = self._prefill_tokens + uncached
        _PROMPT.pack_into(rows, at, tokens, matched_tokens, uncached)
        if max_tokens != self._max_tokens:
            self._max_tokens = max_tokens
            _ONE.pack_into(rows, at + _MAX_AT, max_tokens)
        _EXTRA.pack_into(
            rows,
            at + _EXTRA_AT,
            self._queue_s,
            own_s,
            self._spent_s,
            self._seat_s,
            todo_s,
            own_pairs,
            (self._pairs + own_pairs) / (work if work > 1.0 else 1.0),
            self._decoding,
            self._fill,
        )
        return log(todo_s + FLOOR_S) if todo_s > -FLOOR_S else nan

    def placed(self, tokens: int, uncached_tokens: int) -> None:
        """A prompt is queued there, where it has a seat."""
        pairs = attention_pairs(uncached_tokens, tokens)
        self._active += 1
        self._no_first_byte += 1
        self._prefill_tokens += uncached_tokens
        self._pairs += pairs
        self._context_tokens += tokens
        self._fill = self._context_tokens / self._cache_tokens
        if not self._queued:
            self._queued = True
            self._head_tokens, self._head_work = uncached_tokens, prefill_work(uncached_tokens, pairs)
            self._begins_at = self._now + self._head_work / self._speed
        ahead_s = self._begins_at - self._now
        rest_s = (prefill_work(self._prefill_tokens, self._pairs) - self._head_work) / self._speed
        self.begins_s = (ahead_s if ahead_s > 0.0 else 0.0) + rest_s
        rows, at = self._rows, self._at
        _STANDS.pack_into(
            rows,
            at + _STANDS_AT,
            self._active,
            self._no_first_byte,
            self._prefill_tokens,
            self._pairs,
            self._waited_s,
            self._came_s,
            self._head_tokens,
            self._context_tokens,
        )
        _ONE.pack_into(rows, at + _BEGINS_AT, self.begins_s)
        self._queues()
