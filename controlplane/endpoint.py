"""One engine address, and the row that a decision sees of it.

`Endpoint` is the joined, living state: what the registration and the reports say (written by the snapshot), what the
router itself dispatched (the ledger's `Load`), its breaker and its learned rates. `Standing` is that state as it was from one
change to the next, and `Candidate` one immutable row of it for one question; filters, scorers and pickers are plain functions
over such rows and see nothing else. A decision changes one endpoint, so the rows of the next share all standings but one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf
from operator import attrgetter

import msgspec

from contract.features import FEATURES, prefill_work
from contract.keyspace import EngineState, WorkerRecord
from controlplane.ledger import Load, Reservation, attention_pairs
from controlplane.queue_plan import AT_ONCE, Beginning, planned, seated
from controlplane.rank_breaker import AnyBreaker
from controlplane.ranks import place
from controlplane.rates import Rates, StepClock


@dataclass(slots=True, eq=False)
class Endpoint:
    """Everything known of one worker's engine, or of one rank of it (see ranks). Written by the snapshot and the director,
    read by everyone."""

    slot: int
    record: WorkerRecord
    load: Load
    breaker: AnyBreaker
    rates: Rates
    last_seen: float
    clock: StepClock = field(default_factory=StepClock)
    alive: bool = True
    draining: bool = False
    state: EngineState = EngineState.READY
    running: int = 0
    waiting: int = 0
    kv_usage: float = 0.0
    reported_at: float = 0.0  # when the figures were true: the report's arrival less its scrape age
    progress: int = -1  # the engine's own token counters, added up
    progressed_at: float = 0.0
    credit: bool = True  # false: predicted matches do not come true, so none is believed
    requests: int = 0
    failures: int = 0
    models: tuple[str, ...] = ()
    cache_tokens: int = 0
    seats: int = 0  # requests computed at once at most: as its record says, or the most seen while others waited
    standing: Standing | None = None  # the latest; None: something but its load has changed since
    rank: int = -1  # data-parallel, where requests are steered to one; -1: the engine is one endpoint
    ranks: tuple[Endpoint, ...] = ()  # of the same engine, by rank, itself among them; empty where the engine is one endpoint

    def stands(self, now: float) -> Standing:
        """What it is now."""
        standing = self.standing
        if standing is None or standing.changes != self.load.changes:
            standing = self.standing = _standing(self, now)
        return standing

    @property
    def worker(self) -> str:
        return self.record.worker

    @property
    def name(self) -> str:
        """Its worker's, and its rank where that has several."""
        return self.record.worker if self.rank < 0 else f"{self.record.worker}/{self.rank}"

    @property
    def number(self) -> int:
        """As data planes know it: one for all ranks of an engine."""
        return self.ranks[0].slot if self.ranks else self.slot

    @property
    def everywhere(self) -> tuple[Endpoint, ...]:
        """Every rank of its engine, or itself alone."""
        return self.ranks or (self,)

    @property
    def place(self) -> str:
        """Where its requests are counted."""
        return place(self.record.url, self.rank)

    @property
    def url(self) -> str:
        return self.record.url

    @property
    def serving(self) -> bool:
        """Whether new requests may be considered for it at all, its breaker aside."""
        return self.alive and not self.draining and self.state == EngineState.READY

    @property
    def absence(self) -> str:
        """Why it is not serving, in a word; empty where it is."""
        if not self.alive:
            return "dead"
        if self.draining:
            return "draining"
        return "" if self.state == EngineState.READY else self.state.name.lower()


