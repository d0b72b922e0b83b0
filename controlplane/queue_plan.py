"""When an engine would begin with one more prompt, foreseen from what the router placed there. Pure.

An engine takes prompts up in the order in which they came, each once a seat is free for it, and computes their work one after
the other; an answer then keeps its seat for as many decode steps as it has tokens. So a queue is played ahead: whoever is next
takes the seat that is free first, its work passes, and its own end is added to those to come. The result is a time, not a
count: ten short prompts behind long answers and ten long ones in front of free seats are different waits.

A plan is made when it is first asked for after a first token or an end at its endpoint, and extended by what is placed there
in between. Where every queued prompt has a seat there is nothing to play: the wait is the work.
"""

from __future__ import annotations

from heapq import heapify, heappop, heappush
from typing import TYPE_CHECKING, NamedTuple

from contract.features import SPEED_UNKNOWN, prefill_work

if TYPE_CHECKING:
    from controlplane.endpoint import Endpoint
    from controlplane.ledger import Load, Reservation

PLAYED_MAX = 64
"""Requests of a queue that are played; of those behind them, one is taken to get its turn every hold_s / seats."""
ANSWER_STEPS = 64.0
"""Of an answer whose length nothing is known of."""


class Beginning(NamedTuple):
    """When the engine would begin with a prompt that is sent now: `at` (monotonic seconds; overdue where that has passed) it is
    done with what it is at, `rest_s` later with what is queued behind it."""

    at: float
    rest_s: float

    def wait_s(self, now: float) -> float:
        """0 where it would begin at once."""
        ahead_s = self.at - now
        return (ahead_s if ahead_s > 0.0 else 0.0) + self.rest_s


AT_ONCE = Beginning(0.0, 0.0)


def seated(head: float, work: float, since: float, speed: float) -> Beginning:
    """Where everybody has a seat. head: prefill work of the prompt that it has been at since then; work: of all without a first
    token, that one included; speed: prefill tokens a second, 0 until known."""
    speed = speed or SPEED_UNKNOWN
    return Beginning(since + head / speed, (work - head) / speed)


def planned(endpoint: Endpoint, load: Load, now: float) -> Beginning | None:
    """Where all seats are taken; None where they are not. load: of the endpoint, or with what others have there."""
    seats = endpoint.seats
    if load.active < seats or not seats:
        return None
    plan = load.plan
    if plan is None:
        plan = load.plan = Plan(endpoint, load, now)
    return plan.beginning()


def _work(reservation: Reservation) -> float:
    """Prefill work in tokens."""
    return prefill_work(reservation.uncached_tokens, reservation.pairs)


class Plan:
    """The queue of one endpoint with all seats taken, played ahead. One more request is played by `add`."""

    __slots__ = (
        *("_answer_tokens", "_beyond_s", "_ends", "_computes", "_expected", "_from", "_played"),
        *("_rest_s", "_seats", "_step_s", "_steps", "_token_s"),
    )

    def __init__(self, endpoint: Endpoint, load: Load, now: float) -> None:
        rates, clock = endpoint.rates, endpoint.clock
        seats = self._seats = endpoint.seats
        step_s = self._step_s = clock.step_s or rates.decode_itl_s
        self._token_s = 1.0 / (rates.prefill_tokens_per_s or SPEED_UNKNOWN)
        self._expected = rates.expected_tokens
        self._answer_tokens = rates.hold_s / step_s if rates.hold_s and step_s else ANSWER_STEPS
        self._beyond_s = rates.hold_s / seats
        self._steps = 0.0  # decode steps from now to the end of what was played
        self._played = 0
        begun = load.active - len(load.queue)
        at = clock.at(now)
        self._ends = [max(0.0, end - at) for end in load.ends]
        if unknown := begun - len(self._ends):  # as if they had begun evenly spread over the time that an answer takes
            self._ends += [self._answer_tokens * (place + 1) / (unknown + 1) for place in range(unknown)]
            heapify(self._ends)
        self._computes = False  # whether the engine is at a prompt, and not waiting for an end
        self._from = now  # when that prompt is to be done
        self._rest_s = 0.0  # from then to the end of what was played
        queue = iter(load.queue.values())
        if begun < seats and (head := next(queue, None)) is not None:
            self._computes = True
            self._from = load.prefill_since + _work(head) * self._token_s
            self._seat(head)
        for reservation in queue:
            self.add(reservation)

    def add(self, reservation: Reservation) -> None:
        """It is placed there, behind all others."""
        work_s = _work(reservation) * self._token_s
        if self._played >= PLAYED_MAX:
            self._rest_s += max(work_s, self._beyond_s)
            return
        ends = self._ends
        while len(ends) >= self._seats:
            self._rest_s += self._pass(heappop(ends))
        self._rest_s += work_s
        self._seat(reservation)

    def beginning(self) -> Beginning:
        """Of one more prompt."""
        rest_s = self._rest_s
        if len(self._ends) >= self._seats:
            rest_s += max(0.0, self._ends[0] - self._steps) * self._step_s
        if self._computes:  # once overdue, so is all that comes after it
            return Beginning(self._from, rest_s)
        return Beginning(self._from + rest_s, 0.0)

    def _pass(self, end: float) -> float:
        """The steps until an end; seconds."""
        steps = end - self._steps
        if steps <= 0.0:
            return 0.0
        self._steps = end
        return steps * self._step_s

    def _seat(self, reservation: Reservation) -> None:
        """It was computed, which took a step."""
        self._played += 1
        self._steps += 1.0
        decision = reservation.decision
        tokens = self._expected(0 if decision is None else decision.request.max_tokens)
        heappush(self._ends, self._steps + (tokens or self._answer_tokens))
