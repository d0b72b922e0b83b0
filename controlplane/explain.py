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
    candidates: tuple[Candidate, ...]
    absent: Absent
    result: Decision | Shed
    ranking: Ranking | None = None

    @property
    def rows(self) -> tuple[Candidate, ...]:
        return self.candidates

    @property
    def ended(self) -> Ended | None:
        """How its request ended, where that is known."""
        return None if isinstance(self.result, Shed) else self.result.ended


class Placed(Decision, gc=False, kw_only=True):
    """A usual decision with what it was made of: standings of all candidates and, by position, what matched there."""

    profile: Profile
    rows: tuple[Standing, ...]
    matched: dict[int, int]
    absent: Absent

    def trace(self) -> Trace:
        row, tokens = self.candidate, self.request.input_tokens
        rows = []
        for at, standing in enumerate(self.rows):
            if standing is row.standing:
                rows.append(row)
                continue
            there = self.matched.get(at, 0)
            rows.append(Candidate(standing, tokens, there, tokens - there, row.max_tokens, row.now, True))
        return Trace(self.decision_id, self.decided_at, self.profile, self.request, tuple(rows), self.absent, self)


class DecisionRing:
    def __init__(self, *, decisions_max: int = DECISIONS_MAX, rows_max: int = ROWS_MAX) -> None:
        self._decisions_max = decisions_max
        self._rows_max = rows_max
        self._rows = 0
        self._entries: deque[Trace | Placed] = deque()

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, entry: Trace | Placed) -> None:
        """Of a number above all before it."""
        entries = self._entries
        entries.append(entry)
        self._rows += len(entry.rows)
        while len(entries) > self._decisions_max or (self._rows > self._rows_max and len(entries) > 1):
            self._rows -= len(entries.popleft().rows)

    def get(self, decision_id: int) -> Trace | None:
        """decision_id 0: the latest. None: never made, or forgotten since."""
        entries = self._entries
        at = bisect_left(entries, decision_id, key=attrgetter("decision_id")) if decision_id else len(entries) - 1
        if not 0 <= at < len(entries) or decision_id not in (0, entries[at].decision_id):
            return None
        entry = entries[at]
        return entry.trace() if isinstance(entry, Placed) else entry