class Standing(msgspec.Struct, gc=False):
    """What an endpoint is whatever is asked of it, from one change of it to the next. Never changed once made. Moments are
    monotonic seconds; `changes`: of its load, by then."""

    endpoint: Endpoint
    slot: int
    changes: int
    active: int
    no_first_byte: int
    prefill_tokens: int
    prefill_pairs: float
    queued_since: float  # infinity where nothing is queued
    moved_at: float  # infinity where nothing is active
    head_tokens: int
    context_tokens: int
    running: int
    waiting: int
    kv_usage: float
    reported_at: float
    prefill_tokens_per_s: float
    decode_itl_s: float
    ttft_ewma_s: float
    cache_tokens: int
    seats: int
    hold_s: float
    step_s: float
    head_input_tokens: int  # the whole prompt of the oldest request without a first token
    planned: Beginning | None  # where all seats are taken
    batch: int  # requests there: the larger of the router's own count and the report's, which includes it one scrape late
    packed: bytes = b""  # see controlplane.feature_rows, which fills it

    def beginning(self) -> Beginning:
        """When the engine would begin with one more prompt."""
        if self.planned is not None:
            return self.planned
        if self.queued_since == inf:
            return AT_ONCE
        head = prefill_work(self.head_tokens, attention_pairs(self.head_tokens, self.head_input_tokens))
        work = prefill_work(self.prefill_tokens, self.prefill_pairs)
        return seated(head, work, self.queued_since, self.prefill_tokens_per_s)

    def plus(self, count: int, uncached_tokens: int, pairs: float, context_tokens: int, first: Reservation) -> Standing:
        """With so many more that all came with the first of them, where each has a seat. uncached_tokens, pairs,
        context_tokens: of all of them."""
        active, reported = self.active + count, self.running + self.waiting
        idle, queued = self.moved_at == inf, self.queued_since < inf
        return Standing(
            self.endpoint,
            self.slot,
            self.changes,
            active,
            self.no_first_byte + count,
            self.prefill_tokens + uncached_tokens,
            self.prefill_pairs + pairs,
            self.queued_since if queued else first.reserved_at,
            first.reserved_at if idle else self.moved_at,
            self.head_tokens if queued else first.uncached_tokens,
            self.context_tokens + context_tokens,
            self.running,
            self.waiting,
            self.kv_usage,
            self.reported_at,
            self.prefill_tokens_per_s,
            self.decode_itl_s,
            self.ttft_ewma_s,
            self.cache_tokens,
            self.seats,
            self.hold_s,
            self.step_s,
            self.head_input_tokens if queued else first.input_tokens,
            self.planned,
            active if active > reported else reported,
        )


def _standing(endpoint: Endpoint, now: float) -> Standing:
    load, rates = endpoint.load, endpoint.rates
    if load.foreign is not None:
        load = load.foreign.together(load)
    active, reported = load.active, endpoint.running + endpoint.waiting
    queue, seats = load.queue, endpoint.seats
    head = next(iter(queue.values())) if queue else None
    return Standing(
        endpoint,
        endpoint.slot,
        load.changes,
        active,
        load.no_first_byte,
        load.prefill_tokens,
        load.prefill_pairs,
        load.prefill_since if queue else inf,
        load.moved_at if active else inf,
        0 if head is None else head.uncached_tokens,
        load.context_tokens,
        endpoint.running,
        endpoint.waiting,
        endpoint.kv_usage,
        endpoint.reported_at,
        rates.prefill_tokens_per_s,
        rates.decode_itl_s,
        rates.ttft_ewma_s,
        endpoint.cache_tokens,
        seats,
        rates.hold_s,
        endpoint.clock.step_s,
        0 if head is None else head.input_tokens,
        planned(endpoint, load, now) if seats and active >= seats else None,
        active if active > reported else reported,
    )


