"""Filters: which candidates are out of the question, and what a caller is told when nobody is left."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from contract.routing import numbered
from controlplane.endpoint import Candidate
from controlplane.question import Request, ShedReason

ACTIVE_MAX = 100
"""The guard. Above it the queue stands in front of the engine, where only the router's own count sees it."""


@dataclass(frozen=True, slots=True)
class Filter:
    """keeps: whether a candidate stays; sift: those of many that stay, in one go; emptied: why the question is shed where
    this filter leaves nobody."""

    name: str
    keeps: Callable[[Candidate, Request], bool]
    sift: Callable[[Sequence[Candidate], Request], Sequence[Candidate]]
    emptied: ShedReason


def _not_tried(candidate: Candidate, request: Request) -> bool:
    endpoint = candidate.endpoint
    return endpoint.number not in request.exclude and (
        endpoint.rank < 0 or numbered(endpoint.number, endpoint.rank) not in request.exclude
    )


def _sift_tried(candidates: Sequence[Candidate], request: Request) -> Sequence[Candidate]:
    if not request.exclude:
        return candidates
    return [candidate for candidate in candidates if _not_tried(candidate, request)]


def _admits(candidate: Candidate, request: Request) -> bool:
    return candidate.admits


def _sift_admitting(candidates: Sequence[Candidate], request: Request) -> Sequence[Candidate]:
    for candidate in candidates:
        if not candidate.admits:
            return [candidate for candidate in candidates if candidate.admits]
    return candidates  # nearly always, and then there is no list to make


NOT_TRIED = Filter("tried", _not_tried, _sift_tried, ShedReason.EXCLUDED)
BREAKER = Filter("breaker", _admits, _sift_admitting, ShedReason.ALL_BREAKERS_OPEN)


def below_guard(active_max: int) -> Filter:
    """An endpoint with more than `active_max` active requests gets no more until its backlog clears."""

    def keeps(candidate: Candidate, request: Request) -> bool:
        return candidate.active <= active_max

    def sift(candidates: Sequence[Candidate], request: Request) -> Sequence[Candidate]:
        for candidate in candidates:
            if candidate.standing.active > active_max:
                return [candidate for candidate in candidates if candidate.active <= active_max]
        return candidates

    return Filter("guard", keeps, sift, ShedReason.ALL_SATURATED)
