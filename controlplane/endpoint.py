"""One engine address, and the row that a decision sees of it.

`Endpoint` is the joined, living state: what the registration and the reports say (written by the snapshot), what the
router itself dispatched (the ledger's `Load`), its breaker and its learned rates. `Candidate` is one immutable row of it
for one question; filters, scorers and pickers are plain functions over such rows and see nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from operator import attrgetter

import msgspec

from contract.features import FEATURES
from contract.keyspace import EngineState, WorkerRecord
from controlplane.breaker import Breaker
from controlplane.ledger import Load
from controlplane.rates import Rates, StepClock


@dataclass(slots=True, eq=False)
class Endpoint:
    """Everything known of one worker's engine. Written by the snapshot and the director, read by everyone."""

    slot: int
    record: WorkerRecord
    load: Load
    breaker: Breaker
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

    @property
    def worker(self) -> str:
        return self.record.worker

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


class Candidate(msgspec.Struct, frozen=True, gc=False):
    """One endpoint as one question sees it. Tokens and requests are counts, `kv_usage` is 0..1."""

    endpoint: Endpoint
    slot: int
    input_tokens: int
    matched_tokens: int
    uncached_tokens: int
    active: int
    no_first_byte: int
    prefill_tokens: int
    prefill_pairs: float
    prefill_wait_s: float
    head_tokens: int
    context_tokens: int
    running: int
    waiting: int
    kv_usage: float
    report_age_s: float
    max_tokens: int
    prefill_tokens_per_s: float
    decode_itl_s: float
    ttft_ewma_s: float
    cache_tokens: int
    seats: int
    hold_s: float
    step_s: float
    begins_s: float
    batch: int  # requests there: the larger of the router's own count and the report's, which includes it one scrape late
    admits: bool  # the breaker lets a request through


_row = attrgetter(*FEATURES)


def features(candidate: Candidate) -> list[float]:
    """The row of contract.features.FEATURES, in order."""
    return list(map(float, _row(candidate)))
