"""The ring of recent decisions: what they were made from, so that each can be explained while it is remembered.

What is remembered of a usual decision is the pieces that it was made of, which are there anyway; rows are made of them for
whoever asks.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import ClassVar

import msgspec

from controlplane.endpoint import Candidate, Endpoint, Standing
from controlplane.ledger import Reservation
from controlplane.profiles import Profile
from controlplane.question import Decided, Ended, Request, Shed, in_words
from controlplane.ranking import Brief, Ranking
from controlplane.row import Row

DECISIONS_MAX = 8_192
ROWS_MAX = 131_072
"""Candidate rows over all remembered decisions: about 30 MB, whatever the size of the fleet."""

Absent = tuple[tuple[Endpoint, str], ...]
"""Endpoints of a model that were no candidates at all, each with why."""


class Trace(msgspec.Struct, gc=False):
    """One decision with what it saw."""

    decision_id: int
    decided_at: float  # Unix time
    profile: Profile
    request: Request
    rows: tuple[Candidate, ...]
    absent: Absent
    result: Decided | Shed
    ranking: Ranking | None = None

    @property
    def candidates(self) -> tuple[Candidate, ...]:
        return self.rows

    @property
    def ended(self) -> Ended | None:
        """How its request ended, where that is known."""
        return None if isinstance(self.result, Shed) else self.result.ended


class Moment(msgspec.Struct, gc=False, eq=False):
    """What usual decisions of one message and one model have in common: the endpoints as they were before the first of them."""

    now: float
    decided_at: float  # the same as Unix time
    profile: Profile
    standings: tuple[Standing, ...]
    token_ats: tuple[float, ...]  # see Candidate
    block_size: int
    absent: Absent
    brief: Brief | None = None  # what judged them, where the policy predicts
    reason: str = ""  # why a policy that predicts judged none of them


class Placed(Reservation, gc=False, eq=False):
    """A usual decision, and its reservation. Of what a `Decision` says it holds no more than does not follow from its `moment`
    and from the decisions of that moment `before` it: who asks gets rows made of these, the same that a `Decision` has."""

    request: Request
    matches: dict[int, int]  # slot -> blocks, as the index found them
    last_block: int
    tokens_ahead: int
    row: Row
    moment: Moment
    before: Placed | None
    ended: Ended | None = None

    claimed_tokens: ClassVar[int] = 0
    predicted_ttft_s: ClassVar[float] = 0.0
    predicted_p90_s: ClassVar[float] = 0.0
    model_id: ClassVar[str] = ""

    @property  # type: ignore[misc]  # the field of the ledger's own stays empty: it is one itself
    def decision(self) -> Decided:  # type: ignore[override]
        return self

    @property
    def at(self) -> int:
        """Its endpoint's place among those of the moment."""
        return self.row.at

    @property
    def decided_at(self) -> float:
        return self.moment.decided_at

    @property
    def standings(self) -> tuple[Standing, ...]:
        return self.moment.standings

    @property
    def policy(self) -> str:
        return self.moment.profile.name

    @property
    def candidates(self) -> int:
        return len(self.moment.standings)

    @property
    def checkable(self) -> bool:
        return self.request.exact_tokens

    @property
    def expected_tokens(self) -> int:
        return self.input_tokens - self.uncached_tokens

    @property
    def seat_awaited(self) -> bool:
        """A moment ends where the last seat is taken."""
        there = self.moment.standings[self.at]
        return 0 < there.seats <= there.active

    @property
    def candidate(self) -> Candidate:
        return self._row(self.row.at)

    @property
    def fell_back(self) -> str:
        return self.moment.reason

    def ranking(self, rows: tuple[Candidate, ...]) -> Ranking | None:
        """Of its rows as they were; None: its policy does not predict."""
        return Ranking(reason=self.moment.reason) if self.moment.reason else None

    @property
    def reason(self) -> str:
        return in_words(self)

    def trace(self) -> Trace:
        moment = self.moment
        rows = tuple([self._row(at) for at in range(len(moment.standings))])
        return Trace(
            self.decision_id, moment.decided_at, moment.profile, self.request, rows, moment.absent, self, self.ranking(rows)
        )

    def _row(self, at: int) -> Candidate:
        """Of the endpoint at this place, as it was before this decision."""
        moment, tokens = self.moment, self.input_tokens
        there = moment.standings[at]
        count = uncached = context = 0
        pairs = 0.0
        one, first = self.before, None
        while one is not None:
            if one.row.at == at:
                count += 1
                uncached += one.uncached_tokens
                pairs += one.pairs
                context += one.input_tokens
                first = one
            one = one.before
        if first is not None:
            there = there.plus(count, uncached, pairs, context, first)
        matched = self.matches.get(there.slot, 0)
        if matched:
            whole = (tokens - 1) // moment.block_size
            matched = (matched if matched < whole else whole) * moment.block_size
        token_at = moment.token_ats[at]
        return Candidate(there, tokens, matched, tokens - matched, self.request.max_tokens, moment.now, True, token_at)


