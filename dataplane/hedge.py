"""Hedging: a second worker for a stream whose first one has been silent for suspiciously long. Off unless asked for.

    ARMED    a timer runs: several times what this worker usually takes to its first event, or a fixed time
    ASKING   the control plane is asked for another worker
    RUNNING  connected and sent; whatever comes back is held
    OVER     won, lost, or failed

Whoever has a first event first is the answer; the other one's connection is closed in the same moment, and its end is
reported as that of a caller who left: it says nothing about the worker. Never are two bodies on their way to a client, since
both attempts hold what they get until the exchange takes one of them over. A budget keeps hedges a small share of the
requests, however slow everything is: hedging everything would double the load just when there is too much of it.
"""

from __future__ import annotations

import asyncio
from enum import IntEnum
from typing import Protocol

from contract.outcome import End
from contract.routing import Answer, Asked
from dataplane.admission import RetryBudget
from dataplane.attempt import Attempt, says_nothing
from dataplane.control import ControlClient
from dataplane.fallback import Fleet
from dataplane.gateway import Holding
from dataplane.http1 import FramingError
from dataplane.metrics import Counter
from dataplane.relay import Phase, Relay
from dataplane.settings import Settings
from dataplane.upstream import UpstreamConnection, UpstreamPool
from proto import routing_pb2 as pb
from runtime.clock import Clock

EWMA_WEIGHT = 0.1
"""Of the latest first event in what a worker usually takes."""


class Stage(IntEnum):
    ARMED = 0
    ASKING = 1
    CONNECTING = 2
    RUNNING = 3
    OVER = 4


class Racer(Protocol):
    """The request that has a second attempt: its exchange."""

    def is_waiting(self) -> bool:
        """Sent, and nothing has come that could be passed on."""

    def question(self) -> Asked:
        """For another worker than those tried."""

    def is_tried(self, answer: Answer) -> bool: ...

    def steered(self, answer: Answer) -> Answer:
        """Without a rank that its engine would not look at."""

    def new_relay(self) -> Relay: ...

    def write_request(self, connection: UpstreamConnection, target: Answer) -> bool:
        """False: the connection is gone."""

    def settle(self, attempt: Attempt, end: End) -> None:
        """Connection, counts and outcome of one attempt, once."""

    def overtaken(self, rival: Rival) -> None:
        """The rival has an answer: take it over."""

    def reservation(self, attempt: Attempt) -> pb.Held | None: ...


class Hedges:
    """Which requests get a second attempt, and when. hedged: hedges by how they ended; reconnects: as of first attempts."""

    def __init__(
        self,
        settings: Settings,
        *,
        clock: Clock,
        control: ControlClient,
        pool: UpstreamPool,
        fleet: Fleet,
        hedged: Counter,
        reconnects: Counter,
        exchanges: set[Holding],
    ) -> None:
        self.clock = clock
        self.control = control
        self.pool = pool
        self.fleet = fleet
        self.hedged = hedged
        self.reconnects = reconnects
        self.exchanges = exchanges
        self.budget = RetryBudget(ratio=settings.hedge_ratio, per_s=0.0, now=clock.now())
        self._tokens_max = settings.hedge_tokens_max
        self._after_s = settings.hedge_after_ms / 1000
        self._multiple = settings.hedge_multiple
        self._usual_s: dict[str, float] = {}

    def earn(self) -> None:
        """A request came in."""
        self.budget.earn()

    def seen(self, url: str, ttft_s: float) -> None:
        """A first event came."""
        usual_s = self._usual_s.get(url)
        self._usual_s[url] = ttft_s if usual_s is None else usual_s + EWMA_WEIGHT * (ttft_s - usual_s)

    def delay_s(self, url: str) -> float | None:
        """How long its silence is nothing special; None: not known."""
        if self._after_s:
            return self._after_s
        usual_s = self._usual_s.get(url)
        return None if usual_s is None else self._multiple * usual_s

    def arm(self, racer: Racer, target: Answer, input_tokens: int) -> Rival | None:
        """None: this request gets no second attempt."""
        delay_s = self.delay_s(target.url)
        if delay_s is None or input_tokens > self._tokens_max or not target.decision_id:
            return None
        return Rival(self, racer, delay_s)


