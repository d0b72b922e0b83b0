"""Metrics of learned TTFT: which model serves, how far off it is at each worker, how often it did not decide."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Protocol

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from controlplane.predictor import Forecaster
from controlplane.ranking import Tally
from prediction.bundle import Manifest

MODEL_SERVING = "headway_model_serving"
MODEL_AGE = "headway_model_age_seconds"
MODEL_SWAPS = "headway_model_swaps"
MODEL_REFUSALS = "headway_model_refusals"
RANKED = "headway_predicted_decisions"
FELL_BACK = "headway_prediction_fallbacks"
WORKER_CORRECTION = "headway_worker_prediction_correction"
WORKER_LOG_ERROR = "headway_worker_prediction_log_error"


class Store(Protocol):
    """What is read of the model store."""

    manifest: Manifest | None
    swaps: int
    refusals: int


class ModelCollector(Collector):
    """tallies: by policy; unix: Unix time, s."""

    def __init__(
        self, store: Store, forecaster: Forecaster, tallies: Mapping[str, Tally], *, unix: Callable[[], float]
    ) -> None:
        self._store = store
        self._forecaster = forecaster
        self._tallies = tallies
        self._unix = unix

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterator[Metric]:
        yield from self._model()
        ranked = CounterMetricFamily(RANKED, "decisions made by a prediction", labels=("policy",))
        fell_back = CounterMetricFamily(
            FELL_BACK, "decisions that a policy which predicts left to its scorers", labels=("policy", "reason")
        )
        for policy, tally in self._tallies.items():
            ranked.add_metric((policy,), tally.ranked)
            for reason, count in tally.fell_back.items():
                fell_back.add_metric((policy, reason), count)
        yield ranked
        yield fell_back
        yield from self._workers()

    def _model(self) -> Iterator[Metric]:
        manifest = self._store.manifest
        serving = GaugeMetricFamily(MODEL_SERVING, "1 for the model that serves", labels=("model_id", "kind"))
        age = GaugeMetricFamily(MODEL_AGE, "since the model that serves was trained")
        if manifest is not None:
            serving.add_metric((manifest.model_id, manifest.kind), 1.0)
            age.add_metric((), max(0.0, self._unix() - manifest.trained_at))
        yield serving
        yield age
        yield CounterMetricFamily(MODEL_SWAPS, "times that another model, or none, began to serve", value=self._store.swaps)
        yield CounterMetricFamily(MODEL_REFUSALS, "models that could not serve", value=self._store.refusals)

    def _workers(self) -> Iterator[Metric]:
        factor = GaugeMetricFamily(WORKER_CORRECTION, "what predictions for it are multiplied by", labels=("worker",))
        error = GaugeMetricFamily(
            WORKER_LOG_ERROR, "recent mean of |log (TTFT / predicted median)|, corrections included", labels=("worker",)
        )
        for worker, correction in self._forecaster.corrections().items():
            factor.add_metric((worker,), correction.factor)
            error.add_metric((worker,), correction.error)
        yield factor
        yield error
