"""What time alone changes, looked after on the running loop."""

from __future__ import annotations

import asyncio
import logging
from typing import Protocol

from controlplane.alarms import AlarmLog
from controlplane.director import Director
from controlplane.fleet_view import FleetWatch
from controlplane.servicer import RoutingServicer
from runtime.clock import Clock

log = logging.getLogger(__name__)

LOOK_S = 0.02
"""How often guesses expire, waiting questions are looked at, and changes of the fleet are noticed."""
LOOK_AT_REST_S = 0.1
"""The same while nothing is in flight and no guess grows old: whatever comes then is looked at this much later at most."""
LAG_S_MAX = 0.005
"""A turn that comes later than this is counted: the bound that decisions are held to."""
STILL_S = 0.5
"""Later than that, this process stood still: nothing that it did not hear meanwhile says anything about others."""
TICK_S = 0.25
"""How often silent workers, lost reservations and hung engines are looked for."""
REDIS_SILENT_S = 0.5
"""Redis answers many times a second; silent for this long it is as good as gone, though no connection broke yet."""


class Index(Protocol):
    def expire(self, now: float) -> None: ...

    @property
    def at_rest(self) -> bool: ...


class Bus(Protocol):
    @property
    def connected(self) -> bool: ...

    @property
    def last_word_at(self) -> float: ...

    @property
    def warm(self) -> bool: ...


class LoopLag:
    """How late the loop gives a task its turn: what a question may wait for before anybody looks at it. Looked at every LOOK_S
    (at rest LOOK_AT_REST_S), so a stall of the loop shows with what was left of it by then."""

    __slots__ = ("_worst_s", "long")

    def __init__(self) -> None:
        self._worst_s = 0.0
        self.long = 0
        """Turns that came later than LAG_S_MAX."""

    def add(self, late_s: float) -> None:
        late_s = max(0.0, late_s)
        self._worst_s = max(self._worst_s, late_s)
        self.long += late_s > LAG_S_MAX

    def worst_s(self) -> float:
        """Since this was asked last."""
        worst_s, self._worst_s = self._worst_s, 0.0
        return worst_s


class Upkeep:
    def __init__(
        self,
        *,
        director: Director,
        index: Index,
        bus: Bus,
        routing: RoutingServicer,
        watch: FleetWatch,
        alarms: AlarmLog,
        clock: Clock,
    ) -> None:
        self._director = director
        self._index = index
        self._bus = bus
        self._routing = routing
        self._watch = watch
        self._alarms = alarms
        self._clock = clock
        self.lag = LoopLag()

    async def run(self) -> None:
        """Until cancelled."""
        ticked_at = float("-inf")
        while True:
            now = self._clock.now()
            if now - ticked_at >= TICK_S:
                ticked_at = now
                self._director.tick(now, connected=self._hears(now))
                self._alarms.look(now)
            self.look(now)
            asked_at, pause_s = self._clock.now(), LOOK_AT_REST_S if self.at_rest else LOOK_S
            await asyncio.sleep(pause_s)
            late_s = self._clock.now() - asked_at - pause_s
            self.lag.add(late_s)
            if late_s > STILL_S:
                self._director.stood_still(late_s)

    @property
    def at_rest(self) -> bool:
        """Nothing is there that time alone would change within moments."""
        return self._director.warm and self._director.at_rest and self._index.at_rest

    def _hears(self, now: float) -> bool:
        """Whether the silence of a worker would mean anything."""
        return self._bus.connected and now - self._bus.last_word_at < REDIS_SILENT_S

    def look(self, now: float) -> None:
        if self._bus.warm and not self._director.warm:
            self._director.warm = True
            log.info("the fleet has been read")
        self._index.expire(now)
        self._routing.answer_waiting(now)
        self._watch.look(now)