class Foretold(Placed, gc=False, eq=False):
    """One whose candidates were judged by the brief of its moment."""

    judged: Sequence[float] = ()
    told: tuple[float, float] | None = None  # median and p90, s, once somebody asked

    @property
    def _brief(self) -> Brief:
        brief = self.moment.brief
        assert brief is not None, f"decision {self.decision_id} was judged by nobody"
        return brief

    @property
    def _predicted(self) -> tuple[float, float]:
        if self.told is None:
            self.told = self._brief.predicted(self.judged, self.at, lambda: self.candidate)
        return self.told

    @property
    def fell_back(self) -> str:
        return self._brief.reason(self.judged)

    @property
    def predicted_ttft_s(self) -> float:  # type: ignore[override]
        return self._predicted[0]

    @property
    def predicted_p90_s(self) -> float:  # type: ignore[override]
        return self._predicted[1]

    @property
    def model_id(self) -> str:  # type: ignore[override]
        return self._brief.model_id if self.predicted_ttft_s else ""

    def ranking(self, rows: tuple[Candidate, ...]) -> Ranking | None:
        return self._brief.ranking(self.judged, rows)


class DecisionRing:
    def __init__(self, *, decisions_max: int = DECISIONS_MAX, rows_max: int = ROWS_MAX) -> None:
        self._entries: deque[Trace | Placed] = deque(maxlen=decisions_max)
        self._rows_max = rows_max
        self._rows_few = rows_max // decisions_max
        """Of a decision: rows that need not be counted, however many such decisions are remembered."""
        self._rows = -1  # remembered, from the first decision on that has more

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, entry: Trace | Placed) -> None:
        """Of a number above all before it."""
        rows = _rows(entry)
        if self._rows >= 0 or rows > self._rows_few:
            self._make_room(rows)
        self._entries.append(entry)

    def adder(self, rows: int) -> Callable[[Trace | Placed], None]:
        """`add` of entries that have so many rows each, until one is added otherwise."""
        return self.add if self._rows >= 0 or rows > self._rows_few else self._entries.append

    def _make_room(self, rows: int) -> None:
        entries = self._entries
        if self._rows < 0:
            self._rows = sum(_rows(entry) for entry in entries)
        self._rows += rows
        while entries and (len(entries) == entries.maxlen or self._rows > self._rows_max):
            self._rows -= _rows(entries.popleft())

    def get(self, decision_id: int) -> Trace | None:
        """decision_id 0: the latest. None: never made, or forgotten since."""
        entries = self._entries
        at = bisect_left(entries, decision_id, key=attrgetter("decision_id")) if decision_id else len(entries) - 1
        if not 0 <= at < len(entries) or decision_id not in (0, entries[at].decision_id):
            return None
        entry = entries[at]
        return entry.trace() if isinstance(entry, Placed) else entry


def _rows(entry: Trace | Placed) -> int:
    return entry.candidates if isinstance(entry, Placed) else len(entry.rows)
