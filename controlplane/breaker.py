"""The breaker of one endpoint: whether it may be sent a request, judged by how the last ones ended.

Three states, and everything that moves between them:

    CLOSED     requests pass. Each end is sorted into one of four kinds (below). `failures_max` failures in a row, or a
               failure share above `failure_rate_max` among at least `samples_min` ends of the last `window_s`, opens it.
               So does `suspect`, the hook of whoever sees a gray failure: an engine that says it is healthy and does
               not move.
    OPEN       nothing passes for a hold-off of `open_s`, doubled each time it opens again without a complete response
               in between, up to `open_s_max`. Ends of requests sent before it opened are old news: they neither prolong
               the hold-off nor end it.
    HALF_OPEN  the hold-off is over: exactly one request, the probe, is let through. Its failure opens the breaker again,
               its first token or its complete end closes it. An end that says nothing about the engine frees the place
               for another probe. A probe that is never heard of again gives up its place after `probe_s_max`, so that a
               lost message cannot shut an endpoint out for good. Ends of other requests are ignored here too: one of
               them failing says what opened the breaker in the first place.

    ends         COMPLETE                                                success
                 CONNECT_FAILED RESET TIMED_OUT                          failure
                 ENGINE_ERROR ENGINE_ABORTED                             failure: a dying engine sends [DONE] under status
                                                                         200, a draining one an empty answer with "abort"
                 BACK_PRESSURE (429, 503)                                neither: the engine is full, which is health. The
                                                                         scorers see the load, the caller another endpoint
                 CLIENT_GONE CALLER_ERROR SHED LOST                      neither: nothing was learned of the engine

A first token resets no failure count. An engine that gives a token and then breaks is broken, and only complete ends show
that it is not. It does close the breaker when it is the probe's, since a generation may take minutes and a fleet should not
wait for its end; the failure that may follow opens it again, with a doubled hold-off.

Of another control plane's breakers (see replicas) only openings are taken over, each once: `told_open`. Such a one is open
as long as the other's hold-off, then a probe is let through here as there; it closes by that, or when the other's closes.

The guard, that an endpoint with more than a hundred active requests gets no more until its backlog clears, is a filter
(`filters.below_guard`): it depends on the ledger alone, and lifts by itself. What the breaker answers is whether the
endpoint works, what the guard answers is whether it has room; a caller is told which of the two it met.

The state that time alone changes (OPEN to HALF_OPEN) is computed by whoever asks, so there is no timer to miss: `view(now)`
is the state, `admits(now)` the question, and neither changes anything.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from enum import IntEnum

from contract.outcome import END_NAMES, End


class BreakerState(IntEnum):
    """Numbers equal those of `headway.v1.BreakerState` (a test compares them)."""

    CLOSED = 1
    OPEN = 2
    HALF_OPEN = 3


class Evidence(IntEnum):
    """What an end says about the engine."""

    NOTHING = 0
    SUCCESS = 1
    FAILURE = 2


FAILURES = frozenset((End.CONNECT_FAILED, End.RESET, End.TIMED_OUT, End.ENGINE_ERROR, End.ENGINE_ABORTED))


def evidence(end: int) -> Evidence:
    """Sorts a `contract.outcome.End`."""
    return _EVIDENCE.get(end, _NOTHING)


_EVIDENCE = {int(end): Evidence.FAILURE for end in FAILURES} | {int(End.COMPLETE): Evidence.SUCCESS}
_NOTHING, _COMPLETE = Evidence.NOTHING, End.COMPLETE
_OPEN = BreakerState.OPEN
_NO_BUCKET = [-1, 0, 0]


@dataclass(frozen=True, slots=True)
class BreakerBounds:
    failures_max: int = 5
    failure_rate_max: float = 0.5
    samples_min: int = 20
    window_s: int = 10
    open_s: float = 1.0
    open_s_max: float = 30.0
    probe_s_max: float = 60.0


class Breaker:
    """Of one endpoint. Times are monotonic seconds and never run backwards."""

    __slots__ = (
        "_bounds",
        "_buckets",
        "_consecutive",
        "_latest",
        "_open_until",
        "_opened",
        "_probe",
        "_probe_until",
        "_state",
        "closed",
        "openings",
        "reason",
        "suspected",
        "told",
    )

    def __init__(self, bounds: BreakerBounds) -> None:
        self._bounds = bounds
        self._state = BreakerState.CLOSED
        self.closed = True
        """Nearly always, and then it admits whatever the time is."""
        self._consecutive = 0
        self._buckets: deque[list[int]] = deque(maxlen=bounds.window_s)  # [second, successes, failures]
        self._latest = _NO_BUCKET  # of them
        self._opened = 0  # times since the last complete response: the exponent of the hold-off
        self._open_until = 0.0
        self._probe: int | None = None
        self._probe_until = 0.0
        self.openings = 0
        """By what was seen here, over all time."""
        self.told = False
        """It opened on another control plane's word, and has seen nothing itself since."""
        self.reason = ""
        """Why it opened last, for operators; empty while CLOSED."""
        self.suspected = False
        """It opened for a gray failure, and no request has come through since."""

    def view(self, now: float) -> BreakerState:
        if self._state == BreakerState.OPEN and now >= self._open_until:
            return BreakerState.HALF_OPEN
        return self._state

    def admits(self, now: float) -> bool:
        """Whether a request may be sent there now."""
        if self.closed:
            return True
        if self._state == BreakerState.OPEN:
            return now >= self._open_until
        return self._probe is None or now >= self._probe_until

    def retry_after_s(self, now: float) -> float:
        """How long until it might admit a request again; 0 where it does."""
        if self.admits(now):
            return 0.0
        until = self._open_until if self._state == BreakerState.OPEN else self._probe_until
        return max(0.0, until - now)

    def began(self, now: float, decision_id: int) -> None:
        """A request was sent there. While half open it becomes the probe."""
        if self.closed:
            return
        assert self.admits(now), f"request {decision_id} sent through a breaker that admits none ({self.view(now).name})"
        self._state, self.closed = BreakerState.HALF_OPEN, False
        self._probe = decision_id
        self._probe_until = now + self._bounds.probe_s_max

    def first_byte(self, now: float, decision_id: int) -> None:
        """The first token of a request came."""
        if self._is_probe(decision_id):
            self._close()

    def ended(self, now: float, decision_id: int, end: int) -> bool:
        """A request ended. decision_id 0 is one that was sent without asking (fallback). Returns whether it opens by it."""
        if self.closed:
            if end == _COMPLETE:
                self.good(int(now))
                return False
            self._count(now, evidence(end), end)
        elif self._is_probe(decision_id):
            self._judge_probe(now, evidence(end), END_NAMES[end])
        else:
            return False
        return self._state is _OPEN

    def good(self, second: int, count: int = 1) -> None:
        """As `ended` of so many complete responses, where it is closed. second: the whole part of now."""
        latest = self._latest
        if latest[0] != second:
            latest = self._bucket(second)
        latest[1] += count
        if self._consecutive or self._opened:
            self._consecutive = self._opened = 0

    def suspect(self, now: float, reason: str) -> None:
        """A gray failure was seen from outside: open, whatever the ends say. While OPEN it changes nothing."""
        if self.view(now) != BreakerState.OPEN:
            self._open(now, reason)
            self.suspected = True

    def told_open(self, now: float, left_s: float, times: int, reason: str, *, suspected: bool) -> None:
        """Another control plane opened its own. left_s: of its hold-off; times: in a row. One that is not closed stays so."""
        if self.closed:
            self._state, self.closed = BreakerState.OPEN, False
            self._open_until = now + min(max(0.0, left_s), self._bounds.open_s_max)
            self._opened = max(self._opened, times)
            self._probe = None
            self._forget_counts()
            self.reason, self.suspected, self.told = reason, suspected, True

    def told_closed(self) -> None:
        """That one has closed."""
        if self.told:
            self.reset()

    def hold_off(self, now: float) -> tuple[float, int]:
        """What is left of it in seconds, and how many there were in a row."""
        return max(0.0, self._open_until - now), self._opened

    def reset(self) -> None:
        """Another run of the engine: what was held against the one before is forgotten."""
        self._opened = 0
        self._close()

    def _is_probe(self, decision_id: int) -> bool:
        return self._state == BreakerState.HALF_OPEN and self._probe is not None and self._probe == decision_id

    def _judge_probe(self, now: float, verdict: Evidence, end: str) -> None:
        if verdict == Evidence.FAILURE:
            self._open(now, f"the probe ended in {end}")
        elif verdict == Evidence.SUCCESS:
            self._opened = 0
            self._close()
        else:
            self._probe = None

    def _count(self, now: float, verdict: Evidence, end: int) -> None:
        """No success."""
        if verdict is _NOTHING:
            return
        self._bucket(int(now))[verdict] += 1
        self._consecutive += 1
        if self._consecutive >= self._bounds.failures_max:
            self._open(now, f"{self._consecutive} failures in a row, the last {END_NAMES[end]}")
            return
        good, bad = self._window(now)
        if good + bad >= self._bounds.samples_min and bad > self._bounds.failure_rate_max * (good + bad):
            self._open(
                now, f"{bad} of {good + bad} requests failed within {self._bounds.window_s} s, the last {END_NAMES[end]}"
            )

    def _bucket(self, second: int) -> list[int]:
        if self._latest[0] != second:
            self._latest = [second, 0, 0]
            self._buckets.append(self._latest)
        return self._latest

    def _window(self, now: float) -> tuple[int, int]:
        oldest = int(now) - self._bounds.window_s
        recent = [bucket for bucket in self._buckets if bucket[0] > oldest]
        return sum(bucket[Evidence.SUCCESS] for bucket in recent), sum(bucket[Evidence.FAILURE] for bucket in recent)

    def _open(self, now: float, reason: str) -> None:
        hold_off_s = min(self._bounds.open_s * 2.0 ** min(self._opened, 30), self._bounds.open_s_max)
        self._state, self.closed = BreakerState.OPEN, False
        self._open_until = now + hold_off_s
        self._opened += 1
        self.openings += 1
        self.told = False
        self._probe = None
        self._forget_counts()
        self.reason = reason

    def _close(self) -> None:
        self._state, self.closed = BreakerState.CLOSED, True
        self._probe = None
        self.told = False
        self.suspected = False
        self._forget_counts()
        self.reason = ""

    def _forget_counts(self) -> None:
        self._consecutive = 0
        self._buckets.clear()
        self._latest = _NO_BUCKET
