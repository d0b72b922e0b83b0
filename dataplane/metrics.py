"""What this process counts, declared once. Plain numbers on the hot path; prometheus_client only writes the page."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from contract.outcome import End

SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 600.0)


class Cell:
    """One number of a counter. What every request adds to is added to here: that costs a tenth of finding it by its labels."""

    __slots__ = ("count",)

    def __init__(self) -> None:
        self.count = 0.0


class Counter:
    def __init__(self, name: str, help: str, *labels: str) -> None:
        self.name, self.help, self.labels = name, help, labels
        self._cells: dict[tuple[str, ...], Cell] = {}

    def cell(self, *labels: str) -> Cell:
        """The number with these labels."""
        found = self._cells.get(labels)
        if found is None:
            found = self._cells[labels] = Cell()
        return found

    def add(self, *labels: str, by: float = 1) -> None:
        self.cell(*labels).count += by

    @property
    def values(self) -> dict[tuple[str, ...], float]:
        """By labels, of what was counted."""
        return {labels: cell.count for labels, cell in list(self._cells.items()) if cell.count}

    def family(self) -> Metric:
        family = CounterMetricFamily(self.name, self.help, labels=self.labels)
        values = self.values if self.labels else {(): self.cell().count}
        for labels, value in values.items():
            family.add_metric(labels, value)
        return family


class Histogram:
    def __init__(self, name: str, help: str, bounds: tuple[float, ...] = SECONDS) -> None:
        self.name, self.help, self.bounds = name, help, bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def family(self) -> Metric:
        family = HistogramMetricFamily(self.name, self.help)
        buckets, total = [], 0
        for bound, count in zip((*map(str, self.bounds), "+Inf"), self.counts, strict=True):
            total += count
            buckets.append((bound, float(total)))
        family.add_metric((), buckets, self.sum)
        return family


class Gauge:
    """Read when the page is written."""

    def __init__(self, name: str, help: str, read: Callable[[], float]) -> None:
        self.name, self.help, self.read = name, help, read

    def family(self) -> Metric:
        return GaugeMetricFamily(self.name, self.help, value=self.read())


class Metrics(Collector):
    """Everything this process exports."""

    def __init__(self) -> None:
        self.requests = Counter("headway_proxy_requests", "requests answered", "path", "status")
        self.attempts = Counter("headway_proxy_attempts", "requests sent to an engine, by how they ended", "end")
        self.retries = Counter("headway_proxy_retries", "attempts after the first", "why")
        self.hedges = Counter("headway_proxy_hedges", "second attempts beside a silent first one, by how they ended", "end")
        self.reconnects = Counter("headway_proxy_upstream_stale", "reused connections that were closed before a response byte")
        self.decisions = Counter("headway_proxy_decisions", "where decisions came from", "source")
        self.sheds = Counter("headway_proxy_sheds", "requests refused", "reason")
        self.chains = Counter("headway_proxy_prompts", "prompts by how their blocks were named", "kind")
        self.late = Counter("headway_proxy_decisions_late", "questions that missed their deadline")
        self.outcomes_dropped = Counter("headway_proxy_outcomes_dropped", "outcomes lost while the control plane was away")
        self.denied = Counter(
            "headway_proxy_requests_denied", "requests without a key, with a wrong one, or over its limits", "code"
        )
        self.protocol_errors = Counter("headway_proxy_protocol_errors", "requests that were not HTTP as spoken here", "code")
        self.ttft = Histogram("headway_proxy_ttft_seconds", "sent to the engine -> first event with content, streams only")
        self.e2e = Histogram("headway_proxy_request_seconds", "request read -> last byte given to the client's connection")
        self.decision = Histogram("headway_proxy_decision_seconds", "question -> decision")
        self.prompt = Histogram("headway_proxy_prompt_seconds", "body -> token ids and block hashes")
        self.by_control = self.decisions.cell("control")
        self.ends = {end: self.attempts.cell(end.name.lower()) for end in End}
        self.gauges: list[Gauge] = []
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def gauge(self, name: str, help: str, read: Callable[[], float]) -> None:
        self.gauges.append(Gauge(name, help, read))

    def collect(self) -> Iterator[Metric]:
        for metric in [*vars(self).values(), *self.gauges]:
            if isinstance(metric, Counter | Histogram | Gauge):
                yield metric.family()

    def page(self) -> bytes:
        """Prometheus text."""
        return generate_latest(self._registry)
