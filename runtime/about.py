"""What every process says about itself to whoever scrapes it: its build, and what it takes of the machine."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import metadata

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

UNKNOWN = "unknown"


def version() -> str:
    """Of the installed package, such as "0.1.0"; UNKNOWN where its files are here and it was not installed."""
    try:
        return metadata.version("headway")
    except metadata.PackageNotFoundError:
        return UNKNOWN


class _Build(Collector):
    def __init__(self, process: str) -> None:
        self._labels = (process, version())

    def collect(self) -> Iterator[Metric]:
        family = GaugeMetricFamily("headway_build_info", "always 1; which build this is", labels=("process", "version"))
        family.add_metric(self._labels, 1.0)
        yield family


def describe(registry: CollectorRegistry, process: str) -> None:
    """Adds `headway_build_info{process,version}`, and the usual `process_...` metrics: CPU seconds, memory, open files."""
    registry.register(_Build(process))
    ProcessCollector(registry=registry)
