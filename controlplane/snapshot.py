"""The fleet as the control plane knows it: who is registered, what their engines last said, who is still alive.

A worker's endpoint number (its slot) is the lowest free one when it first registers; it keeps it while it is known, across
restarts of its engine and its agent, until it has been gone for FORGET_AFTER_S. A worker whose agent is silent for its TTL is
no candidate any more. The one exception: while Redis does not answer, silence says nothing about workers, so nobody expires;
when it answers again everybody gets a whole TTL to be heard. The same holds after a pause of this process itself.

`lane(model)` is what the hot path reads: the endpoints of a model, sorted into those that serve and those that do not, built
once per change of the fleet.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from contract.keyspace import EngineReport, EngineState, ModelCard, WorkerRecord
from controlplane.breaker import Breaker, BreakerBounds
from controlplane.endpoint import Endpoint
from controlplane.ledger import Ledger
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
    prompt and answer that each serving one takes, 0 where it does not say; taken_by_all: the least of them."""

    serving: tuple[Endpoint, ...]
    absent: tuple[Endpoint, ...]
    masks: dict[int, int]
    lengths: tuple[int, ...]
    taken_by_all: int

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

    def __init__(self, ledger: Ledger, bounds: BreakerBounds) -> None:
        self._ledger = ledger
        self._bounds = bounds
        self._by_slot: dict[int, Endpoint] = {}
        self._by_worker: dict[str, Endpoint] = {}
        self.by_url: dict[str, Endpoint] = {}
        """Who is registered where; changed here alone."""
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
        endpoint = self._by_worker.get(record.worker)
        if endpoint is None:
            endpoint = self._join(record, now)
        elif endpoint.record != record:
            self._replace(endpoint, record, now)
        endpoint.last_seen = now
        if not endpoint.alive:
            endpoint.alive = True
            self._changed()
        return endpoint.slot

    def worker_reported(self, report: EngineReport, now: float) -> None:
        """Figures of a run that is not the registered one are dropped."""
        endpoint = self._by_worker.get(report.worker)
        if endpoint is None or endpoint.record.epoch != report.epoch:
            return
        endpoint.last_seen = now
        endpoint.standing = None
        endpoint.running, endpoint.waiting, endpoint.kv_usage = report.running, report.waiting, report.kv_usage
        endpoint.reported_at = now - report.scrape_age_s
        endpoint.clock.reported(report.generation_tokens, report.running, endpoint.reported_at)
        if report.waiting and report.running > endpoint.seats and not endpoint.record.max_num_seqs:
            endpoint.seats = report.running
        progress = report.generation_tokens + report.prompt_tokens
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
        endpoint = self._by_worker.get(worker)
        if endpoint is not None and endpoint.alive:
            endpoint.alive = False
            self._changed()

    def slot_of(self, worker: str) -> int | None:
        endpoint = self._by_worker.get(worker)
        return None if endpoint is None else endpoint.slot

    # -------------------------------------------------------------------------------------------------- time passes

    def tick(self, now: float, *, connected: bool) -> list[Endpoint]:
        """Expires the silent ones; returns those that are forgotten for good. connected: Redis answers."""
        paused = self._ticked_at is not None and now - self._ticked_at > PAUSE_S_MAX
        self._ticked_at = now
        if not connected or paused:
            self._heard_floor = now
        forgotten = []
        for endpoint in self.endpoints():
            silent_s = self.silent_s(endpoint, now)
            if endpoint.alive and silent_s > endpoint.record.ttl_ms / 1000:
                endpoint.alive = False
                self._changed()
            if not endpoint.alive and silent_s > FORGET_AFTER_S and endpoint.load.active == 0:
                forgotten.append(endpoint)
                self._forget(endpoint)
        return forgotten

    def silent_s(self, endpoint: Endpoint, now: float) -> float:
        """How long its agent could have spoken and did not."""
        return now - max(endpoint.last_seen, self._heard_floor)

    # ----------------------------------------------------------------------------------------------- from operators

    def drain(self, worker: str, draining: bool) -> Endpoint | None:
        """None: no such worker."""
        endpoint = self._by_worker.get(worker)
        if endpoint is not None and endpoint.draining != draining:
            endpoint.draining = draining
            self._changed()
        return endpoint

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
        slot = 0
        while slot in self._by_slot:
            slot += 1
        endpoint = Endpoint(
            slot=slot,
            record=record,
            load=self._ledger.load(record.url),
            breaker=Breaker(self._bounds),
            rates=Rates(),
            last_seen=now,
            reported_at=now,
            progressed_at=now,
        )
        self._by_slot[slot] = endpoint
        self._by_worker[record.worker] = endpoint
        self._adopt(endpoint, record)
        return endpoint

    def _replace(self, endpoint: Endpoint, record: WorkerRecord, now: float) -> None:
        """Another run, or another address: what was learned of the one before is held against nobody."""
        if self.by_url.get(endpoint.url) is endpoint:
            del self.by_url[endpoint.url]
        if record.url != endpoint.url:
            self._ledger.forget(endpoint.url)
            endpoint.load = self._ledger.load(record.url)
        if record.epoch != endpoint.record.epoch:
            endpoint.breaker.reset()
            endpoint.running, endpoint.waiting, endpoint.kv_usage = 0, 0, 0.0
            endpoint.seats = 0
            endpoint.clock = StepClock()
            endpoint.reported_at = endpoint.progressed_at = now
            endpoint.state = EngineState.READY
            endpoint.credit = True
        self._adopt(endpoint, record)

    def _adopt(self, endpoint: Endpoint, record: WorkerRecord) -> None:
        endpoint.record = record
        endpoint.standing = None
        endpoint.models = tuple(card.name for card in record.models)
        endpoint.cache_tokens = record.cache_blocks * record.block_size
        endpoint.seats = record.max_num_seqs or endpoint.seats
        self.by_url[record.url] = endpoint
        for model in endpoint.models:
            self._models_seen[model] = None
        while len(self._models_seen) > MODELS_REMEMBERED_MAX:
            del self._models_seen[next(iter(self._models_seen))]
        self._changed()

    def _forget(self, endpoint: Endpoint) -> None:
        del self._by_slot[endpoint.slot]
        del self._by_worker[endpoint.worker]
        if self.by_url.get(endpoint.url) is endpoint:
            del self.by_url[endpoint.url]
        self._ledger.forget(endpoint.url)
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
        return Lane(serving, tuple(endpoint for endpoint in known if not endpoint.serving), masks, lengths, least)


def _model_len(endpoint: Endpoint, model: str) -> int:
    return next((card.max_model_len for card in endpoint.record.models if card.name == model), 0)


def _state(number: int) -> EngineState:
    """A state that this build does not know is one in which it sends nothing."""
    try:
        return EngineState(number)
    except ValueError:
        return EngineState.UNHEALTHY
