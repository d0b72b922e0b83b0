"""This control plane among others of its fleet: what it tells them, and what becomes of what they tell. Pure.

    say     what is in flight here, at most every SAY_S and only where it has changed; all of it every WHOLE_S
    hear    their loads beside ours (see foreign) · data planes that went there are let go here · guesses · breakers, doubts,
            orders of operators, speeds
    tick    whoever is silent is forgotten, and what operators have set is held to

Nothing is counted twice for long. A data plane that goes from one control plane to another claims there what it relays. Here
its requests are no more told of from the moment its stream breaks, and are released when the other says that it is there. If
the other is gone, its requests are ignored as soon as all its data planes are here, and forgotten after PEER_S_MAX in any case.

Without another control plane there is one message every ALONE_S, and nothing hangs at any load.
"""

from __future__ import annotations

import logging
from array import array
from collections.abc import Callable, Collection, Iterable
from typing import NamedTuple

from contract.replicas import ALONE_S, GUESSES_BLOCKS_MAX, PEER_S_MAX, SAY_S, WHOLE_S, InFlight, Message, Opened
from controlplane.breaker import Breaker
from controlplane.director import Director, UnknownPolicyError
from controlplane.endpoint import Endpoint
from controlplane.foreign import Foreign, Part
from controlplane.ledger import Ledger, Load, Reservation
from controlplane.orders import Orders
from controlplane.prefix_index import PrefixIndex
from controlplane.rank_breaker import RankBreaker
from controlplane.self_check import SelfCheck
from controlplane.snapshot import FleetSnapshot

log = logging.getLogger(__name__)

RATES_S = 1.0
"""What was learned of speeds is told this often."""
SLACK_S = 0.002
"""Whoever is asked every SAY_S is asked a little early now and then."""

Counts = tuple[int, int, int, float, int]
NOTHING: Counts = (0, 0, 0, 0.0, 0)


class Status(NamedTuple):
    """For operators, of another control plane. age_s: since its last word."""

    name: str
    data_planes: int
    active: int
    age_s: float


class _Peer:
    """Another control plane, as heard."""

    __slots__ = ("doubted", "heard_at", "name", "opened", "openings", "owners", "parts", "sequence")

    def __init__(self, name: str) -> None:
        self.name = name
        self.sequence = -1
        self.heard_at = 0.0
        self.owners: tuple[str, ...] = ()
        self.parts: dict[str, Part] = {}
        self.openings: dict[str, int] = {}  # of its breakers, the latest that was taken over
        self.opened: set[str] = set()  # its breakers that are open, by its last whole message
        self.doubted: tuple[str, ...] = ()  # endpoints whose credit it withholds, likewise


