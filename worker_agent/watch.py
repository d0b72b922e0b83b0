"""What the agent believes of its engine's life: up, gone, asleep, restarted. Pure: told the outcome of each scrape.

The order matters: an engine that answers again is only READY after it was decided whether it is the same one, so that no
report invites requests to a cache that is gone.
"""

from __future__ import annotations

from contract.keyspace import EngineState
from worker_agent.engine_metrics import EngineMetrics, restart_reason


class EngineWatch:
    """`state` as reported; `metrics` the last figures and `at` when they came (monotonic seconds)."""

    def __init__(self) -> None:
        self.state = EngineState.UNREACHABLE
        self.metrics: EngineMetrics | None = None
        self.at = 0.0
        self._was_gone = False

    @property
    def process_start_s(self) -> float:
        return self.metrics.process_start_s if self.metrics is not None else 0.0

    @property
    def was_gone(self) -> bool:
        """Whether it has said nothing since it was gone: its figures will tell who it is."""
        return self._was_gone

    def gone(self) -> None:
        """Nothing listens there, or nothing answers."""
        self.state = EngineState.UNREACHABLE
        self._was_gone = True

    def silent(self, *, healthy: bool) -> None:
        """/metrics did not answer in time, or not with figures, and /health was asked.

        What was gone stays gone until its figures say who it is.
        """
        if self._was_gone:
            return
        self.state = EngineState.READY if healthy and self.metrics is not None else EngineState.UNHEALTHY

    def restart_reason(self, metrics: EngineMetrics) -> str:
        """Why these figures are of another run of the engine than the last ones, "" where they need not be."""
        if self.metrics is None:
            return ""
        reason = restart_reason(self.metrics, metrics)
        if not reason and self._was_gone and not (self.process_start_s and metrics.process_start_s):
            return "it was gone and its page has no start time"
        return reason

    def answered(self, metrics: EngineMetrics, now: float, *, healthy: bool) -> bool:
        """New figures. True: it has just fallen asleep, and its cache went with that."""
        fell_asleep = metrics.asleep and self.state is not EngineState.SLEEPING
        self.metrics, self.at, self._was_gone = metrics, now, False
        self.state = EngineState.SLEEPING if metrics.asleep else EngineState.READY if healthy else EngineState.UNHEALTHY
        return fell_asleep
