"""One worker: the emulator's engine, or several of them as data-parallel ranks behind one address, stepped by virtual time,
with everything that may go wrong with it.

What an iteration brings (tokens, KV events, gauges) becomes visible when it ends, as with a real engine. A killed engine loses
all of it; a hung one keeps it until it moves again; neither says so.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from emulator.block_pool import Event
from emulator.engine import Engine, Gauges, StepResult
from emulator.ranks import Balancer, Figures
from emulator.sequence import Request, Sequence
from simulation.timeline import Timeline


class Listener(Protocol):
    """The client end of one request at one engine. Times are virtual seconds."""

    def first_token(self, now: float) -> None: ...

    def finished(self, sequence: Sequence, now: float) -> None:
        """All tokens are there."""

    def broken(self, now: float) -> None:
        """The connection was reset."""


OnEvents = Callable[[int, list[Event], float], None]
"""(rank, events, now)"""


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
    """Of all incarnations together. busy_s: virtual seconds with an iteration in progress, a rank's by their number."""

    busy_s: float = 0.0
    steps: int = 0
    preemptions: int = 0


@dataclass(slots=True, eq=False)
class Rank:
    """One engine of a run. gauges: as of its last iteration's end."""

    number: int
    engine: Engine
    gauges: Gauges = field(default_factory=Gauges)
    counters: Counters = field(default_factory=Counters)
    stepping: bool = False

    def figures(self) -> Figures:
        """As the balancer is told."""
        return Figures(self.gauges.waiting, self.gauges.running, self.gauges.usage)


class _Life:
    """One run of all engines of a worker."""

    __slots__ = ("balancer", "ranks")

    def __init__(self, engines: list[Engine]) -> None:
        self.ranks = tuple([Rank(number, engine) for number, engine in enumerate(engines)])
        self.balancer = Balancer([rank.figures for rank in self.ranks])


class SimWorker:
    """build: an engine of its own for each incarnation (0, 1, ...) and rank; ranks: how many of them there are."""

    def __init__(self, name: str, timeline: Timeline, build: Callable[[int, int], Engine], ranks: int = 1) -> None:
        self.name = name
        self.url = f"http://{name}:8000"
        self.incarnation = 0
        self.num_ranks = ranks
        self.token_ats = [0.0] * ranks
        """When an iteration that brought tokens ended last, by rank."""
        self.total = Busy()
        self.on_events: OnEvents = lambda _rank, _events, _now: None
        """Who follows the KV events."""
        self._timeline = timeline
        self._build = build
        self._life: _Life | None = self._begun()
        self._listeners: dict[str, tuple[Listener, int]] = {}  # with the rank where each is
        self._slowdown = 1.0
        self._hung_until_s = [0.0] * ranks

    # ------------------------------------------------------------------------------------------------- as others see it

    @property
    def alive(self) -> bool:
        return self._life is not None

    @property
    def ranks(self) -> tuple[Rank, ...]:
        """AssertionError: the engine is down."""
        return self._running().ranks

    @property
    def num_listening(self) -> int:
        return len(self._listeners)

    # ---------------------------------------------------------------------------------------------------------- requests

    def submit(self, request: Request, listener: Listener, rank: int | None = None) -> bool:
        """rank: that the request names; None: none. False: nobody accepts the connection."""
        if self._life is None:
            return False
        now = self._timeline.now()
        rank = self._life.balancer.choose(rank, now)
        self._listeners[request.request_id] = listener, rank
        there = self._life.ranks[rank]
        there.engine.add(request, now)
        self._begin(there)
        return True

    def cancel(self, request_id: str) -> None:
        """Its client has gone: the slot is free again at once."""
        listening = self._listeners.pop(request_id, None)
        if listening is not None and self._life is not None:
            self._life.balancer.ended(listening[1])
            self._life.ranks[listening[1]].engine.abort(request_id)

    # ------------------------------------------------------------------------------------------------------------ faults

    def slow_down(self, factor: float) -> None:
        """Every iteration takes `factor` times as long, restarts included; 1.0 ends it."""
        self._slowdown = factor
        for rank in () if self._life is None else self._life.ranks:
            rank.engine.slowdown = factor

    def hang(self, for_s: float, rank: int = -1) -> None:
        """No iteration begins or ends for so long, at this rank or, -1, at any; /metrics goes on answering."""
        until_s = self._timeline.now() + for_s
        for number in range(self.num_ranks) if rank < 0 else (rank,):
            self._hung_until_s[number] = max(self._hung_until_s[number], until_s)

    def kill(self) -> None:
        """All connections are reset, the KV cache is gone."""
        if self._life is None:
            return
        self._life = None
        listeners, self._listeners = self._listeners, {}
        for listener, _ in listeners.values():
            listener.broken(self._timeline.now())

    def restart(self) -> None:
        """Another incarnation, with an empty cache. Nothing happens where one runs."""
        if self._life is not None:
            return
        self.incarnation += 1
        self._hung_until_s = [0.0] * self.num_ranks
        self._life = self._begun()
        self.slow_down(self._slowdown)

    # ------------------------------------------------------------------------------------------------------------- steps

    def _begun(self) -> _Life:
        return _Life([self._build(self.incarnation, rank) for rank in range(self.num_ranks)])

    def _running(self) -> _Life:
        assert self._life is not None, f"{self.name} is down"
        return self._life

    def _begin(self, rank: Rank) -> None:
        if rank.stepping or not rank.engine.has_work:
            return
        rank.stepping = True
        life, now = self._running(), self._timeline.now()
        if now < (until_s := self._hung_until_s[rank.number]):
            self._timeline.at(until_s, self._wake, life, rank)
            return
        result = rank.engine.step(now, brief=True)
        self._timeline.at(now + result.duration_s, self._end, life, rank, result)

    def _wake(self, life: _Life, rank: Rank) -> None:
        if life is self._life:
            rank.stepping = False
            self._begin(rank)

    def _end(self, life: _Life, rank: Rank, result: StepResult) -> None:
        if life is not self._life:
            return
        now = self._timeline.now()
        if now < (until_s := self._hung_until_s[rank.number]):
            self._timeline.at(until_s, self._end, life, rank, result)
            return
        rank.stepping = False
        rank.gauges = result.gauges
        self._count(rank.counters, result)
        if result.num_outputs:
            self.token_ats[rank.number] = now
        if result.events:
            self.on_events(rank.number, result.events, now)
        self._deliver(life, result, now)
        if life is self._life:
            self._begin(rank)

    def _count(self, counters: Counters, result: StepResult) -> None:
        total = self.total
        total.busy_s += result.duration_s / self.num_ranks
        total.steps += 1
        total.preemptions += result.num_preempted
        counters.preemptions += result.num_preempted
        counters.generation_tokens += result.num_outputs
        for sequence in result.started:
            counters.prompt_tokens += sequence.num_prompt
            counters.query_tokens += sequence.num_prompt
            counters.hit_tokens += sequence.num_cached

    def _deliver(self, life: _Life, result: StepResult, now: float) -> None:
        listeners = self._listeners
        for sequence, _, finish in result.outputs:
            if finish is not None:
                listening = listeners.pop(sequence.request.request_id, None)
                if listening is None:
                    continue
                listener, rank = listening
                life.balancer.ended(rank)
                if sequence.num_output <= 1:
                    listener.first_token(now)
                listener.finished(sequence, now)
            elif len(sequence.tokens) == sequence.num_prompt + 1:
                listening = listeners.get(sequence.request.request_id)
                if listening is not None:
                    listening[0].first_token(now)
