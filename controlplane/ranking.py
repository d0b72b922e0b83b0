"""What a ranker says of a decision's candidates, and how decisions are counted by it. And the short way to say it (`Brief`),
for the questions of one moment, from rows instead of candidates: see `usual`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec

from controlplane.choosers import Chooser
from controlplane.endpoint import Candidate
from controlplane.picker import Turn
from controlplane.predictor import Forecast
from controlplane.row import Row

TIED = 0.02
"""Predictions this much above the least are as good as it: the profile's scorers choose among them."""

NO_MODEL = "no model"
WIDE = "wide prediction"
UNSTEADY = "unsteady worker"
OUTSIDE = "outside the middle zone"
UNLEARNED = "too little learned"


class Ranking(msgspec.Struct, frozen=True, gc=False):
    """Of the candidates in their order. costs: least is best; none: the profile's scorers decide. reason: a few words."""

    costs: Sequence[float] = ()
    forecast: Forecast | None = None
    reason: str = ""


class Tally(msgspec.Struct, gc=False):
    """Decisions since the start, and how many of them a ranker left to the scorers, by reason."""

    ranked: int = 0
    fell_back: dict[str, int] = {}

    def count(self, ranking: Ranking) -> None:
        if ranking.costs:
            self.ranked += 1
        else:
            self.leave(ranking.reason)

    def leave(self, reason: str, count: int = 1) -> None:
        """So many decisions to the scorers."""
        self.fell_back[reason] = self.fell_back.get(reason, 0) + count


class Brief(Protocol):
    """A ranker for the questions of one moment, over rows that change by what it chooses alone. It counts what it decides."""

    @property
    def model_id(self) -> str:
        """Of the model that predicts."""

    def choose(
        self, matched: Sequence[Row], tokens: int, max_tokens: int, model: str, turn: Turn
    ) -> tuple[Row, Sequence[float]]:
        """As a Chooser: the chosen one, whose reservation follows at once; and what it judged by, in numbers of its own."""

    def reason(self, judged: Sequence[float]) -> str:
        """Of those numbers: why they did not decide; empty where they did."""

    def predicted(self, judged: Sequence[float], at: int, candidate: Callable[[], Candidate]) -> tuple[float, float]:
        """Of those numbers: median and p90 of the chosen one, which has this place among the rows, seconds; 0 where nothing was
        predicted. candidate: makes its row as it was."""

    def ranking(self, judged: Sequence[float], candidates: Sequence[Candidate]) -> Ranking:
        """All of it again, for whoever asks later. candidates: the rows as they were."""


class Briefing(Protocol):
    """A ranker that may have a short way. tally: what its briefs count, too."""

    tally: Tally

    def takes(self, endpoints: int, questions: int) -> bool:
        """Whether it has a short way, as it is now, that is the shorter one among so many endpoints, for so many questions."""

    def brief(self, rows: Sequence[Row], choose: Chooser, now: float) -> Brief | str | None:
        """For one moment; rows: all that serve, never none; choose: the scorers' choice. A reason: all decisions of this moment
        are left to them. None: not these rows."""


def among(
    rows: Sequence[Row],
    costs: Sequence[float],
    bound: float,
    choose: Chooser,
    matched: Sequence[Row],
    tokens: int,
    model: str,
    turn: Turn,
) -> Row:
    """What the scorers say of those that cost no more than the bound; never none. costs: by place among the rows."""
    tied = []
    for row in rows:
        if costs[row.at] <= bound:
            tied.append(row)  # noqa: PERF401  # a comprehension costs more than four endpoints
    if len(tied) == 1:
        return tied[0]
    return choose(tied, [row for row in tied if row.matched_tokens] if matched else matched, tokens, model, turn)
