"""The control plane's metrics: names declared once, figures read from the cores when somebody scrapes.

Nothing is counted on the hot path for their sake: the director's tally is what it keeps anyway, the rest are gauges of what is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from contract.keyspace import EngineState
from controlplane.admission import WaitingRoom
from controlplane.director import Director
from controlplane.endpoint import Endpoint
from controlplane.fleet_servicer import BusView, IndexView
from controlplane.ledger import Ledger
from controlplane.outcomes import OutcomeLog
from controlplane.replicas import Replicas
from controlplane.self_check import SelfCheck
from controlplane.servicer import RoutingServicer
from controlplane.snapshot import FleetSnapshot
from controlplane.upkeep import LoopLag
from runtime import about
from runtime.clock import Clock

DECISIONS = "headway_decisions"
SHEDS = "headway_sheds"
ENDS = "headway_request_ends"
INPUT_TOKENS = "headway_input_tokens"
MATCHED_TOKENS = "headway_matched_tokens"
DUPLICATE_OUTCOMES = "headway_duplicate_outcomes"
BREAKERS_OPENED = "headway_breakers_opened"
OUTCOMES_WRITTEN = "headway_outcomes_written"
OUTCOMES_DROPPED = "headway_outcomes_dropped"
OUTCOMES_THINNED = "headway_outcomes_thinned"
OUTCOMES_BUFFERED = "headway_outcomes_buffered"
LOOP_LAG = "headway_loop_lag_max_seconds"
LOOP_STALLS = "headway_loop_stalls"
RESERVATIONS = "headway_reservations"
WAITING = "headway_waiting_questions"
HELD = "headway_held_questions"
HELD_IN_VAIN = "headway_held_questions_in_vain"
STREAMS = "headway_dataplane_streams"
REPLICAS = "headway_replicas"
WARM = "headway_warm"
REDIS_CONNECTED = "headway_redis_connected"
REDIS_AGE = "headway_redis_age_seconds"
INDEX_BLOCKS = "headway_index_blocks"
INDEX_MEMORY = "headway_index_memory_bytes"
MATCH_RATIO = "headway_match_ratio"
WORKER_ALIVE = "headway_worker_alive"
WORKER_AVAILABLE = "headway_worker_available"
WORKER_BREAKER = "headway_worker_breaker_state"
WORKER_INDEX_STATE = "headway_worker_index_state"
WORKER_INDEX_BLOCKS = "headway_worker_index_blocks"
WORKER_CREDIT = "headway_worker_prefix_credit"
WORKER_ACTIVE = "headway_worker_active_requests"
WORKER_FOREIGN = "headway_worker_active_elsewhere"
WORKER_PREFILL_TOKENS = "headway_worker_prefill_tokens"
WORKER_REPORT_AGE = "headway_worker_report_age_seconds"
WORKER_TTFT = "headway_worker_ttft_ewma_seconds"


class ControlPlaneCollector(Collector):
    def __init__(
        self,
        *,
        director: Director,
        snapshot: FleetSnapshot,
        ledger: Ledger,
        waiting: WaitingRoom,
        index: IndexView,
        bus: BusView,
        self_check: SelfCheck,
        outcomes: OutcomeLog,
        routing: RoutingServicer,
        lag: LoopLag,
        clock: Clock,
        replicas: Replicas | None = None,
    ) -> None:
        self._replicas = replicas
        self._director = director
        self._snapshot = snapshot
        self._ledger = ledger
        self._waiting = waiting
        self._index = index
        self._bus = bus
        self._self_check = self_check
        self._outcomes = outcomes
        self._routing = routing
        self._lag = lag
        self._clock = clock

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterator[Metric]:
        yield from self._counters()
        yield from self._gauges()
        yield from self._workers()

    def _counters(self) -> Iterator[Metric]:
        tally = self._director.tally
        decisions = CounterMetricFamily(DECISIONS, "requests placed", labels=("policy", "worker"))
        for key, count in tally.decisions.items():
            decisions.add_metric(key, count)
        yield decisions
        sheds = CounterMetricFamily(SHEDS, "requests refused", labels=("reason",))
        for reason, count in tally.sheds.items():
            sheds.add_metric((reason.lower(),), count)  # as the data plane writes it
        yield sheds
        ends = CounterMetricFamily(ENDS, "requests ended, by how", labels=("worker", "end"))
        for (worker, end), count in tally.ends.items():
            ends.add_metric((worker, end.lower()), count)
        yield ends
        yield CounterMetricFamily(INPUT_TOKENS, "prompt tokens of placed requests", value=tally.input_tokens)
        yield CounterMetricFamily(MATCHED_TOKENS, "of these, predicted to be in the chosen cache", value=tally.matched_tokens)
        settling = self._director.settling
        yield CounterMetricFamily(HELD, "next turns that waited for the engine's events", value=settling.held)
        yield CounterMetricFamily(HELD_IN_VAIN, "of these, those whose time was over first", value=settling.in_vain)
        yield CounterMetricFamily(DUPLICATE_OUTCOMES, "outcomes of no living reservation", value=tally.duplicates)
        yield CounterMetricFamily(BREAKERS_OPENED, "breakers that opened", value=tally.breakers_opened)
        yield CounterMetricFamily(OUTCOMES_WRITTEN, "outcome records written to Redis", value=self._outcomes.written)
        yield CounterMetricFamily(
            OUTCOMES_DROPPED, "outcome records given up, the buffer being full", value=self._outcomes.dropped
        )

    def _gauges(self) -> Iterator[Metric]:
        now = self._clock.now()
        yield CounterMetricFamily(
            OUTCOMES_THINNED,
            "records of complete requests left out above the rate",
            value=self._director.ends.thinning.left_out,
        )
        yield GaugeMetricFamily(OUTCOMES_BUFFERED, "outcome records not yet written", value=len(self._outcomes))
        yield GaugeMetricFamily(
            LOOP_LAG, "longest that the process let a due task wait since the last scrape", value=self._lag.worst_s()
        )
        yield CounterMetricFamily(LOOP_STALLS, "due tasks that waited longer than 5 ms", value=self._lag.long)
        yield GaugeMetricFamily(RESERVATIONS, "requests the router counts anywhere", value=len(self._ledger))
        yield GaugeMetricFamily(WAITING, "questions that wait for room", value=len(self._waiting))
        yield GaugeMetricFamily(STREAMS, "data planes connected", value=self._routing.streams)
        if self._replicas is not None:
            yield GaugeMetricFamily(REPLICAS, "other control planes of this fleet that are heard", value=len(self._replicas))
        yield GaugeMetricFamily(WARM, "1 once the fleet's state has been read", value=float(self._director.warm))
        yield GaugeMetricFamily(REDIS_CONNECTED, "1 while Redis answers", value=float(self._bus.connected))
        yield GaugeMetricFamily(REDIS_AGE, "since the last word from Redis", value=max(0.0, now - self._bus.last_word_at))
        yield GaugeMetricFamily(INDEX_BLOCKS, "distinct blocks in the prefix index", value=len(self._index))
        yield GaugeMetricFamily(INDEX_MEMORY, "what the prefix index takes, all included", value=self._index.memory_bytes())
        ratio = GaugeMetricFamily(
            MATCH_RATIO, "share of recent responses whose cached_tokens equalled the prediction", labels=("worker", "model")
        )
        labels = {endpoint.name: _labels(endpoint) for endpoint in self._snapshot.endpoints()}
        for (name, model), value in self._self_check.ratios().items():
            if name in labels:
                ratio.add_sample(MATCH_RATIO, {**labels[name], "model": model}, value)
        yield ratio

    def _workers(self) -> Iterator[Metric]:
        now = self._clock.now()
        endpoints = self._snapshot.endpoints()

        def gauge(name: str, text: str, values: Iterable[float]) -> Metric:
            family = GaugeMetricFamily(name, text, labels=("worker",))
            for endpoint, value in zip(endpoints, values, strict=True):
                family.add_sample(name, _labels(endpoint), value)
            return family

        def each(read: _Read) -> list[float]:
            return [float(read(endpoint)) for endpoint in endpoints]

        yield gauge(
            WORKER_ALIVE,
            "1 while its agent is heard and says that the engine is ready",
            each(lambda one: one.alive and one.state == EngineState.READY),
        )
        yield gauge(WORKER_AVAILABLE, "1 while it may get requests", each(lambda one: one.serving and one.breaker.admits(now)))
        yield gauge(WORKER_BREAKER, "1 closed, 2 open, 3 half open", each(lambda one: one.breaker.view(now)))
        yield gauge(
            WORKER_INDEX_STATE,
            "1 exact, 2 catching up, 3 degraded, 4 speculative",
            each(lambda one: self._index.state(one.slot)),
        )
        yield gauge(WORKER_INDEX_BLOCKS, "its blocks in the prefix index", each(lambda one: self._index.blocks(one.slot)))
        yield gauge(WORKER_CREDIT, "0 while its predicted matches do not come true", each(lambda one: one.credit))
        yield gauge(WORKER_ACTIVE, "requests the router counts there", each(lambda one: one.load.active))
        yield gauge(
            WORKER_FOREIGN,
            "requests that other control planes count there",
            each(lambda one: 0 if one.load.foreign is None else one.load.foreign.active),
        )
        yield gauge(
            WORKER_PREFILL_TOKENS, "uncached prompt tokens before their first token", each(lambda one: one.load.prefill_tokens)
        )
        yield gauge(WORKER_REPORT_AGE, "age of the engine's figures", each(lambda one: now - one.reported_at))
        yield gauge(WORKER_TTFT, "recent first tokens", each(lambda one: one.rates.ttft_ewma_s))


def _labels(endpoint: Endpoint) -> dict[str, str]:
    """Its worker, and its rank where that has several. A worker's name may be anything."""
    return {"worker": endpoint.worker, "rank": str(endpoint.rank)} if endpoint.ranks else {"worker": endpoint.worker}


class _Read(Protocol):
    def __call__(self, endpoint: Endpoint, /) -> float: ...


def registry(*collectors: Collector) -> CollectorRegistry:
    """One of our own: no module state."""
    made = CollectorRegistry()
    about.describe(made, "controlplane")
    for collector in collectors:
        made.register(collector)
    return made
