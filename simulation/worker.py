"""One worker: the emulator's engine, stepped by virtual time, with everything that may go wrong with it.

What an iteration brings (tokens, KV events, gauges) becomes visible when it ends, as with a real engine. A killed engine loses
all of it; a hung one keeps it until it moves again; neither says so.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from emulator.block_pool import Event
from emulator.engine import Engine, Gauges, StepResult
from emulator.sequence import Request, Sequence
from simulation.timeline import Timeline


class Listener(Protocol):
    """The client end of one request at one engine. Times are virtual seconds."""

    def first_token(self, now: float) -> None: ...

    def finished(self, sequence: Sequence, now: float) -> None:
        """All tokens are there."""

    def broken(self, now: float) -> None:
        """The connection was reset."""


OnEvents = Callable[[list[Event], float], None]


@dataclass(slots=True)
class Counters:
    """Since the engine's start, as its /metrics would say."""

    generation_tokens: int = 0
    prompt_tokens: int = 0
    query_tokens: int = 0
    hit_tokens: int = 0
    preemptions: int = 0


@dataclass(slots=True)
class Busy:
    """Of all incarnations together. busy_s: virtual seconds with an iteration in progress."""

    busy_s: float = 0.0
    steps: int = 0
    preemptions: int = 0


@dataclass(slots=True)
class _Life:
    """One run of the engine."""

    engine: Engine
    gauges: Gauges = field(default_factory=Gauges)
    counters: Counters = field(default_factory=Counters)
    stepping: bool = False


class SimWorker:
    """build: an engine of its own for each incarnation (0, 1, ...)."""

    def __init__(self, name: str, timeline: Timeline, build: Callable[[int], Engine]) -> None:
        self.name = name
        self.url = f"http://{name}:8000"
        self.incarnation = 0
        self.token_at = 0.0
        """When an iteration that brought tokens ended last."""
        self.total = Busy()
        self.on_events: OnEvents = lambda _events, _now: None
        """Who follows the KV events."""
        self._timeline = timeline
        self._build = build
        self._life: _Life | None = _Life(build(0))
        self._listeners: dict[str, Listener] = {}
        self._slowdown = 1.0
        self._hung_until_s = 0.0

    # ------------------------------------------------------------------------------------------------- as others see it

    @property
    def alive(self) -> bool:
        return self._life is not None

    @property
    def hung(self) -> bool:
        return self._timeline.now() < self._hung_until_s

    @property
    def gauges(self) -> Gauges:
        """As of the last iteration's end. AssertionError: the engine is down."""
        return self._running().gauges

    @property
    def counters(self) -> Counters:
        return self._running().counters

    @property
    def engine(self) -> Engine:
        """For checkers. AssertionError: the engine is down."""
        return self._running().engine

    @property
    def num_listening(self) -> int:
        return len(self._listeners)

    # ---------------------------------------------------------------------------------------------------------- requests

    def submit(self, request: Request, listener: Listener) -> bool:
        """False: nobody accepts the connection."""
        if self._life is None:
            return False
        self._listeners[request.request_id] = listener
        self._life.engine.add(request, self._timeline.now())
        self._begin()
        return True

    def cancel(self, request_id: str) -> None:
        """Its client has gone: the slot is free again at once."""
        if self._listeners.pop(request_id, None) is not None and self._life is not None:
            self._life.engine.abort(request_id)

    # ------------------------------------------------------------------------------------------------------------ faults

    def slow_down(self, factor: float) -> None:
        """Every iteration takes `factor` times as long, restarts included; 1.0 ends it."""
        self._slowdown = factor
        if self._life is not None:
            self._life.engine.slowdown = factor

    def hang(self, for_s: float) -> None:
        """No iteration begins or ends for so long; /metrics goes on answering."""
        self._hung_until_s = max(self._hung_until_s, self._timeline.now() + for_s)

    def kill(self) -> None:
        """All connections are reset, the KV cache is gone."""
        if self._life is None:
            return
        self._life = None
        listeners, self._listeners = self._listeners, {}
        for listener in listeners.values():
            listener.broken(self._timeline.now())

    def restart(self) -> None:
        """Another incarnation, with an empty cache. Nothing happens where one runs."""
        if self._life is not None:
            return
        self.incarnation += 1
        self._hung_until_s = 0.0
        self._life = _Life(self._build(self.incarnation))
        self._life.engine.slowdown = self._slowdown

    # ------------------------------------------------------------------------------------------------------------- steps

    def _running(self) -> _Life:
        assert self._life is not None, f"{self.name} is down"
        return self._life

    def _begin(self) -> None:
        life = self._running()
        if life.stepping or not life.engine.has_work:
            return
        life.stepping = True
        now = self._timeline.now()
        if now < self._hung_until_s:
            self._timeline.at(self._hung_until_s, self._wake, life)
            return
        result = life.engine.step(now, brief=True)
        self._timeline.at(now + result.duration_s, self._end, life, result)

    def _wake(self, life: _Life) -> None:
        if life is self._life:
            life.stepping = False
            self._begin()

    def _end(self, life: _Life, result: StepResult) -> None:
        if life is not self._life:
            return
        now = self._timeline.now()
        if now < self._hung_until_s:
            self._timeline.at(self._hung_until_s, self._end, life, result)
            return
        life.stepping = False
        life.gauges = result.gauges
        self._count(life.counters, result)
        if result.num_outputs:
            self.token_at = now
        if result.events:
            self.on_events(result.events, now)
        self._deliver(result, now)
        if life is self._life:
            self._begin()

    def _count(self, counters: Counters, result: StepResult) -> None:
        total = self.total
        total.busy_s += result.duration_s
        total.steps += 1
        total.preemptions += result.num_preempted
        counters.preemptions += result.num_preempted
        counters.generation_tokens += result.num_outputs
        for sequence in result.started:
            counters.prompt_tokens += sequence.num_prompt
            counters.query_tokens += sequence.num_prompt
            counters.hit_tokens += sequence.num_cached

    def _deliver(self, result: StepResult, now: float) -> None:
        listeners = self._listeners
        for sequence, _, finish in result.outputs:
            if finish is not None:
                listener = listeners.pop(sequence.request.request_id, None)
                if listener is None:
                    continue
                if sequence.num_output <= 1:
                    listener.first_token(now)
                listener.finished(sequence, now)
            elif len(sequence.tokens) == sequence.num_prompt + 1:
                listener = listeners.get(sequence.request.request_id)
                if listener is not None:
                    listener.first_token(now)
