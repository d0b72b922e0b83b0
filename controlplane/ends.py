"""What becomes of decisions: first tokens and ends, and everything that learns from them.

    first_byte   refund · breaker · rates · a sample for the rankers
    ended        release · breaker · rates · self-check · the outcome record
    teach        what the rankers learn from the first tokens since

It is pure: time is an argument, the outcome log a callable.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from contract.features import prefill_work
from contract.keyspace import WorkerRecord
from contract.outcome import END_NAMES, End, Outcome
from controlplane.breaker import FAILURES
from controlplane.endpoint import Endpoint
from controlplane.ledger import Ledger, Reservation
from controlplane.outcome_record import fallback_outcome, request_outcome
from controlplane.predictor import Sample
from controlplane.question import Decided, Ended
from controlplane.rankers import Ranker
from controlplane.self_check import SelfCheck
from controlplane.snapshot import FleetSnapshot
from controlplane.tally import Tally
from controlplane.thinning import Thinning

_COMPLETE = End.COMPLETE  # a member is looked up in its class each time, at the price of a call

SAMPLES_MAX = 256
"""First tokens between two ticks that the ranker of the policy in use learns from: the latest."""
SAMPLES_IDLE_MAX = 16
"""And those of the others, so that they know the fleet when they are switched to."""


class AnsweredIndex(Protocol):
    """What is told to the prefix index when a request ends."""

    def answered(self, slot: int, last_block: int, prompt_blocks: int, filled_blocks: int, now: float) -> None: ...

    def claim_judged(self, *, came_true: bool) -> None: ...


class Ends:
    def __init__(
        self,
        *,
        snapshot: FleetSnapshot,
        ledger: Ledger,
        index: AnsweredIndex,
        self_check: SelfCheck,
        rankers: Sequence[Ranker],
        tally: Tally,
        thinning: Thinning,
        record: Callable[[Outcome], None],
        unix_offset_s: float,
    ) -> None:
        """As the director's own; rankers: those that learn."""
        self._snapshot = snapshot
        self._ledger = ledger
        self._index = index
        self._self_check = self_check
        self._rankers = rankers
        self._samples: deque[tuple[Decided, float, WorkerRecord]] = deque(maxlen=SAMPLES_MAX)
        self.tally = tally
        self.thinning = thinning
        self._record = record
        self._unix_offset_s = unix_offset_s

    def first_byte(self, decision_id: int, ttft_s: float, now: float) -> None:
        """The first event with content reached the data plane. Unknown or repeated: ignored."""
        reservation = self._ledger.first_byte(decision_id, now)
        if reservation is None:
            return
        endpoint = self._snapshot.at_url(reservation.url)
        if endpoint is None:
            return
        endpoint.breaker.first_byte(now, decision_id)
        endpoint.standing = None  # what was learned of its rates below shows from the next decision on
        decision = reservation.decision
        if decision is not None:
            endpoint.rates.first_byte(
                ttft_s,
                work=prefill_work(reservation.uncached_tokens, reservation.pairs),
                service_s=reservation.service_s,
                tokens_ahead=decision.tokens_ahead,
                queued_for_a_seat=decision.seat_awaited,
            )
            tokens = endpoint.rates.expected_tokens(decision.request.max_tokens)
            if tokens and endpoint.clock.step_s:
                self._ledger.seated(reservation, endpoint.clock.at(now) + tokens)
            if self._rankers:
                self._samples.append((decision, ttft_s, endpoint.record))

    def ended_all(self, outcomes: Iterable[Ended], now: float) -> None:
        """As `ended` for each, in their order."""
        for ended in outcomes:
            self.ended(ended, now)

    def ended(self, ended: Ended, now: float) -> bool:
        """One request at one endpoint ended. False: it was known to have ended, or never reserved; it does not count."""
        if ended.decision_id == 0:
            self._ended_unasked(ended, now)
            return True
        reservation = self._ledger.release(ended.decision_id, now)
        if reservation is None:
            self.tally.duplicates += 1
            return False
        endpoint = self._snapshot.at_url(reservation.url)
        decision = reservation.decision
        if decision is not None:
            decision.ended = ended
        self._judge(endpoint, ended, now)
        if endpoint is not None:
            self._learn(endpoint, decision, ended)
        if endpoint is not None and decision is not None and decision.last_block and ended.output_tokens > 0:
            self._note_answer(endpoint, decision, ended, now)
        if ended.end != _COMPLETE or self.thinning.takes(now):
            at = reservation.reserved_at + self._unix_offset_s
            self._record(request_outcome(reservation, ended, endpoint, decided_at=at))
        return True

    def _judge(self, endpoint: Endpoint | None, ended: Ended, now: float) -> None:
        """What it says of the endpoint that it ended so."""
        if endpoint is None:
            return
        if endpoint.breaker.ended(now, ended.decision_id, ended.end):
            self.tally.breakers_opened += 1
        if ended.end in FAILURES:
            endpoint.failures += 1
        self._count_end(endpoint.record.worker, ended.end)

    def _learn(self, endpoint: Endpoint, decision: Decided | None, ended: Ended) -> None:
        """From its times, and from what the engine found in its cache."""
        complete = ended.end == _COMPLETE
        endpoint.standing = None
        if ended.itl_s > 0:
            endpoint.rates.gap(ended.itl_s)
        if complete and ended.ttft_s > 0:
            bound = 0 if decision is None else decision.request.max_tokens
            endpoint.rates.held(ended.e2e_s - ended.ttft_s, tokens=ended.output_tokens, max_tokens=bound)
        if decision is None or not complete or ended.cached_tokens < 0 or not decision.checkable:
            return
        if decision.claimed_tokens:
            self._index.claim_judged(came_true=ended.cached_tokens >= decision.claimed_tokens)
        endpoint.credit = self._self_check.compare(
            endpoint.name, endpoint.record.epoch, decision.request.model, decision.expected_tokens, ended.cached_tokens
        )

    def _note_answer(self, endpoint: Endpoint, decision: Decided, ended: Ended, now: float) -> None:
        """What the engine now holds of the answer, before it says so: all but the last token, which it never computed."""
        if ended.end != _COMPLETE:
            return
        prompt, size = decision.request.input_tokens, endpoint.record.block_size
        if ended.prompt_tokens in (-1, prompt):
            filled = (prompt + ended.output_tokens - 1) // size
            self._index.answered(endpoint.slot, decision.last_block, prompt // size, filled, now)

    def _ended_unasked(self, ended: Ended, now: float) -> None:
        """A data plane served this one by itself: evidence for the breaker, and a line in the log."""
        endpoint = self._snapshot.at_url(ended.url)
        self._judge(endpoint, ended, now)
        if endpoint is not None:
            self._learn(endpoint, None, ended)
        self._record(fallback_outcome(ended, endpoint, decided_at=now + self._unix_offset_s))

    def lost(self, reservation: Reservation, now: float) -> None:
        """Its data plane vanished, or does not know of it."""
        ended = Ended(decision_id=reservation.decision_id, end=End.LOST)
        endpoint = self._snapshot.at_url(reservation.url)
        self._end_breaker(reservation, End.LOST, now)
        if endpoint is not None:
            self._count_end(endpoint.worker, End.LOST)
        if reservation.decision is not None:
            reservation.decision.ended = ended
        at = reservation.reserved_at + self._unix_offset_s
        self._record(request_outcome(reservation, ended, endpoint, decided_at=at))

    def withdrawn(self, reservation: Reservation, now: float) -> None:
        """Its caller has gone. Not an outcome of any engine."""
        self._end_breaker(reservation, End.CLIENT_GONE, now)

    def _end_breaker(self, reservation: Reservation, end: int, now: float) -> None:
        endpoint = self._snapshot.at_url(reservation.url)
        if endpoint is not None:
            self.tally.breakers_opened += endpoint.breaker.ended(now, reservation.decision_id, end)

    def _count_end(self, worker: str, end: int) -> None:
        self.tally.end(worker, END_NAMES[end]).count += 1

    def teach(self, in_use: Ranker | None) -> None:
        """The rankers, in batches, off the decisions' path: one call of the model for all first tokens since the last tick."""
        if not self._samples:
            return
        most = SAMPLES_IDLE_MAX if in_use is None else SAMPLES_MAX
        samples: list[Sample] = []
        for decision, ttft_s, record in reversed(self._samples):  # rows are made of those alone that are looked at
            sample = Sample(decision.candidate, ttft_s, record)
            if sample.current:
                samples.append(sample)
                if len(samples) == most:
                    break
        samples.reverse()
        self._samples.clear()
        for ranker in self._rankers:
            ranker.learn(samples if ranker is in_use else samples[-SAMPLES_IDLE_MAX:])

    def forget(self, endpoint: Endpoint) -> None:
        """It is gone for good."""
        self._self_check.forget(endpoint.name)
        for ranker in self._rankers:
            ranker.forget(endpoint)
