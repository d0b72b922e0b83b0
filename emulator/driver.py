"""The engine in real time: one task that steps it, sleeps until the step is over, and hands out what it brought.

A step begins where the one before ended, not when the loop happened to wake, so that timer granularity and a busy machine
delay single tokens but do not slow the engine down. What the loop cannot catch up with within LAG_S_MAX is forgotten.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Protocol

from emulator.engine import Engine, StepResult
from emulator.errors import ApiError
from emulator.metrics import EngineMetrics
from emulator.publisher import Publisher
from emulator.sequence import FinishReason, Request
from emulator.sequence import Sequence as EngineSequence
from runtime.clock import Clock
from runtime.tasks import happened

LAG_S_MAX = 0.25
"""How far the engine may be behind its own schedule and still catch up."""


class Sink(Protocol):
    """Where a request's tokens go."""

    def deliver(self, index: int, token: int, finish: FinishReason | None) -> bool: ...

    def started(self, index: int, sequence: EngineSequence) -> None: ...

    def ended(self, index: int, sequence: EngineSequence) -> None: ...

    def abort(self) -> None: ...

    def fail(self, error: ApiError) -> None: ...


class Driver:
    """Owns the engine. Everything here runs on the event loop."""

    def __init__(self, engine: Engine, metrics: EngineMetrics, publisher: Publisher | None, clock: Clock) -> None:
        self.engine = engine
        self.metrics = metrics
        self.publisher = publisher
        self._clock = clock
        self._wake = asyncio.Event()
        self._sinks: dict[str, tuple[Sink, int]] = {}
        self._idle = asyncio.Event()
        self._idle.set()
        self._in_step = False
        self._is_stale = False
        self._due = 0.0  # when the step under way ends, or the last one did
        self.death: ApiError | None = None
        self.is_hung = False
        self.is_paused = False

    @property
    def num_waiting(self) -> int:
        return self.engine.num_queued

    def state(self) -> dict[str, object]:
        """What there is to tell where requests wait here."""
        scheduler = self.engine.scheduler
        return {
            "running": len(scheduler.running),
            "waiting": len(scheduler.waiting),
            "queued": self.engine.num_queued,
            "sinks": len(self._sinks),
            "in_step": self._in_step,
            "due_in": round(self._due - self._clock.now(), 3),
            "hung": self.is_hung,
            "paused": self.is_paused,
            "free_blocks": self.engine.pool.num_free,
            "dead": self.death is not None,
        }

    async def wait_idle(self, timeout_s: float) -> bool:
        """Until no request is inside. False: some still are after `timeout_s`."""
        return await happened(self._idle, timeout_s)

    def submit(self, sink: Sink, requests: Sequence[Request]) -> None:
        """Queue the sequences of one call; their tokens arrive as choice 0, 1, ... ValueError: one of them cannot be."""
        now = self._clock.now()
        for index, request in enumerate(requests):
            self.engine.add(request, now)
            self._sinks[request.request_id] = (sink, index)
        self._idle.clear()
        self._wake.set()

    def cancel(self, request_ids: Sequence[str]) -> None:
        """The client left: slots and blocks are free at once. Ids that have ended already are ignored."""
        for request_id in request_ids:
            self._sinks.pop(request_id, None)
            if self.engine.abort(request_id):
                self.metrics.forget(request_id)
                self._is_stale = True
        self._note_idle()
        if self._is_stale and not self._in_step:
            self._refresh_gauges()

    def resume(self) -> None:
        """After `is_hung` or `is_paused` was taken back."""
        self._wake.set()

    def abort_all(self) -> None:
        """End every request with the reason `abort`."""
        for sink in self._drop_all():
            sink.abort()

    def die(self, error: ApiError) -> None:
        """The engine process is gone: every request fails, and no other is taken."""
        self.death = error
        for sink in self._drop_all():
            sink.fail(error)

    async def run(self) -> None:
        """Step until cancelled."""
        due = self._clock.now()
        while True:
            if not self._may_step():
                self._wake.clear()
                await self._wake.wait()
                due = self._clock.now()
                continue
            if self._clock.now() - due > LAG_S_MAX:
                due = self._clock.now()
            result = self.engine.step(due)
            due += result.duration_s
            self._due = due
            self._in_step = True
            await asyncio.sleep(max(0.0, due - self._clock.now()))
            while self.is_hung:
                self._wake.clear()
                await self._wake.wait()
                due = self._clock.now()
            self._in_step = False
            self._deliver(result, due)

    def _may_step(self) -> bool:
        return self.engine.has_work and not self.is_paused and not self.is_hung and self.death is None

    def _deliver(self, result: StepResult, end_s: float) -> None:
        unix_s = self._clock.unix()
        if self.publisher is not None:
            self.publisher.publish(result.events, unix_s)
        # A client that left during the step gets nothing and is counted nowhere.
        result.outputs[:] = [output for output in result.outputs if output.sequence.request.request_id in self._sinks]
        self.metrics.step(result, end_s, unix_s)
        for sequence in result.started:
            entry = self._sinks.get(sequence.request.request_id)
            if entry is not None:
                entry[0].started(entry[1], sequence)
        for sequence, token, finish in result.outputs:
            request_id = sequence.request.request_id
            sink, index = self._sinks[request_id]
            if finish is not None:
                del self._sinks[request_id]
                sink.ended(index, sequence)
            if sink.deliver(index, token, finish):
                self.metrics.finish(sequence, FinishReason.STOP, end_s)
                self.cancel((request_id,))
        self._note_idle()
        if self._is_stale:
            self._refresh_gauges()

    def _note_idle(self) -> None:
        if not self._sinks:
            self._idle.set()

    def _refresh_gauges(self) -> None:
        self._is_stale = False
        self.metrics.set_gauges(self.engine.gauges(), self._clock.unix())

    def _drop_all(self) -> list[Sink]:
        sinks = list(dict.fromkeys(sink for sink, _ in self._sinks.values()))
        self._sinks.clear()
        self._idle.set()
        for sequence in self.engine.abort_all():
            self.metrics.forget(sequence.request.request_id)
        self._refresh_gauges()
        return sinks
