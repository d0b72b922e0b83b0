"""What this process counts, declared once. Plain numbers on the hot path; prometheus_client only writes the page."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from contract.outcome import End
from dataplane.openai import path_label
from runtime import about

SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 600.0)


CELLS_MAX = 1024
"""Found again by one label; beyond it all are forgotten, not what they counted."""


class Cell:
    """One number of a counter. What every request adds to is added to here: that costs a tenth of finding it by its labels."""

    __slots__ = ("count",)

    def __init__(self) -> None:
        self.count = 0.0


class Cells(dict[str, Cell]):
    """Numbers of one counter by one label, found again by that alone. make: the number with a label not seen yet."""

    def __init__(self, make: Callable[[str], Cell]) -> None:
        self._make = make

    def __missing__(self, label: str) -> Cell:
        if len(self) >= CELLS_MAX:
            self.clear()
        cell = self[label] = self._make(label)
        return cell


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
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0
        self._seen: list[float] = []
        self.observe: Callable[[float], None] = self._seen.append
        """Counted later, by `fold`: together values cost a third of what each costs alone."""

    def fold(self) -> None:
        """Counts what was seen since the last time."""
        seen = sorted(self._seen)
        self._seen.clear()
        self._sum += sum(seen)
        below = 0
        for index, bound in enumerate((*self.bounds, float("inf"))):
            up_to = bisect_right(seen, bound)
            self._counts[index] += up_to - below
            below = up_to

    def family(self) -> Metric:
        self.fold()
        family = HistogramMetricFamily(self.name, self.help)
        buckets, total = [], 0
        for bound, count in zip((*map(str, self.bounds), "+Inf"), self._counts, strict=True):
            total += count
            buckets.append((bound, float(total)))
        family.add_metric((), buckets, self._sum)
        return family


class Gauge:
    """Read when the page is written."""

    def __init__(self, name: str, help: str, read: Callable[[], float]) -> None:
        self.name, self.help, self.read = name, help, read

    def family(self) -> Metric:
        return GaugeMetricFamily(self.name, self.help, value=self.read())


class LabelledGauge(Gauge):
    """Of several of a kind."""

    def __init__(self, name: str, help: str, label: str, read: Callable[[], dict[str, float]]) -> None:
        super().__init__(name, help, lambda: 0.0)
        self.label, self.read_each = label, read

    def family(self) -> Metric:
        family = GaugeMetricFamily(self.name, self.help, labels=(self.label,))
        for value, figure in self.read_each().items():
            family.add_metric((value,), figure)
        return family


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
        self.tenant_requests = Counter(
            "headway_proxy_tenant_requests", "requests let in by keys, of the key's tenant", "tenant"
        )
        self.tenant_tokens = Counter(
            "headway_proxy_tenant_tokens", "tokens that engines took for them: of prompts and of output", "tenant", "kind"
        )
        self.protocol_errors = Counter("headway_proxy_protocol_errors", "requests that were not HTTP as spoken here", "code")
        self.ttft = Histogram("headway_proxy_ttft_seconds", "sent to the engine -> first event with content, streams only")
        self.e2e = Histogram("headway_proxy_request_seconds", "request read -> last byte given to the client's connection")
        self.decision = Histogram("headway_proxy_decision_seconds", "question -> decision")
        self.prompt = Histogram("headway_proxy_prompt_seconds", "body -> token ids and block hashes")
        self.prompts_beside = Counter(
            "headway_proxy_prompts_beside", "prompts prepared beside the event loop, and by what: process or thread", "by"
        )
        self.prompt_process = Histogram(
            "headway_proxy_prompt_process_seconds", "what the process for long prompts took for one"
        )
        self.prompt_process_ends = Counter("headway_proxy_prompt_process_ends", "times that the process for long prompts ended")
        self.by_control = self.decisions.cell("control")
        self.prompts = Cells(self.chains.cell)
        self.good = Cells(lambda path: self.requests.cell(path_label(path), "200"))
        self.complete = self.attempts.cell(End.COMPLETE.name.lower())
        self.ends = {end: self.attempts.cell(end.name.lower()) for end in End}
        self.gauges: list[Gauge] = []
        self._registry = CollectorRegistry()
        self._registry.register(self)
        about.describe(self._registry, "dataplane")

    def gauge(self, name: str, help: str, read: Callable[[], float]) -> None:
        self.gauges.append(Gauge(name, help, read))

    def fold(self) -> None:
        """Bounds what is seen and not yet counted: called several times a second."""
        for histogram in (self.ttft, self.e2e, self.decision, self.prompt, self.prompt_process):
            histogram.fold()

    def collect(self) -> Iterator[Metric]:
        for metric in [*vars(self).values(), *self.gauges]:
            if isinstance(metric, Counter | Histogram | Gauge):
                yield metric.family()

    def page(self) -> bytes:
        """Prometheus text."""
        return generate_latest(self._registry)