class Replicas:
    """owners: data planes whose streams are open here; guessing: whether guesses are told and taken."""

    def __init__(
        self,
        name: str,
        *,
        director: Director,
        snapshot: FleetSnapshot,
        ledger: Ledger,
        index: PrefixIndex,
        self_check: SelfCheck,
        owners: Callable[[], Collection[str]],
        guessing: bool = True,
    ) -> None:
        self.name = name
        self.orders = Orders(name)
        self._director = director
        self._snapshot = snapshot
        self._ledger = ledger
        self._index = index
        self._self_check = self_check
        self._owners = owners
        self._guessing = guessing
        self._peers: dict[str, _Peer] = {}
        self._foreign: dict[str, Foreign] = {}
        self._parts: dict[str, tuple[Part, ...]] = {}  # that those were made of
        self._sequence = 0
        self._said_at = self._whole_at = self._rates_at = float("-inf")
        self._whole_wanted = True
        self._said: dict[str, tuple[int, Counts]] = {}  # changes of the load by then, and what was said
        self._said_owners: tuple[str, ...] = ()
        self._openings = 0  # of all breakers, by then
        self._guesses: list[tuple[str, bytes]] = []
        self._guessed_at = float("-inf")
        self.guesses_left_out = 0

    # -------------------------------------------------------------------------------------------------------- status

    def __len__(self) -> int:
        """Others that are heard."""
        return len(self._peers)

    def statuses(self, now: float) -> list[Status]:
        return [
            Status(peer.name, len(peer.owners), sum(part.active for part in peer.parts.values()), now - peer.heard_at)
            for peer in self._peers.values()
        ]

    # ----------------------------------------------------------------------------------------------------------- say

    def say(self, now: float, *, leaving: bool = False) -> Message | None:
        """What the others are to be told now. None: nothing yet."""
        if leaving:
            return self._message(now, whole=False, leaving=True)
        if not self._peers:
            self._guesses, self._guessed_at = [], now
            return self._whole(now) if now - self._said_at >= ALONE_S - SLACK_S else None
        if now - self._said_at < SAY_S - SLACK_S:
            return None
        openings = sum([endpoint.breaker.openings for endpoint in self._snapshot.endpoints()])
        if self._whole_wanted or openings != self._openings or now - self._whole_at >= WHOLE_S - SLACK_S:
            self._openings = openings
            return self._whole(now)
        self._gather_guesses(now)
        in_flight, owners = self._changed(now), tuple(self._owners())
        if not in_flight and not self._guesses and owners == self._said_owners:
            return None
        return self._message(now, whole=False, in_flight=in_flight)

    def unsaid(self) -> None:
        """The last message did not leave."""
        self._whole_wanted = True

    def _whole(self, now: float) -> Message:
        self._gather_guesses(now)
        self._said.clear()
        self._whole_wanted = False
        self._whole_at = now
        rates: tuple[tuple[str, tuple[float, ...]], ...] = ()
        endpoints = self._snapshot.endpoints()
        if now - self._rates_at >= RATES_S - SLACK_S and self._owners():
            self._rates_at = now
            rates = tuple([(endpoint.place, endpoint.rates.told()) for endpoint in endpoints])
        opened = []
        for endpoint in endpoints:
            for name, breaker in () if endpoint.breaker.closed else _breakers(endpoint):
                if not breaker.closed and not breaker.told:
                    left_s, times = breaker.hold_off(now)
                    opened.append(Opened(name, breaker.openings, left_s, times, breaker.reason, breaker.suspected))
        in_flight = self._changed(now)
        return self._message(now, whole=True, in_flight=in_flight, opened=tuple(opened), rates=rates)

    def _message(
        self,
        now: float,
        *,
        whole: bool,
        leaving: bool = False,
        in_flight: tuple[InFlight, ...] = (),
        opened: tuple[Opened, ...] = (),
        rates: tuple[tuple[str, tuple[float, ...]], ...] = (),
    ) -> Message:
        self._sequence += 1
        self._said_at = now
        self._said_owners = tuple(self._owners())
        guesses, self._guesses = tuple(self._guesses), []
        return Message(
            replica=self.name,
            sequence=self._sequence,
            whole=whole,
            leaving=leaving,
            owners=self._said_owners,
            in_flight=in_flight,
            guesses=guesses,
            opened=opened,
            doubted=self._self_check.doubted if whole else (),
            orders=self.orders.listed() if whole else (),
            rates=rates,
        )

    def _changed(self, now: float) -> tuple[InFlight, ...]:
        """Loads that are not what was said of them last. Requests of data planes whose streams broke are claimed elsewhere, or
        soon here again: they are not told of."""
        said, told = self._said, []
        gone = [reservation for held in self._ledger.gone().values() for reservation in held]
        less = _counts_by_place(gone) if gone else {}
        for place, load in self._ledger.loads.items():
            before = said.get(place)
            if not less and (load.changes == before[0] if before is not None else not load.active):
                continue
            counts: Counts = (
                load.active,
                load.no_first_byte,
                load.prefill_tokens,
                load.prefill_pairs,
                load.context_tokens,
            )
            if place in less:
                counts = _without(counts, less[place])
            said[place] = load.changes, counts
            if counts != (NOTHING if before is None else before[1]):
                told.append(_in_flight(place, counts, load, now))
        unknown = [place for place in said if place not in self._ledger.loads]  # nobody is registered there any more
        ended = [place for place in unknown if said.pop(place)[1] != NOTHING]
        return (*told, *[_in_flight(place, NOTHING, Load(), now) for place in ended])

    def _gather_guesses(self, now: float) -> None:
        """What was guessed here since: nothing notes it as it happens."""
        if not self._guessing:
            return
        room = GUESSES_BLOCKS_MAX - sum(len(blocks) // 8 for _, blocks in self._guesses)
        for slot, blocks in self._index.guessed_since(self._guessed_at).items():
            endpoint = self._snapshot.at_slot(slot)
            if endpoint is not None and len(blocks) <= room:
                self._guesses.append((endpoint.place, array("Q", blocks).tobytes()))
                room -= len(blocks)
            else:
                self.guesses_left_out += len(blocks)
        self._guessed_at = now

    # ---------------------------------------------------------------------------------------------------------- hear

    def hear(self, message: Message, now: float) -> None:
        """One's own word, and one that was overtaken, say nothing."""
        if message.replica == self.name:
            return
        peer = self._peers.get(message.replica)
        if message.leaving:
            if peer is not None:
                self._drop(peer)
            return
        if peer is None:
            peer = self._peers[message.replica] = _Peer(message.replica)
            self._whole_wanted = True
            log.info("another control plane is heard", extra={"f": {"replica": peer.name}})
        if message.sequence <= peer.sequence:
            return
        peer.sequence, peer.heard_at = message.sequence, now
        self._hear_owners(peer, message.owners, now)
        self._hear_loads(peer, message, now)
        self._hear_guesses(message, now)
        if message.whole:
            self._hear_breakers(peer, message.opened, now)
            self._hear_doubts(peer, message.doubted)
            if self.orders.take(message.orders):
                self.obey()
            self._hear_rates(message.rates)

    def arrived(self, owner: str) -> None:
        """A data plane opened its stream here, and claimed what it relays: one that it came from counts that no more."""
        for peer in self._peers.values():
            if owner in peer.owners:
                self._refresh(peer.parts)

    def tick(self, now: float) -> None:
        """A few times a second."""
        for peer in [peer for peer in self._peers.values() if now - peer.heard_at > PEER_S_MAX]:
            self._drop(peer)
        self.obey()

    def obey(self) -> None:
        """What operators have set, wherever."""
        if not self.orders:
            return
        policy = self.orders.policy
        if policy and policy != self._director.policy:
            try:
                self._director.set_policy(policy)
                log.info("policy set at another control plane", extra={"f": {"policy": policy}})
            except UnknownPolicyError:
                log.debug("a policy that this build does not know: %s", policy)
        for worker, draining in self.orders.draining().items():
            self._snapshot.drain(worker, draining)

    # -------------------------------------------------------------------------------------------------------- inside

    def _hear_owners(self, peer: _Peer, owners: tuple[str, ...], now: float) -> None:
        if owners == peer.owners and not self._ledger.gone():
            return
        changed = owners != peer.owners
        peer.owners = owners
        for owner in self._ledger.gone():
            if owner in owners:
                self._director.moved(owner, now)
        if changed:
            self._refresh(peer.parts)

    def _hear_loads(self, peer: _Peer, message: Message, now: float) -> None:
        before = peer.parts
        parts = {} if message.whole else dict(before)
        for one in message.in_flight:
            if one.active <= 0:
                parts.pop(one.place, None)
                continue
            known, part = before.get(one.place), _part(one, now)
            parts[one.place] = part if known is None or _figures(known) != _figures(part) else known
        peer.parts = parts
        if message.whole:
            self._refresh(before.keys() | parts.keys())
        else:
            self._refresh(one.place for one in message.in_flight)

    def _hear_guesses(self, message: Message, now: float) -> None:
        if not message.guesses or not self._guessing:
            return
        self._gather_guesses(now)  # ours, before theirs are among them
        for place, packed in message.guesses:
            endpoint = self._snapshot.at_url(place)
            if endpoint is not None and not len(packed) % 8:
                self._index.speculate(endpoint.slot, array("Q", packed), now)

    def _hear_breakers(self, peer: _Peer, opened: tuple[Opened, ...], now: float) -> None:
        if not opened and not peer.opened:
            return
        breakers = {name: breaker for endpoint in self._snapshot.endpoints() for name, breaker in _breakers(endpoint)}
        for one in opened:
            breaker = breakers.get(one.place)
            if breaker is not None and peer.openings.get(one.place, 0) < one.opening:
                peer.openings[one.place] = one.opening
                breaker.told_open(now, one.left_s, one.times, one.reason, suspected=one.suspected)
        places = {one.place for one in opened}
        closed, peer.opened = peer.opened - places, places
        for place in closed:
            peer.openings.pop(place, None)  # a worker that comes back may count from 1 again
            breaker = breakers.get(place)
            if breaker is not None and not any(place in other.opened for other in self._peers.values()):
                breaker.told_closed()

    def _hear_doubts(self, peer: _Peer, doubted: tuple[str, ...]) -> None:
        peer.doubted = doubted
        everywhere = {name for other in self._peers.values() for name in other.doubted}
        changed = self._self_check.doubt_elsewhere(everywhere)
        for endpoint in self._snapshot.endpoints() if changed else ():
            endpoint.credit = changed.get(endpoint.name, endpoint.credit)

    def _hear_rates(self, rates: tuple[tuple[str, tuple[float, ...]], ...]) -> None:
        """While nobody asks here nothing is learned here."""
        if self._owners():
            return
        for place, told in rates:
            endpoint = self._snapshot.at_url(place)
            if endpoint is not None:
                endpoint.rates.adopt(told)
                endpoint.standing = None

    def _drop(self, peer: _Peer) -> None:
        del self._peers[peer.name]
        log.info("another control plane is heard no more", extra={"f": {"replica": peer.name}})
        self._refresh(peer.parts)

    def _refresh(self, places: Iterable[str]) -> None:
        """What others have there, as it is now."""
        here = set(self._owners())
        counting = [peer for peer in self._peers.values() if not (peer.owners and here.issuperset(peer.owners))]
        for place in list(places):
            parts = tuple([part for peer in counting if (part := peer.parts.get(place)) is not None])
            if parts != self._parts.get(place, ()):
                if parts:
                    self._parts[place], self._foreign[place] = parts, Foreign(parts)
                else:
                    del self._parts[place], self._foreign[place]
            endpoint = self._snapshot.at_url(place)
            load = self._ledger.loads.get(place) if endpoint is None else endpoint.load
            if load is not None and load.foreign is not self._foreign.get(place):
                load.foreign = self._foreign.get(place)
                load.changes += 1


def _breakers(endpoint: Endpoint) -> list[tuple[str, Breaker]]:
    """By name, as they are told of: a place's own, and of several ranks the address's, once, beside each one's own."""
    breaker = endpoint.breaker
    if not isinstance(breaker, RankBreaker):
        return [(endpoint.place, breaker)]
    own = f"{endpoint.url}#{endpoint.rank}", breaker.own
    return [own] if endpoint.rank else [(endpoint.url, breaker.address), own]


def _counts_by_place(reservations: Iterable[Reservation]) -> dict[str, Counts]:
    counts: dict[str, Counts] = {}
    for one in reservations:
        active, waiting, tokens, pairs, context = counts.get(one.url, NOTHING)
        if not one.first_byte_seen:
            waiting, tokens, pairs = waiting + 1, tokens + one.uncached_tokens, pairs + one.pairs
        counts[one.url] = active + 1, waiting, tokens, pairs, context + one.input_tokens
    return counts


def _without(counts: Counts, less: Counts) -> Counts:
    active, waiting, tokens, pairs, context = (a - b for a, b in zip(counts, less, strict=True))
    return int(active), int(waiting), int(tokens), max(0.0, pairs), int(context)


def _in_flight(place: str, counts: Counts, load: Load, now: float) -> InFlight:
    head = next(iter(load.queue.values()), None)
    return InFlight(
        place,
        *counts,
        max(0.0, now - load.prefill_since) if head is not None else -1.0,
        max(0.0, now - load.moved_at) if load.active else -1.0,
        0 if head is None else head.uncached_tokens,
        0 if head is None else head.input_tokens,
    )


def _part(one: InFlight, now: float) -> Part:
    return Part(
        one.active,
        one.no_first_byte,
        one.prefill_tokens,
        one.prefill_pairs,
        one.context_tokens,
        now - max(0.0, one.queued_s),
        now - max(0.0, one.moved_s),
        one.head_tokens,
        one.head_input_tokens,
    )


def _figures(part: Part) -> tuple[float, ...]:
    """All but the moments, which are told by ages and so never twice the same."""
    return (
        part.active,
        part.no_first_byte,
        part.prefill_tokens,
        part.prefill_pairs,
        part.context_tokens,
        part.head_tokens,
        part.head_input_tokens,
    )
