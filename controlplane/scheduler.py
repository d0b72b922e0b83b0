"""Filters, then the ranker or the scorers, then the picker: one profile applied to the candidates of one question."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from controlplane.endpoint import Candidate
from controlplane.filters import Filter
from controlplane.picker import Turn, lowest
from controlplane.profiles import Profile
from controlplane.question import Request
from controlplane.ranking import TIED, Ranking


class Choice(msgspec.Struct, frozen=True, gc=False):
    """The chosen candidate, and how many were left to choose from. position: among those."""

    candidate: Candidate
    kept: int
    position: int = 0
    ranking: Ranking | None = None


def schedule(profile: Profile, candidates: Sequence[Candidate], request: Request, turn: Turn) -> Choice | Filter:
    """Chooses one of `candidates` (never empty). Returns the filter that left nobody where one did."""
    kept = candidates
    for check in profile.filters:
        kept = check.sift(kept, request)
        if not kept:
            return check
    if profile.ranker is not None:
        return _ranked(profile, profile.ranker.rank(kept), kept, request, turn)
    if len(kept) == 1 and profile.scorers:
        return Choice(kept[0], 1)
    if profile.costs is not None:
        return Choice(kept[lowest(kept, profile.costs(kept), turn)], len(kept))
    scores = totals(profile, kept) if profile.scorers else ()
    return Choice(kept[profile.pick(kept, scores, request.model, turn)], len(kept))


def _ranked(profile: Profile, ranking: Ranking, kept: Sequence[Candidate], request: Request, turn: Turn) -> Choice:
    """The least cost; among those as good, or where the ranker did not judge, what the scorers say."""
    count = len(kept)
    positions: Sequence[int] = range(count)
    if ranking.costs:
        bound = min(ranking.costs) * (1.0 + TIED)
        positions = [position for position, cost in enumerate(ranking.costs) if cost <= bound]
    at = positions[0]
    if len(positions) > 1:
        tied = kept if len(positions) == count else [kept[position] for position in positions]
        at = positions[profile.pick(tied, totals(profile, tied), request.model, turn)]
    return Choice(kept[at], count, at, ranking)


def totals(profile: Profile, candidates: Sequence[Candidate]) -> Sequence[float]:
    """The weighted mean of the profile's scorers for each candidate."""
    weighted = profile.scorers
    if len(weighted) == 1:
        return weighted[0].score(candidates)
    sums = [0.0] * len(candidates)
    if not weighted:
        return sums
    whole = sum(entry.weight for entry in weighted)
    for entry in weighted:
        share = entry.weight / whole
        sums = [total + share * score for total, score in zip(sums, entry.score(candidates), strict=True)]
    return sums


class Verdict(msgspec.Struct, frozen=True):
    """What the profile thought of one candidate. rejected_by: a filter's name, or empty and it was scored."""

    candidate: Candidate
    rejected_by: str = ""
    scores: dict[str, float] = {}
    total: float = 0.0
    predicted_p50_s: float = 0.0  # 0: nothing was predicted
    predicted_p90_s: float = 0.0
    correction: float = 1.0  # of the worker, included in both


def explain(
    profile: Profile, candidates: Sequence[Candidate], request: Request, ranking: Ranking | None = None
) -> list[Verdict]:
    """The same filters and scorers again over the same rows: why the choice fell as it did. ranking: as it was then."""
    rejected = {candidate.slot: _rejected_by(profile, candidate, request) for candidate in candidates}
    kept = [candidate for candidate in candidates if not rejected[candidate.slot]]
    scores = {entry.name: entry.score(kept) for entry in profile.scorers} if kept else {}
    sums = totals(profile, kept) if kept else []
    verdicts = [Verdict(candidate, rejected[candidate.slot]) for candidate in candidates if rejected[candidate.slot]]
    for position, candidate in enumerate(kept):
        own = {name: values[position] for name, values in scores.items()}
        verdicts.append(Verdict(candidate, "", own, sums[position], *_predicted(ranking, position)))
    return sorted(verdicts, key=lambda verdict: verdict.candidate.slot)


def _predicted(ranking: Ranking | None, position: int) -> tuple[float, float, float]:
    forecast = None if ranking is None else ranking.forecast
    if forecast is None:
        return 0.0, 0.0, 1.0
    return forecast.p50_s[position], forecast.p90_s[position], forecast.factors[position]


def _rejected_by(profile: Profile, candidate: Candidate, request: Request) -> str:
    return next((check.name for check in profile.filters if not check.keeps(candidate, request)), "")
