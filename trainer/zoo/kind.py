"""What every kind of model is trained from, and the shape of its training function."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import numpy.typing as npt

from prediction import derive

Floats = npt.NDArray[np.float64]
Progress = Callable[[float], None]
"""Told how much of the work is done, 0 to 1."""

THREADS = 1
"""Of one training. It shares its machine with what it trains for, and threads of OpenMP that wait for each other on a busy core
spin: two of them were seen to spend 24 s of CPU on what one does in 2 s."""


class TrainingStopped(Exception):
    """Raised by a progress callback to end a training early."""


@dataclass(frozen=True)
class Training:
    """Samples to learn from, oldest first: rows (n, len(FEATURES)), ttft_s above 0 and decided_at (n,), worker names (n,)."""

    rows: Floats
    ttft_s: Floats
    decided_at: Floats
    worker: npt.NDArray[np.object_]

    @cached_property
    def columns(self) -> Floats:
        """(n, len(derive.COLUMNS))."""
        return derive.inputs(self.rows)

    @cached_property
    def log_ttft(self) -> Floats:
        return np.log(self.ttft_s)

    @cached_property
    def target(self) -> Floats:
        """log (ttft / estimate): what most kinds learn."""
        return self.log_ttft - derive.log_estimate(self.columns)

    def __len__(self) -> int:
        return len(self.ttft_s)


class Fit(Protocol):
    def __call__(self, training: Training, seed: int, progress: Progress) -> dict[str, bytes]:
        """The model's files by name, its calibration not among them."""