class Rival:
    """The second attempt of one request."""

    __slots__ = ("_attempt", "_hedges", "_question_id", "_racer", "_timer", "failed_at", "stage")

    def __init__(self, hedges: Hedges, racer: Racer, delay_s: float) -> None:
        self._hedges = hedges
        self._racer = racer
        self._question_id = 0
        self.stage = Stage.ARMED
        self._attempt: Attempt | None = None
        self.failed_at: Answer | None = None
        """Where it failed: the request does not go there again."""
        self._timer = asyncio.get_running_loop().call_later(delay_s, self._due)

    @property
    def is_running(self) -> bool:
        return self.stage is Stage.RUNNING

    def cancel(self) -> None:
        """The first attempt has an answer, or the client has left."""
        if self.stage is Stage.OVER:
            return
        self._timer.cancel()
        self._hedges.control.cancel(self._question_id)
        if self._attempt is not None:
            self._end(End.CLIENT_GONE, "lost")
        self.stage = Stage.OVER

    def take_over(self) -> Attempt:
        """The exchange goes on with this attempt."""
        attempt, self._attempt = self._attempt, None
        assert attempt is not None, "taken over without an attempt"
        assert self.stage is Stage.RUNNING, f"taken over while {self.stage.name}"
        self.stage = Stage.OVER
        self._hedges.exchanges.discard(self)
        self._hedges.hedged.add("won")
        return attempt

    def held(self) -> pb.Held | None:
        """Its reservation."""
        return None if self._attempt is None else self._racer.reservation(self._attempt)

    # --- ARMED, ASKING ---

    def _due(self) -> None:
        hedges = self._hedges
        if not self._racer.is_waiting() or not hedges.control.connected:
            self.stage = Stage.OVER
            return
        if not hedges.budget.take(hedges.clock.now()):
            self._over("no_budget")
            return
        self.stage = Stage.ASKING
        self._question_id = hedges.control.ask(self._racer.question(), self._decided, hedges.clock.now())

    def _decided(self, answer: Answer | None) -> None:
        if self.stage is not Stage.ASKING:
            return
        self._question_id = 0
        if answer is None or answer.refusal is not None:
            self._over("refused")
        elif self._racer.is_tried(answer):
            self._hedges.control.release(answer)
            self._over("refused")
        else:
            self._go(answer if answer.rank < 0 else self._racer.steered(answer))

    # --- CONNECTING, RUNNING ---

    def _go(self, target: Answer) -> None:
        hedges = self._hedges
        now = hedges.clock.now()
        self._attempt = Attempt(target, now, now)
        self.stage = Stage.CONNECTING
        hedges.fleet.began(target.url)
        hedges.exchanges.add(self)
        connection = hedges.pool.take(target.url, now)
        if connection is not None:
            self._send(connection)
        else:
            hedges.pool.connect(target.url, self._connected)

    def _connected(self, found: UpstreamConnection | Exception) -> None:
        if self.stage is not Stage.CONNECTING:
            if isinstance(found, UpstreamConnection):
                self._hedges.pool.give(found, self._hedges.clock.now())
        elif isinstance(found, UpstreamConnection):
            self._send(found)
        else:
            self._end(End.CLIENT_GONE if says_nothing(found) else End.CONNECT_FAILED, "failed")

    def _send(self, connection: UpstreamConnection) -> None:
        attempt = self._attempt
        assert attempt is not None
        self.stage = Stage.RUNNING
        attempt.connection = connection
        attempt.relay = self._racer.new_relay()
        connection.owner = self
        if not self._racer.write_request(connection, attempt.target):
            self._end(End.RESET, "failed")

    def upstream_data(self, data: bytes) -> None:
        attempt = self._attempt
        assert attempt is not None
        relay = attempt.relay
        assert relay is not None
        attempt.last_at = self._hedges.clock.now()
        try:
            relay.feed(data)
        except FramingError:
            self._end(End.ENGINE_ERROR, "failed")
            return
        if relay.ready:
            self._ready(relay)

    def upstream_lost(self, error: Exception | None) -> None:
        attempt = self._attempt
        assert attempt is not None
        relay = attempt.relay
        assert relay is not None
        connection, attempt.connection = attempt.connection, None
        relay.closed(error)
        if relay.phase is Phase.ENDED:
            self._ready(relay)
        elif connection is not None and connection.reused and not relay.begun:
            self.stage = Stage.CONNECTING  # it was closed in the instant of its reuse, which is nobody's failure
            self._hedges.reconnects.add()
            self._hedges.pool.connect(attempt.target.url, self._connected)
        else:
            self._end(End.RESET, "failed")

    def upstream_full(self, full: bool) -> None:
        """Bodies that come while they are sent are not hedged."""

    def _ready(self, relay: Relay) -> None:
        verdict = relay.verdict()
        if verdict.end is End.COMPLETE:
            self._racer.overtaken(self)
        else:
            self._end(verdict.end, "failed")

    # --- OVER ---

    def _end(self, end: End, how: str) -> None:
        """The attempt is over without having been the answer."""
        attempt, self._attempt = self._attempt, None
        self._hedges.exchanges.discard(self)
        self._over(how)
        if attempt is not None:
            self.failed_at = attempt.target if how == "failed" else None
            self._racer.settle(attempt, end)

    def _over(self, how: str) -> None:
        self.stage = Stage.OVER
        self._hedges.hedged.add(how)
