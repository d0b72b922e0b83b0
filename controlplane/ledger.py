"""What the router has dispatched and not yet seen end: its own count, which is never stale.

A reservation is made with the decision and charges its endpoint with one active request, its uncached prompt tokens (until
the first byte) and its whole prompt (until the end). Each reservation has an owner: the data-plane process whose stream
asked, or nobody for the unary call. When a stream breaks, its reservations stay for a grace period: the engine goes on
working for that process, which comes back within it and claims what it still relays (`claim`); what it does not claim, or
what nobody claims in time, is released as lost. Loads are kept by base URL (of an engine's ranks each by its own place, see
ranks), not by endpoint number, so that a control plane that was restarted rebuilds them from claims before it has read who
serves under that URL.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from controlplane.foreign import Foreign
    from controlplane.question import Decided
    from controlplane.queue_plan import Plan

GRACE_S_MAX = 10.0
"""How long the reservations of a broken stream wait for their process to come back."""
UNARY_S_MAX = 600.0
"""A reservation made through the unary call and never reported expires after this."""
STAMP = 1 << 40
"""Between two stamps: more than changes that are counted one by one."""
RESERVATION_S_MAX = 4 * 3600.0
"""Any reservation: above every total timeout, so that a forgotten one cannot weigh for good."""


@dataclass(slots=True, eq=False)
class Load:
    """Of one endpoint, over all data planes."""

    active: int = 0
    no_first_byte: int = 0
    prefill_tokens: int = 0
    prefill_pairs: float = 0.0
    prefill_since: float = (
        0.0  # since when it has been at what it is computing now: the latest first byte, or the first to queue
    )
    queue: dict[int, Reservation] = field(default_factory=dict)  # of those without a first byte, oldest first
    context_tokens: int = 0
    ends: list[float] = field(default_factory=list)  # of answers that have begun: the decode step each is to end at, ascending
    plan: Plan | None = None  # its queue played ahead, where somebody asked since the last first byte or end there
    changes: int = 0  # of anything above, counted
    moved_at: float = 0.0  # when the first of the active ones came, or the last sign of life of any of them
    foreign: Foreign | None = None  # what other control planes have there, beside all of the above
    token_at: float = 0.0  # when tokens were seen to come from there last: with every step, so not counted in `changes`


class Reservation(msgspec.Struct, gc=False, eq=False):
    """What is in flight, as the ledger counts it."""

    decision_id: int
    url: str  # where it is counted: `Endpoint.place`
    owner: str
    question_id: int  # of its owner's stream; below 0 where no question of that stream stands for it
    uncached_tokens: int
    input_tokens: int
    reserved_at: float
    decision: Decided | None  # None where it was rebuilt from a claim
    load: Load  # of its endpoint, which stays while anything is active there
    pairs: float  # attention pairs of its prefill
    first_byte_seen: bool
    ends_at: float  # the decode step its answer is expected to end at; 0: not known
    service_s: float  # of the time to its first byte, what did not pass behind others' first bytes


class Reserved(Reservation, gc=False, eq=False):
    """One made by the ledger. (A usual decision is one itself: explain.Placed.)"""

    first_byte_seen: bool = False
    ends_at: float = 0.0
    service_s: float = 0.0


def attention_pairs(uncached_tokens: int, input_tokens: int) -> float:
    """Pairs of a token to be computed and a token before it: a prompt's cost that grows with its square."""
    return uncached_tokens * (input_tokens - uncached_tokens / 2)


@dataclass(slots=True, eq=False)
class _Owner:
    held: dict[int, Reservation] = field(default_factory=dict)  # by question
    gone_at: float | None = None


@dataclass(frozen=True, slots=True)
class Claim:
    """What a data plane says it is relaying right now."""

    decision_id: int
    url: str
    uncached_tokens: int
    input_tokens: int
    first_byte_seen: bool


