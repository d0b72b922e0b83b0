"""The trainer in virtual time: a run's own outcomes become models, which the run then serves.

It is the trainer's training on the same samples, without its gate and its shadow: at a pace, from the latest samples, and the
model is there some virtual seconds after its samples were cut. Models made elsewhere may be handed in, too, each at its time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from contract.outcome import Outcome
from controlplane.predictor import Forecaster, residuals
from prediction import bundle, dataset, predictor
from prediction.bundle import Bundle
from prediction.dataset import is_sample
from simulation.timeline import Timeline
from trainer.train import TrainError, train

SAMPLES_MIN = 300


@dataclass(frozen=True, slots=True)
class Learning:
    """How a run learns. every_s: between trainings, virtual seconds, 0 for none; takes_s: from the cut of the samples to the
    model's serving; samples_max: the latest so many; kind: of prediction.predictor.LOADERS; given: (virtual seconds since the
    first arrival could come, encoded bundle), served from then on."""

    every_s: float = 60.0
    takes_s: float = 5.0
    samples_max: int = 20_000
    kind: str = "lightgbm"
    given: tuple[tuple[float, bytes], ...] = ()


class SimTrainer:
    """forecaster: of the control plane that lives now."""

    def __init__(self, timeline: Timeline, learning: Learning, forecaster: Callable[[], Forecaster], *, seed: int) -> None:
        self._timeline = timeline
        self._learning = learning
        self._forecaster = forecaster
        self._seed = seed
        self._samples: deque[Outcome] = deque(maxlen=learning.samples_max)
        self._serving: Bundle | None = None
        self.models: list[tuple[float, bytes]] = []
        """Trained in this run: virtual seconds and encoded bundle."""

    def begin(self, at_s: float) -> None:
        """at_s: when the first request may come."""
        for when_s, packed in self._learning.given:
            self._timeline.at(at_s + when_s, self._serve, bundle.decode(packed))
        if self._learning.every_s > 0:
            self._timeline.at(at_s + self._learning.every_s, self._train)

    def record(self, outcome: Outcome) -> None:
        if is_sample(outcome):
            self._samples.append(outcome)

    def restarted(self) -> None:
        """Another control plane finds what serves on the bus."""
        if self._serving is not None:
            self._serve(self._serving)

    def _train(self) -> None:
        self._timeline.after(self._learning.every_s, self._train)
        if len(self._samples) < SAMPLES_MIN:
            return
        samples = dataset.of_table(dataset.from_outcomes(self._samples))
        number = len(self.models) + 1
        try:
            trained = train(
                samples,
                kind=self._learning.kind,
                model_id=f"sim-{number}",
                seed=self._seed,
                now_unix=self._timeline.unix(),
            )
        except TrainError:
            return
        self.models.append((self._timeline.now(), bundle.encode(trained.bundle)))
        self._timeline.after(self._learning.takes_s, self._serve, trained.bundle)

    def _serve(self, model: Bundle) -> None:
        self._serving = model
        serving, forecaster = predictor.load(model), self._forecaster()
        forecaster.swap(serving, model.manifest.model_id, residuals(serving, forecaster.recent()))
