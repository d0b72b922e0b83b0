"""The breaker of one data-parallel rank: its own, beside its address's. See ranks and breaker.

Ranks of an engine share a server, and each has a scheduler and a step loop of its own. So an end tells of one of the two:

    CONNECT_FAILED RESET ENGINE_ERROR ENGINE_ABORTED   the address, and with it every rank: a connection, a status and an end
                                                       of the process are the server's. (An engine core that dies takes vLLM's
                                                       server down, so a 500 is no rank's own affair either.)
    TIMED_OUT, a suspicion that it hangs               the rank alone: nothing came of what waits there, whatever the others do.
                                                       Where none of them moves, each is found out by itself, at the same time.
    COMPLETE, a first token                            both work

A request may be sent there when both let it through, and is the probe of whichever is half open. An end that says nothing of
one of them frees its place for another probe there.
"""

from __future__ import annotations

from contract.outcome import End
from controlplane.breaker import Breaker, BreakerState

OF_THE_RANK = frozenset((End.TIMED_OUT,))
"""Failures that say nothing of the other ranks."""
OF_THE_ADDRESS = frozenset((End.CONNECT_FAILED, End.RESET, End.ENGINE_ERROR, End.ENGINE_ABORTED))

_NOTHING = End.CLIENT_GONE  # an end that says nothing of an engine


class RankBreaker:
    """address: shared by all ranks; own: of what is known of this one alone. To be asked as a `Breaker` is."""

    __slots__ = ("address", "own")

    def __init__(self, address: Breaker, own: Breaker) -> None:
        self.address = address
        self.own = own

    @property
    def closed(self) -> bool:
        return self.own.closed and self.address.closed

    @property
    def suspected(self) -> bool:
        return self.own.suspected or self.address.suspected

    @property
    def openings(self) -> int:
        return self.own.openings + self.address.openings

    @property
    def reason(self) -> str:
        """The address's before its own."""
        return self.address.reason or self.own.reason

    def view(self, now: float) -> BreakerState:
        """OPEN where either is, CLOSED where both are."""
        views = self.address.view(now), self.own.view(now)
        if BreakerState.OPEN in views:
            return BreakerState.OPEN
        return max(views)

    def admits(self, now: float) -> bool:
        return self.own.admits(now) and self.address.admits(now)

    def retry_after_s(self, now: float) -> float:
        return max(self.own.retry_after_s(now), self.address.retry_after_s(now))

    def began(self, now: float, decision_id: int) -> None:
        self.address.began(now, decision_id)
        self.own.began(now, decision_id)

    def first_byte(self, now: float, decision_id: int) -> None:
        self.address.first_byte(now, decision_id)
        self.own.first_byte(now, decision_id)

    def ended(self, now: float, decision_id: int, end: int) -> bool:
        """Returns whether either opens by it. decision_id 0: the engine chose the rank, nobody knows which."""
        if not decision_id:
            return self.address.ended(now, decision_id, end)
        opens = self.address.ended(now, decision_id, _NOTHING if end in OF_THE_RANK else end)
        return self.own.ended(now, decision_id, _NOTHING if end in OF_THE_ADDRESS else end) or opens

    def good(self, second: int, count: int = 1) -> None:
        self.address.good(second, count)
        self.own.good(second, count)

    def suspect(self, now: float, reason: str) -> None:
        self.own.suspect(now, reason)

    def reset(self) -> None:
        self.address.reset()
        self.own.reset()


AnyBreaker = Breaker | RankBreaker