class Ledger:
    def __init__(self, *, grace_s_max: float = GRACE_S_MAX, unary_s_max: float = UNARY_S_MAX) -> None:
        self._grace_s_max = grace_s_max
        self._unary_s_max = unary_s_max
        self._loads: dict[str, Load] = {}
        self.reservations: dict[int, Reservation] = {}
        """By decision, oldest first; changed here alone."""
        self._owners: dict[str, _Owner] = {}
        self._stamped = 0

    def __len__(self) -> int:
        return len(self.reservations)

    def __iter__(self) -> Iterator[Reservation]:
        return iter(self.reservations.values())

    def load(self, url: str) -> Load:
        """The living load of an endpoint, made where there is none."""
        load = self._loads.get(url)
        if load is None:
            load = self._loads[url] = Load()
        return load

    @property
    def loads(self) -> Mapping[str, Load]:
        """By place."""
        return self._loads

    def gone(self) -> dict[str, list[Reservation]]:
        """By process, what those hold whose streams broke."""
        return {name: list(owner.held.values()) for name, owner in self._owners.items() if owner.gone_at is not None}

    def let_go(self, owner: str, now: float) -> list[Reservation]:
        """Another control plane counts what this process holds: released here, and returned."""
        state = self._owners.pop(owner, None)
        held = [] if state is None else [one.decision_id for one in state.held.values()]
        return [reservation for decision_id in held if (reservation := self.release(decision_id, now)) is not None]

    def held(self, owner: str) -> dict[int, Reservation]:
        """What this process holds, by question."""
        return self._owner(owner).held

    def hold(self, reservation: Reservation) -> None:
        """It is its owner's, in place of the one that its question was given before, if any."""
        held, question_id = self._owner(reservation.owner).held, reservation.question_id
        if question_id in held:
            _lose_question(held, question_id)
        held[question_id] = reservation

    def stamp(self) -> int:
        """For `changes` of a load, where many changes count as one: no other value of any, before or after."""
        self._stamped += STAMP
        return self._stamped

    def forget(self, url: str) -> None:
        """Drops the load of an endpoint that is no longer known, unless something is still active there."""
        load = self._loads.get(url)
        if load is not None and load.active == 0:
            del self._loads[url]

    def forget_unknown(self, known: Container[str]) -> None:
        """Drops the loads of places that nobody registered, and where nothing is active any more."""
        for url in [url for url, load in self._loads.items() if not load.active and url not in known]:
            del self._loads[url]

    def reserve(
        self,
        decision_id: int,
        url: str,
        *,
        uncached_tokens: int,
        input_tokens: int,
        now: float,
        owner: str = "",
        question_id: int = 0,
        decision: Decided | None = None,
    ) -> Reservation:
        assert decision_id not in self.reservations, f"decision {decision_id} reserved twice"
        reservation = Reserved(
            decision_id,
            url,
            owner,
            question_id,
            uncached_tokens,
            input_tokens,
            now,
            decision,
            self.load(url),
            attention_pairs(uncached_tokens, input_tokens),
        )
        self.add(reservation)
        return reservation

    def add(self, reservation: Reservation) -> None:
        """One just made by somebody who knows its load."""
        decision_id, load = reservation.decision_id, reservation.load
        assert decision_id not in self.reservations, f"decision {decision_id} reserved twice"
        self.reservations[decision_id] = reservation
        if not load.active:
            load.moved_at = reservation.reserved_at
        load.changes += 1
        load.active += 1
        queue = load.queue
        if not queue:
            load.prefill_since = reservation.reserved_at
        queue[decision_id] = reservation
        if load.plan is not None:
            load.plan.add(reservation)
        load.no_first_byte += 1
        load.prefill_tokens += reservation.uncached_tokens
        load.prefill_pairs += reservation.pairs
        load.context_tokens += reservation.input_tokens
        if reservation.owner:
            self.hold(reservation)

    def first_byte(self, decision_id: int, now: float) -> Reservation | None:
        """Refunds the prefill tokens. None: no such reservation, or it was seen before."""
        reservation = self.reservations.get(decision_id)
        if reservation is None or reservation.first_byte_seen:
            return None
        load = reservation.load
        since, reserved_at = load.prefill_since, reservation.reserved_at
        reservation.service_s = now - (since if since > reserved_at else reserved_at)
        reservation.first_byte_seen = True
        _refund_prefill(load, reservation)
        load.moved_at = load.prefill_since = now
        load.changes += 1
        return reservation

    def seated(self, reservation: Reservation, ends_at: float) -> None:
        """Its answer has begun, and is expected to end at that decode step of its endpoint."""
        if reservation.decision_id in self.reservations and not reservation.ends_at:
            reservation.ends_at = ends_at
            insort(reservation.load.ends, ends_at)
            reservation.load.changes += 1

    def release(self, decision_id: int, now: float) -> Reservation | None:
        """Ends a reservation. None: there is none (it was released before, or never made)."""
        reservation = self.reservations.get(decision_id)
        if reservation is not None:
            self.drop(reservation, now)
        return reservation

    def drop(self, reservation: Reservation, now: float) -> None:
        """Ends one of `reservations`."""
        del self.reservations[reservation.decision_id]
        load = reservation.load
        if not reservation.first_byte_seen:
            _refund_prefill(load, reservation)
        load.changes += 1
        load.active -= 1
        load.plan = None
        load.context_tokens -= reservation.input_tokens
        if reservation.ends_at:
            del load.ends[bisect_left(load.ends, reservation.ends_at)]
        load.moved_at = now
        assert load.active >= 0, f"{reservation.url}: {load.active} active after a release"
        owner = self._owners.get(reservation.owner)
        if owner is not None:
            owner.held.pop(reservation.question_id, None)

    def drop_all(self, ended: Sequence[Reservation], now: float) -> None:
        """As `drop` for each, at a fraction of its price."""
        reservations, stamp = self.reservations, self.stamp()
        name, nothing = "", _Owner()
        let_go = nothing.held.pop
        for one in ended:
            decision_id, load = one.decision_id, one.load
            del reservations[decision_id]
            if not one.first_byte_seen:
                load.no_first_byte -= 1
                load.prefill_tokens -= one.uncached_tokens
                load.prefill_pairs -= one.pairs
                del load.queue[decision_id]
            load.active -= 1
            load.context_tokens -= one.input_tokens
            load.moved_at, load.changes, load.plan = now, stamp, None
            if one.ends_at:
                del load.ends[bisect_left(load.ends, one.ends_at)]
            if one.owner is not name:
                name = one.owner
                let_go = self._owners.get(name, nothing).held.pop
            let_go(one.question_id, None)
            assert load.active >= 0, f"{one.url}: {load.active} active after a release"

    def cancel(self, owner: str, question_id: int, now: float) -> Reservation | None:
        """Releases whatever this question of this process was given. None: nothing."""
        state = self._owners.get(owner)
        reservation = state.held.get(question_id) if state is not None and question_id >= 0 else None
        if reservation is not None:
            self.drop(reservation, now)
        return reservation

    def arrived(self, owner: str, claims: Iterable[Claim], now: float) -> list[Reservation]:
        """A process opened its stream and says what it holds: those are kept or made again.

        Returns the reservations it had and does not hold any more, released.
        """
        state = self._owner(owner)
        state.gone_at = None
        for question_id in list(state.held):
            _lose_question(state.held, question_id)  # their numbers start again with the stream
        claimed = {claim.decision_id: claim for claim in claims if claim.decision_id}
        lost = [held.decision_id for held in state.held.values() if held.decision_id not in claimed]
        for claim in claimed.values():
            self._keep(owner, claim, now)
        return [reservation for decision_id in lost if (reservation := self.release(decision_id, now)) is not None]

    def departed(self, owner: str, now: float) -> None:
        """Its stream broke: the grace period begins."""
        state = self._owners.get(owner)
        if state is None:
            return
        if state.held:
            state.gone_at = now
        else:
            del self._owners[owner]

    def expire(self, now: float) -> list[Reservation]:
        """Releases what nobody came back for, and what is older than any request may be."""
        overdue = [
            held.decision_id
            for owner in self._owners.values()
            if owner.gone_at is not None and now - owner.gone_at >= self._grace_s_max
            for held in owner.held.values()
        ]
        for held in self.reservations.values():  # oldest first
            if now - held.reserved_at < min(self._unary_s_max, RESERVATION_S_MAX):
                break
            if now - held.reserved_at >= self._age_max(held):
                overdue.append(held.decision_id)
        released = [reservation for decision_id in overdue if (reservation := self.release(decision_id, now)) is not None]
        for name in [name for name, owner in self._owners.items() if owner.gone_at is not None and not owner.held]:
            del self._owners[name]
        return released

    def _age_max(self, reservation: Reservation) -> float:
        return RESERVATION_S_MAX if reservation.owner else self._unary_s_max

    def _owner(self, name: str) -> _Owner:
        owner = self._owners.get(name)
        if owner is None:
            owner = self._owners[name] = _Owner()
        return owner

    def _keep(self, owner: str, claim: Claim, now: float) -> None:
        known = self.reservations.get(claim.decision_id)
        if known is None and not claim.url:
            return  # ended while its message was on the way: released already, or nowhere to count it
        if known is None:
            self.reserve(
                claim.decision_id,
                claim.url,
                uncached_tokens=claim.uncached_tokens,
                input_tokens=claim.input_tokens,
                now=now,
                owner=owner,
                question_id=-claim.decision_id,
            )
        if claim.first_byte_seen:
            self.first_byte(claim.decision_id, now)


def _refund_prefill(load: Load, reservation: Reservation) -> None:
    """Of one whose first byte was not seen before."""
    load.no_first_byte -= 1
    load.plan = None
    load.prefill_tokens -= reservation.uncached_tokens
    load.prefill_pairs -= reservation.pairs
    del load.queue[reservation.decision_id]
    assert load.prefill_tokens >= 0, f"{reservation.url}: {load.prefill_tokens} prefill tokens after a refund"


def _lose_question(held: dict[int, Reservation], question_id: int) -> None:
    """The question's number is another's from here on."""
    reservation = held.pop(question_id)
    reservation.question_id = -reservation.decision_id
    held[reservation.question_id] = reservation
