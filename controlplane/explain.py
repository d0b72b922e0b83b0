"""The ring of recent decisions: the rows they were made from, so that each can be explained while it is remembered."""

from __future__ import annotations

from collections import deque

import msgspec

from controlplane.endpoint import Candidate, Endpoint
from controlplane.profiles import Profile
from controlplane.question import Decision, Ended, Request, Shed
from controlplane.rankers import Ranking

DECISIONS_MAX = 8_192
ROWS_MAX = 131_072
"""Candidate rows over all remembered decisions: about 30 MB, whatever the size of the fleet."""


class Trace(msgspec.Struct, gc=False):
    """One decision with what it saw. `absent`: endpoints of the model that were not candidates at all."""

    decision_id: int
    decided_at: float  # Unix time
    profile: Profile
    request: Request
    candidates: tuple[Candidate, ...]
    absent: tuple[tuple[Endpoint, str], ...]
    result: Decision | Shed
    ended: Ended | None = None
    ranking: Ranking | None = None


class DecisionRing:
    def __init__(self, *, decisions_max: int = DECISIONS_MAX, rows_max: int = ROWS_MAX) -> None:
        self._decisions_max = decisions_max
        self._rows_max = rows_max
        self._rows = 0
        self._traces: dict[int, Trace] = {}
        self._order: deque[int] = deque()

    def __len__(self) -> int:
        return len(self._traces)

    def add(self, trace: Trace) -> None:
        self._traces[trace.decision_id] = trace
        self._order.append(trace.decision_id)
        self._rows += len(trace.candidates)
        while len(self._order) > self._decisions_max or (self._rows > self._rows_max and len(self._order) > 1):
            oldest = self._traces.pop(self._order.popleft())
            self._rows -= len(oldest.candidates)

    def get(self, decision_id: int) -> Trace | None:
        """decision_id 0: the latest. None: never made, or forgotten since."""
        if decision_id == 0 and self._order:
            decision_id = self._order[-1]
        return self._traces.get(decision_id)

    def ended(self, ended: Ended) -> None:
        """Remembers how a decision's request ended, where the decision itself is still remembered."""
        trace = self._traces.get(ended.decision_id)
        if trace is not None and trace.ended is None:
            trace.ended = ended
