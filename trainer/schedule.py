"""When a training is due. Pure."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Cadence:
    """As in the settings. Seconds and counts of samples."""

    every_s: float
    pause_s: float
    samples_min: int
    new_samples_min: int


@dataclass(slots=True)
class Schedule:
    """taken: samples ever taken; a restart begins as if a training had just ended, with what is on disk as new."""

    cadence: Cadence
    trained_at: float
    trained_taken: int = 0
    ever: bool = False
    """Whether there has been a training, by this process or, where a model serves, by one before."""

    def due(self, now: float, *, samples: int, taken: int, drifted: bool) -> str:
        """Why, in a word, or "". samples: at hand; drifted: the serving model does worse than when it was judged."""
        cadence = self.cadence
        if samples < cadence.samples_min:
            return ""
        fresh = taken - self.trained_taken
        if not self.ever:
            return "first"
        if now - self.trained_at < cadence.pause_s or fresh < cadence.new_samples_min:
            return ""
        if drifted:
            return "drift"
        return "schedule" if now - self.trained_at >= cadence.every_s else ""

    def trained(self, now: float, *, taken: int) -> None:
        """A training has ended, well or not."""
        self.trained_at, self.trained_taken, self.ever = now, taken, True
