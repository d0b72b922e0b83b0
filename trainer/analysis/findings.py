"""All findings of one data set. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from prediction.dataset import Dataset
from trainer.analysis import knee, relations, signals, states
from trainer.analysis.knee import Knee
from trainer.analysis.relations import Correlation, Importance
from trainer.analysis.signals import Signals
from trainer.analysis.states import States

THREADS = 1
"""Where two cores are shared, the threads of K-means and t-SNE wait for each other: ten times the time."""
Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Findings:
    name: str
    signals: Signals
    states: States
    correlations: dict[str, dict[str, Correlation]]
    importance: Importance
    knees: list[Knee]


def find(samples: Dataset, *, name: str, seed: int = 0, tell: Tell = lambda _: None) -> Findings:
    """tell: what is being done. DatasetError: too few samples. ValueError: nothing varies."""
    found = signals.of(samples)
    tell(f"states of {len(found)} samples")
    with threadpool_limits(THREADS):
        kinds = states.find(found, seed=seed)
    tell("correlations and importance")
    return Findings(
        name=name,
        signals=found,
        states=kinds,
        correlations=relations.correlations(found),
        importance=relations.importance(found, seed=seed),
        knees=knee.find(found),
    )
