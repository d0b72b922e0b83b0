"""Open loop: every request is sent at its scheduled time, whatever became of those before it.

A closed loop waits for answers and so asks less of a fleet that is slow, which hides exactly what is to be measured. Where
this process itself cannot keep up, the schedule stays as it is and the lateness of each request is recorded.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from loadgen import answer as ends
from loadgen.client import Exchange
from loadgen.workload import TimedRequest
from runtime.clock import Clock

LOOKAHEAD_REQUESTS_MAX = 32
"""Bodies built before they are due, so that a burst finds them ready."""
IN_FLIGHT_MAX_DEFAULT = 8192


class Sender(Protocol):
    async def send(self, request: TimedRequest, exchange: Exchange) -> None:
        """Fills in the exchange; no failure of the request is raised."""


OnEnd = Callable[[TimedRequest, Exchange], None]


@dataclass(slots=True)
class Counts:
    """Where a run stands."""

    sent: int = 0
    in_flight: int = 0
    in_flight_max: int = 0
    ended: int = 0
    failed: int = 0
    shed: int = 0
    not_sent: int = 0
    lateness_s_max: float = 0.0


class Runner:
    """One run. `start` is the clock's time of at_s = 0."""

    def __init__(self, sender: Sender, on_end: OnEnd, *, clock: Clock, in_flight_max: int = IN_FLIGHT_MAX_DEFAULT) -> None:
        """on_end: told of every request once, sent or not. in_flight_max: beyond it a request is counted as NOT_SENT."""
        self._sender = sender
        self._on_end = on_end
        self._clock = clock
        self._in_flight_max = in_flight_max
        self._tasks: set[asyncio.Task[None]] = set()
        self.counts = Counts()
        self.start = 0.0

    async def run(self, requests: Iterator[TimedRequest], ending: asyncio.Event) -> bool:
        """False: `ending` was set before all had ended; what was in flight is INTERRUPTED."""
        self.start = self._clock.now()
        ended_early = asyncio.create_task(ending.wait())
        sending = asyncio.create_task(self._send_all(requests))
        try:
            await asyncio.wait({sending, ended_early}, return_when=asyncio.FIRST_COMPLETED)
            while sending.done() and self._tasks and not ending.is_set():
                await asyncio.wait({*self._tasks, ended_early}, return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                sending.result()
            return sending.done() and not self._tasks
        finally:
            await _cancel(sending, ended_early, *self._tasks)

    async def _send_all(self, requests: Iterator[TimedRequest]) -> None:
        ahead: deque[TimedRequest] = deque()
        while True:
            if not ahead and not _fill(ahead, requests):
                return
            while (left_s := self.start + ahead[0].at_s - self._clock.now()) > 0:
                more = len(ahead) < LOOKAHEAD_REQUESTS_MAX and _fill(ahead, requests)
                await asyncio.sleep(0 if more else left_s)
            self._start_one(ahead.popleft())
            await asyncio.sleep(0)  # lets it go out before the next

    def _start_one(self, request: TimedRequest) -> None:
        counts = self.counts
        if counts.in_flight >= self._in_flight_max:
            now = self._clock.now()
            counts.not_sent += 1
            error = f"{self._in_flight_max} requests were in flight already"
            self._end(request, Exchange(now, ended=now, end=ends.NOT_SENT, error=error))
            return
        counts.sent += 1
        counts.in_flight += 1
        counts.in_flight_max = max(counts.in_flight_max, counts.in_flight)
        task = asyncio.create_task(self._one(request))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _one(self, request: TimedRequest) -> None:
        exchange = Exchange(self._clock.now())
        self.counts.lateness_s_max = max(self.counts.lateness_s_max, self.lateness_s(request, exchange))
        try:
            await self._sender.send(request, exchange)
        finally:
            self.counts.in_flight -= 1
            self._end(request, exchange)

    def lateness_s(self, request: TimedRequest, exchange: Exchange) -> float:
        """How long after its scheduled time a request began to be sent."""
        return exchange.sent - (self.start + request.at_s)

    def _end(self, request: TimedRequest, exchange: Exchange) -> None:
        counts = self.counts
        counts.ended += 1
        counts.shed += exchange.end == ends.SHED
        counts.failed += exchange.end not in (ends.OK, ends.SHED, ends.INTERRUPTED)
        self._on_end(request, exchange)


def _fill(ahead: deque[TimedRequest], requests: Iterator[TimedRequest]) -> bool:
    request = next(requests, None)
    if request is None:
        return False
    ahead.append(request)
    return True


async def _cancel(*tasks: asyncio.Task[None] | asyncio.Task[bool]) -> None:
    """Ends them and waits until they have."""
    for task in tasks:
        task.cancel()
    for task in tasks:
        with contextlib.suppress(asyncio.CancelledError):
            await task
