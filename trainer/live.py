"""How models do on outcomes as they come: the latest of each, in windows that end at the same outcome. Pure."""

from __future__ import annotations

from collections import deque

import numpy as np
import numpy.typing as npt

from prediction import scores
from trainer.rules import Live

Floats = npt.NDArray[np.float64]

WINDOW_MAX = 2_000


class LiveScores:
    """Losses of each model that is followed, newest last. Whatever is added is added for every model, so windows line up."""

    def __init__(self, window_max: int = WINDOW_MAX) -> None:
        self._window_max = window_max
        self._windows: dict[str, deque[tuple[float, bool]]] = {}

    def follow(self, model_ids: set[str]) -> None:
        """Forgets every other model."""
        for gone in set(self._windows) - model_ids:
            del self._windows[gone]

    def restart(self, model_id: str) -> None:
        """Its window begins again."""
        self._windows.pop(model_id, None)

    def add(self, model_id: str, ttft_s: Floats, p50_s: Floats, p90_s: Floats) -> None:
        """Outcomes in their order, each (n,), with what the model says of them."""
        window = self._windows.setdefault(model_id, deque(maxlen=self._window_max))
        truth = np.log(ttft_s)
        losses = scores.pinball(truth, np.log(p50_s), 0.5) + scores.pinball(truth, np.log(p90_s), 0.9)
        window.extend(zip(losses.tolist(), (ttft_s <= p90_s).tolist(), strict=True))

    def count(self, model_id: str) -> int:
        return len(self._windows.get(model_id, ()))

    def of(self, model_id: str, latest: int) -> Live | None:
        """Over its latest outcomes. None: there are not so many."""
        window = self._windows.get(model_id)
        if window is None or len(window) < latest or latest < 1:
            return None
        taken = list(window)[-latest:]
        return Live(latest, float(np.mean([loss for loss, _ in taken])), float(np.mean([covered for _, covered in taken])))
