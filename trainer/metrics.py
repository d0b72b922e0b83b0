"""The trainer's metrics: names declared once, figures read when somebody scrapes."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from runtime import about
from trainer.follow import Follow
from trainer.lifecycle import Lifecycle
from trainer.sample_log import SampleLog
from trainer.workshop import Workshop

PREFIX = "headway_trainer_"


class TrainerCollector(Collector):
    def __init__(self, *, follow: Follow, samples: SampleLog, lifecycle: Lifecycle, workshop: Workshop) -> None:
        self._follow = follow
        self._samples = samples
        self._lifecycle = lifecycle
        self._workshop = workshop

    def collect(self) -> Iterator[Metric]:
        follow, samples, lifecycle, workshop = self._follow, self._samples, self._lifecycle, self._workshop
        for name, text, value in (
            ("outcomes", "Outcomes read from Redis.", follow.outcomes),
            ("outcomes_unreadable", "Outcomes of another build.", follow.unreadable),
            ("outcomes_duplicate", "Samples that came twice.", samples.duplicates),
            ("trainings", "Trainings that ended with a model.", workshop.trainings),
            ("training_failures", "Trainings that ended without.", workshop.failures),
            ("promotions", "Models that began to serve.", lifecycle.promotions),
            ("rejections", "Models that failed the gate or the shadow.", lifecycle.rejections),
            ("rollbacks", "Models that were taken out of service again.", lifecycle.rollbacks),
        ):
            yield CounterMetricFamily(PREFIX + name, text, value=value)
        for name, text, level in (
            ("samples", "Samples at hand.", len(samples)),
            ("samples_pending", "Samples that are not on disk yet.", samples.pending),
            ("redis_connected", "1 while Redis answers.", follow.connected),
            ("training", "1 while a training runs.", workshop.busy),
            ("training_seconds", "What the last training took.", workshop.last_s),
            ("models", "Models on disk.", len(lifecycle.registry.ids())),
        ):
            yield GaugeMetricFamily(PREFIX + name, text, value=float(level))
        yield from self._live()

    def _live(self) -> Iterator[Metric]:
        """Of the models in use, by what they are used for."""
        state = self._lifecycle.registry.state
        loss = GaugeMetricFamily(PREFIX + "live_loss", "Pinball loss on the latest outcomes, log seconds.", labels=["role"])
        covered = GaugeMetricFamily(PREFIX + "live_coverage", "Share of the truth at or below the p90.", labels=["role"])
        for role, model_id in (("serving", state.serving), ("previous", state.previous), ("shadow", state.shadow)):
            live = self._lifecycle.live(model_id) if model_id else None
            if live is not None:
                loss.add_metric([role], live.loss)
                covered.add_metric([role], live.coverage)
        yield from (loss, covered)


def registry(collector: TrainerCollector) -> CollectorRegistry:
    """One of its own: no module state."""
    made = CollectorRegistry()
    made.register(collector)
    about.describe(made, "trainer")
    return made
