"""The ring of recent decisions: what they were made from, so that each can be explained while it is remembered.

What is remembered of a usual decision is the pieces that it was made of, which are there anyway; rows are made of them for
whoever asks.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from operator import attrgetter

import msgspec

from controlplane.endpoint import Candidate, Endpoint, Standing
from controlplane.profiles import Profile
from controlplane.question import Decision, Ended, Request, Shed
from controlplane.rankers import Ranking

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
    result: Decision | Shed
    ranking: Ranking | None = None

    @property
    def candidates(self) -> tuple[Candidate, ...]:
        return self.rows

    @property
    def ended(self) -> Ended | None:
        """How its request ended, where that is known."""
        return None if isinstance(self.result, Shed) else self.result.ended


class Placed(Decision, gc=False, kw_only=True):
    """A usual decision with what it was made of: standings of all candidates, and the tokens that matched by slot."""

    profile: Profile
    rows: tuple[Standing, ...]
    token_ats: tuple[float, ...]
    matched: dict[int, int]
    absent: Absent

    def trace(self) -> Trace:
        row, tokens = self.candidate, self.request.input_tokens
        rows = []
        for standing, token_at in zip(self.rows, self.token_ats, strict=True):
            there = self.matched.get(standing.slot, 0)
            rows.append(Candidate(standing, tokens, there, tokens - there, row.max_tokens, row.now, True, token_at))
        return Trace(self.decision_id, self.decided_at, self.profile, self.request, tuple(rows), self.absent, self)


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
        if self._rows >= 0 or len(entry.rows) > self._rows_few:
            self._make_room(len(entry.rows))
        self._entries.append(entry)

    def _make_room(self, rows: int) -> None:
        entries = self._entries
        if self._rows < 0:
            self._rows = sum(len(entry.rows) for entry in entries)
        self._rows += rows
        while entries and (len(entries) == entries.maxlen or self._rows > self._rows_max):
            self._rows -= len(entries.popleft().rows)

    def get(self, decision_id: int) -> Trace | None:
        """decision_id 0: the latest. None: never made, or forgotten since."""
        entries = self._entries
        at = bisect_left(entries, decision_id, key=attrgetter("decision_id")) if decision_id else len(entries) - 1
        if not 0 <= at < len(entries) or decision_id not in (0, entries[at].decision_id):
            return None
        entry = entries[at]
        return entry.trace() if isinstance(entry, Placed) else entry
