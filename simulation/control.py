"""The control plane in virtual time: its own cores, and the agents' bus in between.

What ingest does over Redis happens here by call: registrations and reports reach the fleet snapshot, blocks the prefix index,
with the same follower deciding what a snapshot or a delta is worth.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

from contract.keyspace import BlockDelta, DeltaFlag, EngineReport, Tier, WorkerRecord
from contract.outcome import Outcome
from controlplane import profiles, ranks
from controlplane.admission import WaitingRoom
from controlplane.block_sync import Follower, Offer, Phase, Take
from controlplane.breaker import BreakerBounds
from controlplane.director import Director
from controlplane.explain import DecisionRing
from controlplane.index_state import IndexState
from controlplane.ledger import Ledger
from controlplane.predictor import Forecaster
from controlplane.prefix_index import BlockChange, PrefixIndex
from controlplane.profiles import Profile
from controlplane.rankers import LeastPredicted
from controlplane.self_check import SelfCheck
from controlplane.snapshot import FleetSnapshot
from simulation.bus import SimBus
from simulation.timeline import UNIX_OFFSET_S, Timeline

LOOK_S = 0.02
TICK_S = 0.25
"""Both as in controlplane.upkeep."""
READ_S = 0.005
"""From the start of a process to the registrations it has read."""
WARM_S_MAX = 5.0
"""As in controlplane.ingest."""


def _nobody(_outcome: Outcome) -> None:
    """Who is told of outcomes where nobody asks for them."""


@dataclass(frozen=True, slots=True)
class Parts:
    """What a run may exchange: the tests of the checkers put broken ones in."""

    ledger: Callable[[], Ledger] = Ledger
    index: Callable[[], PrefixIndex] = PrefixIndex
    profiles: Callable[[], dict[str, Profile]] = profiles.build
    waiting: Callable[[], WaitingRoom] = WaitingRoom
    outcome: Callable[[Outcome], None] = _nobody
    """Told of every outcome, as the log on Redis is."""


@dataclass(slots=True)
class _Feed:
    """How one worker's blocks are followed. slots: one, or one a rank; follower None: it sends no events."""

    slots: tuple[int, ...]
    record: WorkerRecord
    follower: Follower | None

    def slot_at(self, rank: int) -> int:
        """Whose blocks those of this rank are."""
        return self.slots[min(rank, len(self.slots) - 1)]


@dataclass(slots=True)
class Tally:
    """Over a whole run, restarts of the control plane included."""

    outcomes: int = 0
    loads: int = 0
    """Snapshots read into the index."""
    ends: dict[int, int] = field(default_factory=dict)


