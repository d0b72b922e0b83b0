"""One rank's event numbering: is this payload the next one, was something missed, is this still the same engine?

An engine numbers its payloads 0, 1, 2, ... and keeps the last ones for replay. What can go wrong, and what is done:

    a number above the expected one     a gap: ask the replay socket from the last payload that we have, hold back live ones
    the replay begins with that payload, byte for byte    the same engine: what follows fills the gap
    ... with another payload            a new engine that has already numbered past ours: begin again
    ... later, or never comes           the buffer no longer has it: a hole, what was believed until now is void
    a number below the expected one     a new engine (numbers never go back): begin again, from its first payload
    the connection broke                 ask before anything else is believed
    nothing for a while                 ask too: a lost last payload shows up by nothing else, and neither does a quiet restart

Pure: feed it what the sockets said and carry out what it returns. It is told the time only to give up on silent replays.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

HELD_FRAMES_MAX = 20_000
"""Live payloads held back during a replay; beyond it the oldest are let go, which the next replay round repairs."""
REPLAY_ROUNDS_MAX = 32
"""Replays in a row for one gap. Each but the last brought something new (a ROUTER drops what a full pipe cannot take)."""
REPLAY_TIMEOUT_S = 5.0
"""A replay that says nothing for this long is given up."""
VERIFY_AFTER_S = 2.0
"""After this long without a payload the replay socket is asked whether there is one."""


@dataclass(frozen=True, slots=True)
class Deliver:
    """The next payload, in order."""

    sequence: int
    payload: bytes


@dataclass(frozen=True, slots=True)
class Begin:
    """From here on every payload is known, and the cache is empty here. fresh: an engine that was not seen before."""

    fresh: bool


@dataclass(frozen=True, slots=True)
class Hole:
    """Payloads were missed for good."""

    missed_from: int


@dataclass(frozen=True, slots=True)
class AskReplay:
    """Send a replay request from this sequence, on a new socket: answers to an earlier one no longer matter."""

    start: int


Step = Deliver | Begin | Hole | AskReplay


class RankSequence:
    """can_replay: the engine has a replay socket. virgin: the engine had computed nothing when we subscribed."""

    def __init__(self, now: float, *, can_replay: bool, virgin: bool = False) -> None:
        self._can_replay = can_replay
        self._virgin = virgin
        self._next = 0
        self._last: bytes | None = None  # the payload numbered next - 1
        self._begun = False  # a Begin or a Hole was said since the last (re)start
        self._proven = False  # the replay socket has answered with payloads before
        self._quiet_since = now
        self._held: deque[tuple[int, bytes]] = deque()
        # of the replay in progress
        self._replaying = False
        self._verifying = False
        self._suspect = False  # since a broken connection nothing has confirmed that this is the same engine
        self._rounds = 0
        self._lost_to = 0  # held payloads below it fell into a hole
        self._matched = False
        self._ignore_rest = False
        self._again = False
        self._heard_at = now
        self._replayed: dict[int, int] = {}
        self.gaps = 0
        self.replays = 0

    @property
    def next_sequence(self) -> int:
        return self._next

    @property
    def replaying(self) -> bool:
        """Whether answers of the replay asked for last are waited for."""
        return self._replaying

    @property
    def behind(self) -> bool:
        """Whether payloads are known to be missing, or may be: not while it only makes sure after a silence."""
        return self._replaying and not self._verifying

    def start(self, now: float) -> list[Step]:
        """What to do first. Call once, after subscribing."""
        if self._can_replay:
            return self._ask(now, first=True)
        if self._virgin:
            self._begun = True
            return [Begin(fresh=False)]
        return []

    def restart(self, now: float) -> list[Step]:
        """Another engine is known to answer here now: forget the old numbering."""
        self._held.clear()
        return self._new_incarnation(now)

    def disconnected(self, now: float) -> list[Step]:
        """The subscription's connection broke. What comes next may be another engine's: ask before believing."""
        if not self._can_replay:
            return []
        self._suspect = True
        self._held.clear()  # of the old connection; where they are still true, the replay has them
        return self._ask(now, first=True)

    def follows(self, sequence: int, payload: bytes, now: float) -> bool:
        """Takes a payload from the subscription if it is simply the next, to be delivered; all others are for `live`."""
        if sequence != self._next or self._replaying or not self._begun:
            return False
        self._quiet_since, self._next, self._last = now, sequence + 1, payload
        return True

    def live(self, sequence: int, payload: bytes, now: float) -> list[Step]:
        """A payload from the subscription."""
        self._quiet_since = now
        if not self._replaying:
            return self._accept(sequence, payload, now)
        if len(self._held) >= HELD_FRAMES_MAX:
            self._held.popleft()
        self._held.append((sequence, payload))
        return []

    def replayed(self, sequence: int, payload: bytes, now: float) -> list[Step]:
        """A payload from the replay in progress."""
        if not self._replaying:
            return []
        self._heard_at = self._quiet_since = now
        self._proven = True
        if self._ignore_rest:
            return []
        if not self._matched:
            if sequence == self._next - 1 and self._last is not None:
                if payload == self._last:
                    self._matched = True
                    return []
                return self._new_incarnation(now)
            if sequence > self._next or (sequence == self._next and self._last is not None):
                # The buffer no longer has our last payload: nothing says that this is the same engine.
                return self._lost(sequence, payload)
        if sequence < self._next:
            return []
        if sequence > self._next:
            # Dropped on the way, not by the buffer: what came before it did arrive.
            self._ignore_rest = self._again = True
            return []
        self._matched = True
        return self._take_replayed(sequence, payload)

    def replay_ended(self, now: float) -> list[Step]:
        """The end marker of the replay in progress."""
        if not self._replaying:
            return []
        unconfirmed, self._suspect = self._suspect and not self._matched, False
        if self._again and self._rounds < REPLAY_ROUNDS_MAX:
            return self._ask(now, first=False)
        steps: list[Step] = []
        if not self._matched and self._next == 0 and not self._begun:
            self._begun = True
            steps.append(Begin(fresh=False))
        elif not self._matched and self._next > 0 and self._proven:
            # The buffer always has the last payload: this one's owner is gone, and the new one has published less.
            self._reset()
            self._begun = True
            steps.append(Begin(fresh=True))
        elif unconfirmed and self._next > 0:
            self._reset()
            steps.append(Hole(0))
        return steps + self._resume(now)

    def tick(self, now: float) -> list[Step]:
        """Call now and then: gives up on silent replays, verifies after silence."""
        if self._replaying:
            if now - self._heard_at < REPLAY_TIMEOUT_S:
                return []
            if not self._suspect:
                return self._resume(now)
            if not self._held:
                return self._ask(now, first=True)
            # Live payloads and no replay: nothing says whose they are.
            self._suspect = False
            self._reset()
            return [Hole(0), *self._resume(now)]
        if self._can_replay and now - self._quiet_since >= VERIFY_AFTER_S:
            self._quiet_since = now
            steps = self._ask(now, first=True)
            self._verifying = True
            return steps
        return []

    # ------------------------------------------------------------------------------------------------------- transitions

    def _accept(self, sequence: int, payload: bytes, now: float, *, may_replay: bool = True) -> list[Step]:
        if sequence == self._next:
            steps: list[Step] = []
            if not self._begun:
                self._begun = True
                steps.append(Begin(fresh=False) if sequence == 0 else Hole(0))
            return [*steps, self._advance(sequence, payload)]
        if sequence > self._next:
            self.gaps += 1
            if self._can_replay and may_replay:
                self._held.append((sequence, payload))
                return self._ask(now, first=True)
            return self._lost(sequence, payload)
        if sequence == self._next - 1 and payload == self._last:
            return []
        steps = self._new_incarnation(now)
        if self._replaying:
            # The replay has this payload, unless it is itself of a run that is over: then it must not be believed again.
            return steps
        return steps + ([self._advance(sequence, payload)] if sequence == 0 else self._lost(sequence, payload))

    def _advance(self, sequence: int, payload: bytes) -> Deliver:
        self._next = sequence + 1
        self._last = payload
        return Deliver(sequence, payload)

    def _take_replayed(self, sequence: int, payload: bytes) -> list[Step]:
        steps: list[Step] = []
        if not self._begun:
            self._begun = True
            steps.append(Begin(fresh=False))
        self._replayed[sequence] = hash(payload)
        return [*steps, self._advance(sequence, payload)]

    def _lost(self, sequence: int, payload: bytes) -> list[Step]:
        missed = self._next
        self._begun = self._matched = True
        if self._replaying:
            self._replayed[sequence] = hash(payload)
            self._lost_to = sequence
        return [Hole(missed), self._advance(sequence, payload)]

    def _reset(self) -> None:
        self._next, self._last = 0, None
        self._replayed.clear()

    def _new_incarnation(self, now: float) -> list[Step]:
        self._reset()
        self._begun = True
        begin = Begin(fresh=True)
        if self._can_replay:
            return [begin, *self._ask(now, first=True)]
        self._replaying = False
        return [begin]

    def _ask(self, now: float, *, first: bool) -> list[Step]:
        if first:
            self._rounds = self._lost_to = 0
            self._replayed.clear()
        self._rounds += 1
        self.replays += 1
        self._replaying, self._verifying = True, False
        self._matched = self._ignore_rest = self._again = False
        self._heard_at = now
        return [AskReplay(max(0, self._next - 1))]

    def _resume(self, now: float) -> list[Step]:
        """Back to live: what was held back, less what the replay already brought. A gap that is still there is a hole."""
        self._replaying = False
        steps: list[Step] = []
        while self._held:
            sequence, payload = self._held.popleft()
            if sequence < self._lost_to or (sequence < self._next and self._replayed.get(sequence) == hash(payload)):
                continue
            steps += self._accept(sequence, payload, now, may_replay=False)
            if self._replaying:
                break
        if not self._replaying:
            self._replayed.clear()
        return steps
