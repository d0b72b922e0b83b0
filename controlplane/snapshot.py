"""The fleet as the control plane knows it: who is registered, what their engines last said, who is still alive.

A worker's endpoint number (its slot) is the lowest free one when it first registers; it keeps it while it is known, across
restarts of its engine and its agent, until it has been gone for FORGET_AFTER_S. A worker whose agent is silent for its TTL is
no candidate any more. The one exception: while Redis does not answer, silence says nothing about workers, so nobody expires;
when it answers again everybody gets a whole TTL to be heard. The same holds after a pause of this process itself.

An engine to whose data-parallel ranks requests are steered (see ranks) is an endpoint a rank. They come, live and go together;
figures of a report are each rank's own, and so is what of its breaker is not the address's (see rank_breaker).

`lane(model)` is what the hot path reads: the endpoints of a model, sorted into those that serve and those that do not, built
once per change of the fleet.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from contract.keyspace import EngineReport, EngineState, ModelCard, RankFigures, WorkerRecord
from controlplane import ranks
from controlplane.breaker import Breaker, BreakerBounds
from controlplane.endpoint import Endpoint
from controlplane.ledger import Ledger
from controlplane.rank_breaker import AnyBreaker, RankBreaker
from controlplane.rates import Rates, StepClock

FORGET_AFTER_S = 600.0
"""A worker gone this long loses its endpoint number and its place in `headway workers`."""
MODELS_REMEMBERED_MAX = 10_000
"""Names once served, kept to tell a wrong name (404) from an absent worker (503)."""
PAUSE_S_MAX = 1.0
"""A gap between two ticks above this was a pause of this process, not silence of the workers."""

UNBOUNDED = 1 << 62


@dataclass(frozen=True, slots=True)
class Lane:
    """The endpoints of one model, by slot. masks: block size -> bit set of the serving slots that use it; lengths: tokens of
    prompt and answer that each serving one takes, 0 where it does not say; taken_by_all: the least of them; ranked: some of
    them are ranks of one engine."""

    serving: tuple[Endpoint, ...]
    absent: tuple[Endpoint, ...]
    masks: dict[int, int]
    lengths: tuple[int, ...]
    taken_by_all: int
    ranked: bool = False

    def for_tokens(self, tokens: int) -> Lane:
        """Without those that would refuse a request of so many, prompt and answer together; itself where all would or none."""
        pairs = zip(self.serving, self.lengths, strict=True)
        taking = tuple(endpoint for endpoint, length in pairs if not 0 < length < tokens)
        if not taking or len(taking) == len(self.serving):
            return self
        short = tuple(endpoint for endpoint in self.serving if endpoint not in taking)
        return replace(self, serving=taking, absent=self.absent + short, lengths=(), taken_by_all=UNBOUNDED)


class FleetSnapshot:
    """Written by ingest through worker_registered, worker_reported and worker_left. Pure; one thread."""

    def __init__(self, ledger: Ledger, bounds: BreakerBounds, steering: ranks.Steering = ranks.steered) -> None:
        self._ledger = ledger
        self._bounds = bounds
        self._steering = steering
        self._by_slot: dict[int, Endpoint] = {}
        self._by_worker: dict[str, Endpoint] = {}  # of several ranks the first
        self._surplus: dict[int, Endpoint] = {}  # ranks that an engine had before, until the next tick
        self.by_url: dict[str, Endpoint] = {}
        """Who is registered where, by `Endpoint.place`; changed here alone."""
        self._lanes: dict[str, Lane | None] = {}
        self._models_seen: dict[str, None] = {}
        self._in_order: tuple[Endpoint, ...] | None = None
        self._heard_floor = 0.0
        self._ticked_at: float | None = None
        self.version = 1
        """Grows with every change of membership, models or availability (breakers aside)."""

    # ------------------------------------------------------------------------------------------------ from the agents

    def worker_registered(self, record: WorkerRecord, now: float) -> int:
        """A worker, or a new run of one we know. Returns its endpoint number."""
        first = self._by_worker.get(record.worker)
        if first is None:
            first = self._join(record, now)
        elif first.record != record:
            self._replace(first, record, now)
        for endpoint in first.everywhere:
            endpoint.last_seen = now
            if not endpoint.alive:
                endpoint.alive = True
                self._changed()
        return first.slot

    def worker_reported(self, report: EngineReport, now: float) -> None:
        """Figures of a run that is not the registered one are dropped."""
        first = self._by_worker.get(report.worker)
        if first is None or first.record.epoch != report.epoch:
            return
        if not first.ranks:
            self._take_figures(first, report, report, now)
            return
        for endpoint in first.ranks:
            own = report.ranks[endpoint.rank] if endpoint.rank < len(report.ranks) else _share(report, len(first.ranks))
            self._take_figures(endpoint, report, own, now)

    def _take_figures(self, endpoint: Endpoint, report: EngineReport, own: EngineReport | RankFigures, now: float) -> None:
        """own: what the report says of this very endpoint."""
        endpoint.last_seen = now
        endpoint.standing = None
        endpoint.running, endpoint.waiting, endpoint.kv_usage = own.running, own.waiting, own.kv_usage
        endpoint.reported_at = now - report.scrape_age_s
        endpoint.clock.reported(own.generation_tokens, own.running, endpoint.reported_at)
        if own.waiting and own.running > endpoint.seats and not endpoint.record.max_num_seqs:
            endpoint.seats = own.running
        progress = own.generation_tokens + own.prompt_tokens
        if progress != endpoint.progress:
            endpoint.progress = progress
            endpoint.progressed_at = now
        state = _state(report.state)
        if state != endpoint.state or not endpoint.alive:
            endpoint.state = state
            endpoint.alive = True
            self._changed()

    def worker_left(self, worker: str, now: float) -> None:
        """It de-registered, or its registration is gone."""
        first = self._by_worker.get(worker)
        if first is not None and first.alive:
            for endpoint in first.everywhere:
                endpoint.alive = False
            self._changed()

    def slot_of(self, worker: str) -> int | None:
        first = self._by_worker.get(worker)
        return None if first is None else first.slot

    def slots_of(self, worker: str) -> tuple[int, ...]:
        """Of its ranks, in their order, where requests are steered to them; else its one; none where nobody knows it."""
        first = self._by_worker.get(worker)
        return () if first is None else tuple([endpoint.slot for endpoint in first.everywhere])

    # -------------------------------------------------------------------------------------------------- time passes

    def tick(self, now: float, *, connected: bool) -> list[Endpoint]:
        """Expires the silent ones; returns those that are forgotten for good. connected: Redis answers."""
        paused = self._ticked_at is not None and now - self._ticked_at > PAUSE_S_MAX
        self._ticked_at = now
        if not connected or paused:
            self._heard_floor = now
        forgotten = list(self._surplus.values())
        for endpoint in forgotten:
            self._forget(endpoint)
        for endpoint in self.endpoints():
            silent_s = self.silent_s(endpoint, now)
            if endpoint.alive and silent_s > endpoint.record.ttl_ms / 1000:
                endpoint.alive = False
                self._changed()
            if not endpoint.alive and silent_s > FORGET_AFTER_S and not any(one.load.active for one in endpoint.everywhere):
                forgotten.append(endpoint)
                self._forget(endpoint)
        return forgotten

    def silent_s(self, endpoint: Endpoint, now: float) -> float:
        """How long its agent could have spoken and did not."""
        return now - max(endpoint.last_seen, self._heard_floor)

    # ----------------------------------------------------------------------------------------------- from operators

    def drain(self, worker: str, draining: bool) -> Endpoint | None:
        """None: no such worker."""
        first = self._by_worker.get(worker)
        if first is not None and first.draining != draining:
            for endpoint in first.everywhere:
                endpoint.draining = draining
            self._changed()
        return first

    # ------------------------------------------------------------------------------------------------------ questions

    def lane(self, model: str) -> Lane | None:
        """None: no endpoint that we know serves this model."""
        try:
            return self._lanes[model]
        except KeyError:
            lane = self._build_lane(model)
            if lane is not None:  # an unknown name is not remembered: callers invent as many as they like
                self._lanes[model] = lane
            return lane

    def model_seen(self, model: str) -> bool:
        """Whether any worker ever served it."""
        return model in self._models_seen

    def endpoints(self) -> tuple[Endpoint, ...]:
        """All known, by slot."""
        if self._in_order is None:
            self._in_order = tuple(self._by_slot[slot] for slot in sorted(self._by_slot))
        return self._in_order

    def workers(self) -> list[Endpoint]:
        """All known, by slot; of several ranks the first."""
        return [endpoint for endpoint in self.endpoints() if endpoint.rank < 1]

    def at_slot(self, slot: int) -> Endpoint | None:
        return self._by_slot.get(slot)

    def at_url(self, url: str) -> Endpoint | None:
        return self.by_url.get(url)

    def models(self) -> dict[str, list[tuple[ModelCard, Endpoint]]]:
        """Served names of the living, by name."""
        served: dict[str, list[tuple[ModelCard, Endpoint]]] = {}
        for endpoint in self.endpoints():
            if endpoint.alive:
                for card in endpoint.record.models:
                    served.setdefault(card.name, []).append((card, endpoint))
        return served

    # -------------------------------------------------------------------------------------------------------- inside

    def _join(self, record: WorkerRecord, now: float) -> Endpoint:
        first = self._make(record, Breaker(self._bounds), now)
        self._by_worker[record.worker] = first
        self._become(first, record, now)
        return first

    def _make(self, record: WorkerRecord, breaker: AnyBreaker, now: float) -> Endpoint:
        slot = 0
        while slot in self._by_slot:
            slot += 1
        endpoint = Endpoint(
            slot=slot,
            record=record,
            load=self._ledger.load(record.url),
            breaker=breaker,
            rates=Rates(),
            last_seen=now,
            reported_at=now,
            progressed_at=now,
        )
        self._by_slot[slot] = endpoint
        return endpoint

    def _replace(self, first: Endpoint, record: WorkerRecord, now: float) -> None:
        """Another run, or another address: what was learned of the one before is held against nobody."""
        for endpoint in first.everywhere:
            if self.by_url.get(endpoint.place) is endpoint:
                del self.by_url[endpoint.place]
            if record.url != endpoint.url:
                self._ledger.forget(endpoint.place)
            if record.epoch != endpoint.record.epoch:
                endpoint.breaker.reset()
                endpoint.running, endpoint.waiting, endpoint.kv_usage = 0, 0, 0.0
                endpoint.seats = 0
                endpoint.clock = StepClock()
                endpoint.reported_at = endpoint.progressed_at = now
                endpoint.state = EngineState.READY
                endpoint.credit = True
        self._become(first, record, now)

    def _become(self, first: Endpoint, record: WorkerRecord, now: float) -> None:
        """As many endpoints as the record asks for, all as it says."""
        wanted, before = self._steering(record), first.everywhere
        for endpoint in before[wanted:]:
            endpoint.alive, endpoint.models, endpoint.ranks = False, (), ()
            self._surplus[endpoint.slot] = endpoint
        added = [self._make(record, first.breaker, now) for _ in range(wanted - len(before))]
        for endpoint in added:
            endpoint.draining, endpoint.state = first.draining, first.state
        endpoints = (*before[:wanted], *added)
        address = first.breaker.address if isinstance(first.breaker, RankBreaker) else first.breaker
        for rank, endpoint in enumerate(endpoints):
            endpoint.rank, endpoint.ranks = (rank, endpoints) if wanted > 1 else (-1, ())
            if wanted == 1:
                endpoint.breaker = address
            elif not isinstance(endpoint.breaker, RankBreaker):
                endpoint.breaker = RankBreaker(address, Breaker(self._bounds))
            self._adopt(endpoint, record, wanted)

    def _adopt(self, endpoint: Endpoint, record: WorkerRecord, ranks: int) -> None:
        endpoint.record = record
        endpoint.load = self._ledger.load(endpoint.place)
        endpoint.standing = None
        endpoint.models = tuple(card.name for card in record.models)
        endpoint.cache_tokens = record.cache_blocks // ranks * record.block_size
        endpoint.seats = record.max_num_seqs or endpoint.seats
        self.by_url[endpoint.place] = endpoint
        for model in endpoint.models:
            self._models_seen[model] = None
        while len(self._models_seen) > MODELS_REMEMBERED_MAX:
            del self._models_seen[next(iter(self._models_seen))]
        self._changed()

    def _forget(self, endpoint: Endpoint) -> None:
        del self._by_slot[endpoint.slot]
        self._surplus.pop(endpoint.slot, None)
        if self._by_worker.get(endpoint.worker) is endpoint:
            del self._by_worker[endpoint.worker]
        if self.by_url.get(endpoint.place) is endpoint:
            del self.by_url[endpoint.place]
        self._ledger.forget(endpoint.place)
        self._changed()

    def _changed(self) -> None:
        self.version += 1
        self._lanes.clear()
        self._in_order = None

    def _build_lane(self, model: str) -> Lane | None:
        known = [endpoint for endpoint in self.endpoints() if model in endpoint.models]
        if not known:
            return None
        serving = tuple(endpoint for endpoint in known if endpoint.serving)
        masks: dict[int, int] = {}
        for endpoint in serving:
            size = endpoint.record.block_size
            masks[size] = masks.get(size, 0) | 1 << endpoint.slot
        lengths = tuple(_model_len(endpoint, model) for endpoint in serving)
        least = min((length for length in lengths if length > 0), default=UNBOUNDED)
        absent = tuple(endpoint for endpoint in known if not endpoint.serving)
        return Lane(serving, absent, masks, lengths, least, any(endpoint.ranks for endpoint in serving))


def _share(report: EngineReport, ranks: int) -> RankFigures:
    """Of each rank, where the report does not tell them apart."""
    return RankFigures(
        -(-report.running // ranks),
        report.waiting // ranks,
        report.kv_usage,
        report.generation_tokens // ranks,
        report.prompt_tokens // ranks,
    )


def _model_len(endpoint: Endpoint, model: str) -> int:
    return next((card.max_model_len for card in endpoint.record.models if card.name == model), 0)


def _state(number: int) -> EngineState:
    """A state that this build does not know is one in which it sends nothing."""
    try:
        return EngineState(number)
    except ValueError:
        return EngineState.UNHEALTHY