class Candidate(msgspec.Struct, frozen=True, gc=False):
    """One endpoint as one question sees it at `now`. Tokens and requests are counts, `kv_usage` is 0..1.

    Has every name of contract.features.FEATURES; whoever looks at many rows takes what is the same for all questions from
    `standing`, at half the price.
    """

    standing: Standing
    input_tokens: int
    matched_tokens: int
    uncached_tokens: int
    max_tokens: int
    now: float
    admits: bool  # the breaker lets a request through
    token_at: float = 0.0  # when tokens came from there last, as far as was said by now

    @property
    def endpoint(self) -> Endpoint:
        return self.standing.endpoint

    @property
    def slot(self) -> int:
        return self.standing.slot

    @property
    def active(self) -> int:
        return self.standing.active

    @property
    def no_first_byte(self) -> int:
        return self.standing.no_first_byte

    @property
    def prefill_tokens(self) -> int:
        return self.standing.prefill_tokens

    @property
    def prefill_pairs(self) -> float:
        return self.standing.prefill_pairs

    @property
    def head_tokens(self) -> int:
        return self.standing.head_tokens

    @property
    def context_tokens(self) -> int:
        return self.standing.context_tokens

    @property
    def running(self) -> int:
        return self.standing.running

    @property
    def waiting(self) -> int:
        return self.standing.waiting

    @property
    def kv_usage(self) -> float:
        return self.standing.kv_usage

    @property
    def prefill_tokens_per_s(self) -> float:
        return self.standing.prefill_tokens_per_s

    @property
    def decode_itl_s(self) -> float:
        return self.standing.decode_itl_s

    @property
    def ttft_ewma_s(self) -> float:
        return self.standing.ttft_ewma_s

    @property
    def cache_tokens(self) -> int:
        return self.standing.cache_tokens

    @property
    def seats(self) -> int:
        return self.standing.seats

    @property
    def hold_s(self) -> float:
        return self.standing.hold_s

    @property
    def step_s(self) -> float:
        return self.standing.step_s

    @property
    def batch(self) -> int:
        return self.standing.batch

    @property
    def prefill_wait_s(self) -> float:
        return max(0.0, self.now - self.standing.queued_since)

    @property
    def step_age_s(self) -> float:
        return max(0.0, self.now - max(self.standing.moved_at, self.token_at))

    @property
    def report_age_s(self) -> float:
        return self.now - self.standing.reported_at

    @property
    def begins_s(self) -> float:
        if self.standing.queued_since == inf and self.standing.planned is None:
            return 0.0
        return self.standing.beginning().wait_s(self.now)


_OF_THE_QUESTION = (
    "input_tokens",
    "matched_tokens",
    "uncached_tokens",
    "max_tokens",
    "begins_s",
    "prefill_wait_s",
    "step_age_s",
    "report_age_s",
)
_IN_PLACE = {"prefill_wait_s": "queued_since", "step_age_s": "moved_at", "report_age_s": "reported_at"}
of_standing = attrgetter(*[_IN_PLACE.get(name, "slot" if name in _OF_THE_QUESTION else name) for name in FEATURES])
"""What a row of FEATURES takes from a Standing: moments in place of times that grow with `now`, anything where the question
has its say."""


def features(candidate: Candidate) -> list[float]:
    """The row of contract.features.FEATURES, in order: a test compares. Of many at once: controlplane.feature_rows."""
    there, now = candidate.standing, candidate.now
    waited_s, moved_at, token_at = now - there.queued_since, there.moved_at, candidate.token_at
    came_s = now - (moved_at if moved_at > token_at else token_at)
    return [
        candidate.input_tokens,
        candidate.matched_tokens,
        candidate.uncached_tokens,
        there.active,
        there.no_first_byte,
        there.prefill_tokens,
        there.prefill_pairs,
        waited_s if waited_s > 0.0 else 0.0,
        came_s if came_s > 0.0 else 0.0,
        there.head_tokens,
        there.context_tokens,
        there.running,
        there.waiting,
        there.kv_usage,
        now - there.reported_at,
        candidate.max_tokens,
        there.prefill_tokens_per_s,
        there.decode_itl_s,
        there.ttft_ewma_s,
        there.cache_tokens,
        there.seats,
        there.hold_s,
        there.step_s,
        candidate.begins_s,
    ]
