"""The gray failure: an engine, or one data-parallel rank of it, of which everything says healthy, and nothing moves."""

from __future__ import annotations

from controlplane.endpoint import Endpoint

HUNG_AFTER_S = 20.0
"""Active requests there, reports that say READY, and neither a token nor an end for this long: a hung engine."""

REPORT_FRESH_S = 2.0
"""Older reports (an agent or a Redis that stands still) say nothing about the engine's progress."""


def suspect_hung(endpoint: Endpoint, now: float, hung_after_s: float) -> bool:
    """Opens the breaker of an engine that has not moved for so long; of a rank its own. Returns whether it did."""
    still_s = stalled_s(endpoint, now)
    heard = now - endpoint.reported_at < REPORT_FRESH_S
    hung = still_s >= hung_after_s and heard and endpoint.serving and endpoint.breaker.admits(now)
    if hung:
        endpoint.breaker.suspect(now, f"engine hung: {endpoint.load.active} requests there, no progress for {still_s:.0f} s")
    return hung


def stalled_s(endpoint: Endpoint, now: float) -> float:
    """How long requests have been there without any sign of progress, the engine's or ours; 0 where none is there."""
    if not endpoint.load.active or _elsewhere(endpoint):
        return 0.0
    return now - max(endpoint.load.moved_at, endpoint.progressed_at)


def _elsewhere(endpoint: Endpoint) -> bool:
    """Whether what is counted at this rank runs at others: the engine balances what cannot name one (`/v1/responses`).

    The rank says that nothing is there, and all ranks together that everything is. One that hung before anything came says so,
    too, but what was sent to it since is missing from the sum.
    """
    if not endpoint.ranks or endpoint.running or endpoint.waiting:
        return False
    seen = sum([one.running + one.waiting for one in endpoint.ranks])
    return seen >= sum([one.load.active for one in endpoint.ranks])
