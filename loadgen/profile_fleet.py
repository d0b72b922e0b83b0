"""A running fleet behind its proxy, as a profile plays steps on it.

Requests go through the proxy with ids of this run; what the router knew and what became of them is read from its outcomes on
Redis; the engines' own pages are scraped beside. Where a fleet is emulated faster than what it imitates, the load is, too.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from types import TracebackType

import redis.asyncio

from loadgen import answer as ends
from loadgen import arrivals
from loadgen.client import Client, Exchange
from loadgen.profile import Result
from loadgen.profile_gauges import History, Scraper, engines
from loadgen.profile_outcomes import OutcomeReader
from loadgen.profile_rows import Played
from loadgen.rounds import Plan, Timing, requests_of
from loadgen.rows import Row, Trace
from loadgen.runner import Runner
from loadgen.sweep import Step
from loadgen.workload import Shape, TimedRequest
from runtime.clock import Clock

Switch = Callable[[str], Awaitable[None]]


class LiveFleet:
    """Use as an async context manager. ending: set it, and the step in progress is given up."""

    def __init__(
        self,
        client: Client,
        bus: redis.asyncio.Redis,
        *,
        shape: Shape,
        words: Sequence[str],
        run: str,
        speed: float,
        switch: Switch,
        ending: asyncio.Event,
        clock: Clock,
    ) -> None:
        """shape: model and endpoint; words: for prompts, as verified for the model's tokenizer; switch: to a policy."""
        self.workers = 0
        self.speed = speed
        self._client = client
        self._bus = bus
        self._shape = shape
        self._words = words
        self._run = run
        self._switch = switch
        self._ending = ending
        self._clock = clock
        self._policy = ""
        self._history = History()
        self._outcomes = OutcomeReader(bus)
        self._scraping: asyncio.Task[None] | None = None

    async def __aenter__(self) -> LiveFleet:
        """LoadError: no Redis, or nobody registered there."""
        urls = await engines(self._bus)
        self.workers = len(urls)
        await self._outcomes.begin()
        self._scraping = asyncio.create_task(Scraper(urls, self._history, self._clock).run())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._scraping is not None:
            self._scraping.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._scraping

    async def play(self, step: Step, rows: list[Row]) -> Result:
        if step.policy and step.policy != self._policy:
            await self._switch(step.policy)
            self._policy = step.policy
        result = Result()
        answered: list[str] = []

        def on_end(request: TimedRequest, exchange: Exchange) -> None:
            if exchange.end == ends.OK:
                answered.append(request.request_id)
                result.ended_s.append((exchange.ended - runner.start) * self.speed)
            elif exchange.end != ends.INTERRUPTED:
                result.failed += 1
                result.why = result.why or f"{exchange.end}: {exchange.error}"

        runner = Runner(self._client, on_end, clock=self._clock)
        finished = await runner.run(requests_of(self._plan(step, rows), 0), self._ending)
        result.interrupted = not finished
        if finished:
            outcomes = await self._outcomes.of(answered)
            result.played = [Played(one, self._history.before(one.worker, one.decided_at)) for one in outcomes]
        return result

    def _plan(self, step: Step, rows: list[Row]) -> Plan:
        """A salt of its own: no step finds the prompts of another in the caches."""
        name = f"{self._run}-{step.index}" if step.index >= 0 else f"{self._run}-probe{-step.index}"
        shape = Shape(
            model=self._shape.model,
            endpoint=self._shape.endpoint,
            ignore_eos=self._shape.ignore_eos,
            salt=name,
            request_id_prefix=name,
        )
        timing = Timing(rate=arrivals.steady(step.rate_rps * self.speed), process=step.process)
        return Plan(trace=Trace(name, rows, timed=False), timing=timing, shape=shape, words=self._words, seed=step.seed)
