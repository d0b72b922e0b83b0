"""What is wrong with a worker, in one sentence that an operator should read; and the log line when that changes."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable

from contract.keyspace import EngineState
from controlplane.breaker import BreakerState
from controlplane.endpoint import Endpoint
from controlplane.index_state import IndexState
from controlplane.progress import stalled_s

log = logging.getLogger(__name__)

SILENT_S = 1.5
"""An agent speaks ten times a second; one that is silent this long has something to explain."""
STALLED_S = 10.0
FIGURES_OLD_S = 3.0
"""A scrape takes milliseconds, of a saturated server a second or two."""

_NUMBERS = re.compile(r"[\d.]+")


def alarm(endpoint: Endpoint, *, index_state: IndexState, mismatch: str, silent_s: float, now: float) -> str:
    """The most urgent sentence, or none. mismatch: the self-check's; silent_s: how long its agent could have spoken."""
    if silent_s > SILENT_S:
        return f"its agent is silent for {silent_s:.1f} s"
    if not endpoint.alive:
        return "it has left"
    if endpoint.state != EngineState.READY:
        return f"its agent says the engine is {endpoint.state.name.lower()}"
    state = endpoint.breaker.view(now)
    if state != BreakerState.CLOSED:
        return f"breaker {state.name.lower().replace('_', ' ')}: {endpoint.breaker.reason}"
    still_s = stalled_s(endpoint, now)
    if still_s > STALLED_S:
        return f"engine may hang: {endpoint.load.active} requests there, no progress for {still_s:.0f} s"
    figures_s = now - endpoint.reported_at
    if figures_s > FIGURES_OLD_S:
        return f"its engine has not answered its agent for {figures_s:.0f} s"
    if mismatch:
        return mismatch
    return "its index is known to be wrong: no prefix credit is given" if index_state == IndexState.DEGRADED else ""


class AlarmLog:
    """One line when a worker's alarm comes, changes its nature, or goes; numbers in it may run without a line."""

    def __init__(self, endpoints: Callable[[], Iterable[Endpoint]], alarm_of: Callable[[Endpoint, float], str]) -> None:
        self._endpoints = endpoints
        self._alarm_of = alarm_of
        self._said: dict[str, str] = {}

    def look(self, now: float) -> None:
        current = {endpoint.name: self._alarm_of(endpoint, now) for endpoint in self._endpoints()}
        for worker, text in current.items():
            if _nature(text) != _nature(self._said.get(worker, "")):
                self._say(worker, text)
        self._said = current

    def _say(self, worker: str, text: str) -> None:
        if text:
            log.warning("worker %s: %s", worker, text)
        else:
            log.info("worker %s is well again", worker)


def _nature(text: str) -> str:
    return _NUMBERS.sub("", text)
