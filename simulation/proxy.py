"""The data plane in virtual time: one request from its arrival to its end, whatever happens in between.

A request is asked for, sent, and retried elsewhere as long as no token has reached its client. Without a control plane it goes
to the worker with the fewest of our own requests. It ends exactly once, in one of the ways of `Fate`.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol

from contract.outcome import End
from controlplane import question
from controlplane.ledger import Claim
from controlplane.question import Decision, Ended, Shed, ShedReason
from controlplane.ranks import place
from emulator.sequence import Request, Sequence
from simulation.control import SimControl
from simulation.timeline import Timeline
from simulation.worker import SimWorker
from simulation.workload import Job, Prompts

OWNER = "proxy-0"
HOP_S = 0.0005
"""Network and parsing between router and engine, one way."""
ATTEMPTS_MAX = 3

_COLD = (ShedReason.UNKNOWN_MODEL, ShedReason.NO_WORKER)
"""Refusals that a control plane which has not read its fleet cannot mean."""


class Fate(Enum):
    """How a request ended for its client."""

    COMPLETE = "complete"
    BROKEN = "broken"  # an error after the first token, or no attempt left
    SHED = "shed"
    LEFT = "left"  # the client went away


@dataclass(slots=True)
class Result:
    """One request, ended. Times are seconds, -1 where there is none; ttft_s counts from the arrival at the router."""

    index: int
    fate: Fate
    arrived_s: float
    ended_s: float
    worker: str = ""
    why: str = ""
    ttft_s: float = -1.0
    itl_s: float = -1.0
    input_tokens: int = 0
    output_tokens: int = 0
    matched_tokens: int = -1
    cached_tokens: int = -1
    attempts: int = 0
    fallback: bool = False


@dataclass(frozen=True, slots=True)
class Model:
    """A served model: what questions carry of it, its prompts, and the URLs of its workers. slo_ttft_ms: 0 for none; the
    director may shed by it."""

    name: str
    block_size: int
    prompts: Prompts
    urls: tuple[str, ...]
    slo_ttft_ms: float = 0.0


@dataclass(slots=True, eq=False)
class Call:
    """One request at the router. The listener of its engine."""

    proxy: Proxy
    job: Job
    model: Model
    arrived_s: float
    chain: array[int]
    attempts: int = 0
    question_id: int = 0
    decision: Decision | None = None
    """What is reserved for it now."""
    worker: SimWorker | None = None
    """Where it is now; None while asked, waiting or ended."""
    rank: int | None = None
    """That it names there; None: the worker has one alone, or balances by itself."""
    sent_s: float = 0.0
    first_s: float = -1.0
    done: bool = False
    tried: list[SimWorker] = field(default_factory=list)
    matched_tokens: int = -1
    fallback: bool = False

    @property
    def request_id(self) -> str:
        return f"{self.job.index}.{self.attempts}"

    def first_token(self, now: float) -> None:
        self.proxy.first_token(self, now)

    def finished(self, sequence: Sequence, now: float) -> None:
        self.proxy.finished(self, sequence, now)

    def broken(self, now: float) -> None:
        self.proxy.failed(self, End.RESET, now)


class Witness(Protocol):
    """Who is told of everything that counts."""

    def decided(self, call: Call, decision: Decision) -> None:
        """An endpoint was chosen, and is not told yet."""

    def reservations_changed(self) -> None:
        """One was made, refunded or released, and both sides know."""

    def ended(self, result: Result) -> None:
        """Once a request."""


class Proxy:
    """All requests of a run."""

    def __init__(
        self,
        timeline: Timeline,
        control: SimControl,
        workers: Mapping[str, SimWorker],
        models: Mapping[str, Model],
        witness: Witness,
    ) -> None:
        """workers: by URL; models: by the name that a job has for it."""
        self._timeline = timeline
        self._control = control
        self._workers = workers
        self._models = models
        self._witness = witness
        self._waiting: dict[int, Call] = {}
        self._questions = 0
        self._told_at = 0.0
        self.connected = True
        self.calls: dict[int, Call] = {}
        """Requests that have not ended, by job."""

    @property
    def num_reserved(self) -> int:
        """Requests in flight that hold a reservation."""
        return sum(call.decision is not None for call in self.calls.values())

    # ------------------------------------------------------------------------------------------------------------ arrival

    def arrive(self, job: Job) -> None:
        model = self._models[job.model]
        call = Call(self, job, model, self._timeline.now(), model.prompts.chain(job))
        self.calls[job.index] = call
        if job.leaves_s is not None:
            self._timeline.after(job.leaves_s, self._leave, call)
        self._ask(call)

    def _ask(self, call: Call) -> None:
        if not self.connected or not self._control.up:
            self._fall_back(call)
            return
        self._questions += 1
        call.question_id = self._questions
        self._tell_token_ages()
        job = call.job
        asked = question.Request(
            model=call.model.name,
            input_tokens=job.input_tokens,
            max_tokens=job.output_tokens,
            slo_ttft_ms=call.model.slo_ttft_ms,
            exclude=self._slots(call.tried),
            session=job.row.session,
            request_id=str(job.index),
            attempt=call.attempts,
            streams=True,
        )
        whole = question.Question(asked, {call.model.block_size: call.chain})
        answer = self._control.director.ask(whole, self._timeline.now(), owner=OWNER, question_id=call.question_id)
        if answer is None:
            self._waiting[call.question_id] = call
        else:
            self._answered(call, answer)
            self._witness.reservations_changed()

    def _tell_token_ages(self) -> None:
        """Of workers whose tokens came since the last question."""
        now, told_at = self._timeline.now(), self._told_at
        self._told_at = now
        at_url = self._control.snapshot.at_url
        newer = [
            (at_url(place(worker.url, rank)), now - token_at)
            for worker in self._workers.values()
            for rank, token_at in enumerate(worker.token_ats)
            if token_at >= told_at
        ]
        self._control.director.tokens_came([(there.slot, age_s) for there, age_s in newer if there is not None], now)

    def poll(self) -> None:
        """Takes the answers to questions that had to wait."""
        if not self._waiting or not self.connected or not self._control.up:
            return
        for answer in self._control.director.answers(self._timeline.now()):
            self._answered(self._waiting.pop(answer.question_id), answer.result)
        self._witness.reservations_changed()  # after all of them: they were reserved together

    def _answered(self, call: Call, answer: Decision | Shed) -> None:
        if isinstance(answer, Shed) and answer.reason in _COLD and not self._control.director.warm:
            self._fall_back(call)
            return
        if isinstance(answer, Shed):
            self._end(call, Fate.BROKEN if call.attempts else Fate.SHED, why=answer.reason.name.lower())
            return
        self._witness.decided(call, answer)
        call.decision = answer
        call.matched_tokens = answer.expected_tokens
        endpoint = answer.candidate.endpoint
        self._dispatch(call, self._workers[endpoint.url], endpoint.rank if endpoint.ranks else None)

    def _fall_back(self, call: Call) -> None:
        """Nobody to ask: the fewest requests of our own, workers that it has not met yet first."""
        counts = dict.fromkeys(call.model.urls, 0)
        for other in self.calls.values():
            if other.worker is not None and other.model is call.model:
                counts[other.worker.url] += 1
        url = min(counts, key=lambda url: (self._workers[url] in call.tried, counts[url], url))
        call.fallback = True
        call.matched_tokens = -1
        self._dispatch(call, self._workers[url])

    def _slots(self, workers: list[SimWorker]) -> tuple[int, ...]:
        known = (self._control.snapshot.at_url(worker.url) for worker in workers)
        return tuple(endpoint.slot for endpoint in known if endpoint is not None)

    # ------------------------------------------------------------------------------------------------------------- attempt

    def _dispatch(self, call: Call, worker: SimWorker, rank: int | None = None) -> None:
        call.attempts += 1
        call.worker, call.rank = worker, rank
        call.tried.append(worker)
        call.sent_s = self._timeline.now()
        self._timeline.after(HOP_S, self._connect, call, call.attempts)

    def _connect(self, call: Call, attempt: int) -> None:
        if call.done or call.attempts != attempt or call.worker is None:
            return
        job = call.job
        request = Request(
            request_id=call.request_id,
            prompt=call.model.prompts.tokens(job),
            max_tokens=job.output_tokens,
            min_tokens=job.output_tokens,
            ignore_eos=True,
        )
        if not call.worker.submit(request, call, call.rank):
            self.failed(call, End.CONNECT_FAILED, self._timeline.now())

    def first_token(self, call: Call, now: float) -> None:
        call.first_s = now
        if call.decision is not None and self._reachable:
            self._control.director.first_byte(call.decision.decision_id, now - call.sent_s, now)
            self._witness.reservations_changed()

    def finished(self, call: Call, sequence: Sequence, now: float) -> None:
        tokens = sequence.num_output
        itl_s = (now - call.first_s) / (tokens - 1) if tokens > 1 else -1.0
        self._report(call, End.COMPLETE, now, cached=sequence.num_cached, tokens=tokens, itl_s=itl_s)
        self._end(call, Fate.COMPLETE, cached=sequence.num_cached, tokens=tokens, itl_s=itl_s)

    def failed(self, call: Call, end: End, now: float) -> None:
        """This attempt is over: another one, if its client has seen nothing yet and the budget allows."""
        self._report(call, end, now)
        if call.first_s >= 0 or call.attempts >= ATTEMPTS_MAX:
            self._end(call, Fate.BROKEN, why=end.name.lower())
        else:
            self._ask(call)

    def _leave(self, call: Call) -> None:
        if call.done:
            return
        now = self._timeline.now()
        if self._waiting.pop(call.question_id, None) is not None:
            if self._reachable:
                self._control.director.cancel(OWNER, call.question_id, now)
        else:
            if call.worker is not None:
                call.worker.cancel(call.request_id)
            self._report(call, End.CLIENT_GONE, now)
        self._end(call, Fate.LEFT)

    # ----------------------------------------------------------------------------------------------------------------- end

    @property
    def _reachable(self) -> bool:
        return self.connected and self._control.up

    def _report(self, call: Call, end: End, now: float, *, cached: int = -1, tokens: int = 0, itl_s: float = -1.0) -> None:
        decision, worker = call.decision, call.worker
        call.worker = None
        call.decision = None
        if worker is None or not self._reachable:
            return
        ended = Ended(
            decision_id=0 if decision is None else decision.decision_id,
            end=end,
            http_status=200,
            ttft_s=call.first_s - call.sent_s if call.first_s >= 0 else -1.0,
            e2e_s=now - call.sent_s,
            output_tokens=tokens,
            prompt_tokens=call.job.input_tokens,
            cached_tokens=cached,
            streamed=True,
            itl_s=itl_s,
            request_id=str(call.job.index),
            model=call.model.name,
            url=worker.url,
            input_tokens=call.job.input_tokens,
        )
        self._control.director.ended(ended, now)
        self._witness.reservations_changed()
        self.poll()

    def _end(self, call: Call, fate: Fate, *, why: str = "", cached: int = -1, tokens: int = 0, itl_s: float = -1.0) -> None:
        assert not call.done, f"request {call.job.index} ended twice"
        call.done = True
        del self.calls[call.job.index]
        self._witness.ended(
            Result(
                index=call.job.index,
                fate=fate,
                arrived_s=call.arrived_s,
                ended_s=self._timeline.now(),
                worker=call.tried[-1].name if call.tried else "",
                why=why,
                ttft_s=call.first_s - call.arrived_s if call.first_s >= 0 else -1.0,
                itl_s=itl_s,
                input_tokens=call.job.input_tokens,
                output_tokens=tokens,
                matched_tokens=call.matched_tokens,
                cached_tokens=cached,
                attempts=call.attempts,
                fallback=call.fallback,
            )
        )

    # --------------------------------------------------------------------------------------------------------- connection

    def disconnect(self) -> None:
        """The stream to the control plane breaks: what waits there has to be placed without it."""
        if not self.connected:
            return
        self.connected = False
        if self._control.up:
            self._control.director.departed(OWNER, self._timeline.now())
        waiting, self._waiting = self._waiting, {}
        for call in waiting.values():
            self._fall_back(call)

    def reconnect(self) -> None:
        """A new stream, which begins with what this process relays."""
        if self.connected or not self._control.up:
            return
        self.connected = True
        self._control.director.arrived(OWNER, list(self.claims()), self._timeline.now())
        self._witness.reservations_changed()

    def claims(self) -> Iterator[Claim]:
        """The requests that hold a reservation, as a new stream would begin with them."""
        for call in self.calls.values():
            if call.decision is not None and call.worker is not None:
                candidate = call.decision.candidate
                yield Claim(
                    decision_id=call.decision.decision_id,
                    url=candidate.endpoint.place,
                    uncached_tokens=candidate.uncached_tokens,
                    input_tokens=call.job.input_tokens,
                    first_byte_seen=call.first_s >= 0,
                )