class SimControl:
    """bus: what Redis holds."""

    def __init__(
        self,
        timeline: Timeline,
        bus: SimBus,
        *,
        policy: str,
        rng: Random,
        parts: Parts,
        steering: ranks.Steering = ranks.steered,
        outcome: Callable[[Outcome], None] = _nobody,
        restarted: Callable[[], None] = lambda: None,
    ) -> None:
        """outcome, restarted: whoever trains on this run is told."""
        self._outcome = outcome
        self._restarted = restarted
        self._timeline = timeline
        self._policy = policy
        self._rng = rng
        self._parts = parts
        self._steering = steering
        self._bus = bus
        self.tally = Tally()
        self.up = True
        self._start(first_decision_id=1)
        timeline.after(LOOK_S, self._look)
        timeline.after(TICK_S, self._tick)

    def _start(self, *, first_decision_id: int) -> None:
        self._feeds: dict[str, _Feed] = {}
        self.ledger = self._parts.ledger()
        self.index = self._parts.index()
        self.snapshot = FleetSnapshot(self.ledger, BreakerBounds(), self._steering)
        built = self._parts.profiles()
        ranker = built["predictive"].ranker
        assert isinstance(ranker, LeastPredicted)
        self.forecaster: Forecaster = ranker.forecaster
        self.self_check = SelfCheck()
        self.director = Director(
            snapshot=self.snapshot,
            ledger=self.ledger,
            index=self.index,
            waiting=self._parts.waiting(),
            ring=DecisionRing(decisions_max=64),
            self_check=self.self_check,
            profiles=built,
            policy=self._policy,
            rng=self._rng,
            record=self._record,
            unix_offset_s=UNIX_OFFSET_S,
            first_decision_id=first_decision_id,
            predicted=ranker,
        )
        self._started_s = self._timeline.now()

    # ------------------------------------------------------------------------------------------------------------- faults

    def stop(self) -> None:
        """It is gone, with everything it knew."""
        self.up = False

    def restart(self) -> None:
        """A new process: it knows nobody until it has read the registrations, and no blocks until it has read those."""
        self.up = True
        self._start(first_decision_id=int(self._timeline.unix() * 1000) << 20)
        self._timeline.after(READ_S, self._read_records)
        self._restarted()

    # ------------------------------------------------------------------------------------------------------ from the bus

    def registered(self, record: WorkerRecord) -> None:
        if not self.up:
            return
        now = self._timeline.now()
        self.snapshot.worker_registered(record, now)
        slots = self.snapshot.slots_of(record.worker)
        feed = self._feeds.get(record.worker)
        if feed is None or feed.record != record or feed.slots != slots:
            for slot in slots:
                capacity = record.cache_blocks // len(slots)
                self.index.attach(slot, capacity_blocks=capacity, exact=record.sends_kv_events)
            self._feeds[record.worker] = _Feed(slots, record, Follower(record.epoch, now) if record.sends_kv_events else None)

    def reported(self, report: EngineReport) -> None:
        if not self.up:
            return
        self.snapshot.worker_reported(report, self._timeline.now())
        feed = self._feeds.get(report.worker)
        if feed is not None and feed.follower is not None and feed.record.epoch == report.epoch:
            feed.follower.report(report)
            self._follow(feed, feed.follower)

    def changed(self, worker: str) -> None:
        """There is something new in the worker's stream."""
        feed = self._feeds.get(worker)
        if self.up and feed is not None and feed.follower is not None:
            self._follow(feed, feed.follower)

    def position(self, worker: str) -> tuple[int, int, IndexState] | None:
        """For checkers: epoch and sequence the index has reached, and what it says of itself."""
        feed = self._feeds.get(worker)
        if feed is None or feed.follower is None:
            return None
        return feed.follower.epoch, feed.follower.sequence, self.index.state(feed.slots[0])

    def slots_of(self, worker: str) -> tuple[int, ...]:
        """For checkers: whose blocks its ranks' are; none where it is not known."""
        feed = self._feeds.get(worker)
        return () if feed is None else tuple(feed.slots)

    # ------------------------------------------------------------------------------------------------------------- inside

    def _follow(self, feed: _Feed, follower: Follower) -> None:
        """Everything in the stream that was not read yet."""
        now = self._timeline.now()
        worker = feed.record.worker
        while follower.phase is Phase.FOLLOWING and (entry := self._bus.next(worker, follower.read_from)) is not None:
            stream_id, delta = entry
            take = follower.take(delta, stream_id, now)
            if take is Take.APPLY:
                self._apply(feed, delta)
            elif take in (Take.LOST, Take.FOREIGN):
                self._clear(feed)
        if not follower.drained(now):
            self._clear(feed)
        for slot in feed.slots:
            self.index.set_state(slot, follower.state)

    def _clear(self, feed: _Feed) -> None:
        for slot in feed.slots:
            self.index.clear(slot)

    def _apply(self, feed: _Feed, delta: BlockDelta) -> None:
        if delta.tier != Tier.GPU:
            return
        slot = feed.slot_at(delta.rank)
        if delta.flags & DeltaFlag.CLEAR:
            self.index.clear(slot, delta.rank)
        if delta.added or delta.removed:
            self.index.apply([BlockChange(slot, delta.rank, delta.added, delta.removed)])

    def _load(self, feed: _Feed, follower: Follower) -> None:
        """The snapshot that lies on the bus, or a request for another."""
        worker = feed.record.worker
        snapshot = self._bus.snapshot(worker)
        offer = follower.offer(None if snapshot is None else snapshot.manifest, self._timeline.now())
        if offer is not Offer.LOAD or snapshot is None:
            self._bus.ask(worker)
            return
        self.tally.loads += 1
        self._clear(feed)
        for chunk in snapshot.chunks:
            self._apply(feed, chunk)
        follower.loaded()
        self._follow(feed, follower)

    def _record(self, outcome: Outcome) -> None:
        self.tally.outcomes += 1
        self.tally.ends[outcome.end] = self.tally.ends.get(outcome.end, 0) + 1
        self._parts.outcome(outcome)
        self._outcome(outcome)

    def _read_records(self) -> None:
        for record in self._bus.records.values():
            self.registered(record)

    def _is_warm(self, now: float) -> bool:
        states = [self.index.state(feed.slots[0]) for feed in self._feeds.values()]
        return (bool(states) and IndexState.CATCHING_UP not in states) or now - self._started_s > WARM_S_MAX

    def _look(self) -> None:
        self._timeline.after(LOOK_S, self._look)
        if not self.up:
            return
        now = self._timeline.now()
        if not self.director.warm:
            self.director.warm = self._is_warm(now)
        self.index.expire(now)
        for feed in self._feeds.values():
            if feed.follower is not None and feed.follower.due(now):
                self._load(feed, feed.follower)

    def _tick(self) -> None:
        self._timeline.after(TICK_S, self._tick)
        if self.up:
            self.director.tick(self._timeline.now(), connected=True)
