"""Admission: who is refused, who waits, and who of those that wait is next.

A question that finds every endpoint above the guard waits here, up to its deadline, in a queue with a bound: classes of
priority first, within a class the tenants in turn, within a tenant first come first served. No tenant may fill the whole queue.
A new question does not overtake those that wait for the same model.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass

from controlplane.endpoint import Candidate, Endpoint
from controlplane.question import Question, Request, Shed, ShedReason

WAITING_MAX = 2_048
"""Questions waiting over all models."""
TENANT_SHARE_MAX = 0.5
"""Of the queue, for one tenant, while others wait too."""
WAIT_S_MAX = 5.0
"""Longest wait; a shorter TTFT bound of the request shortens it."""
RETRY_SOON_S = 1.0
RETRY_WORKER_S = 3.0
"""Retry-After where a backlog clears, and where a worker has to come (its TTL)."""


def refuse_absent(model: str, absent: Sequence[Endpoint], *, seen: bool, warm: bool) -> Shed:
    """No endpoint serves the model at all. seen: a worker did once; warm: the fleet has been read."""
    if not absent and not seen:
        if not warm:
            return Shed(ShedReason.NO_WORKER, "The router has just started and does not know its workers yet.", RETRY_SOON_S)
        return Shed(ShedReason.UNKNOWN_MODEL, f"The model '{model}' does not exist: no worker has served it.")
    if any(endpoint.alive and endpoint.draining for endpoint in absent):
        return Shed(ShedReason.ALL_DRAINING, f"Every worker of the model '{model}' is draining.", RETRY_WORKER_S)
    return Shed(ShedReason.NO_WORKER, f"No worker of the model '{model}' is alive.", RETRY_WORKER_S)


def refuse_filtered(reason: ShedReason, model: str, candidates: Sequence[Candidate], now: float) -> Shed:
    """A filter left nobody."""
    if reason == ShedReason.EXCLUDED:
        return Shed(reason, f"Every worker of the model '{model}' was tried for this request.", RETRY_SOON_S)
    if reason == ShedReason.ALL_BREAKERS_OPEN:
        wait_s = min(candidate.endpoint.breaker.retry_after_s(now) for candidate in candidates)
        return Shed(reason, f"Every worker of the model '{model}' is failing.", max(wait_s, RETRY_SOON_S))
    return Shed(reason, f"Every worker of the model '{model}' is at its limit of active requests.", RETRY_SOON_S)


def refuse_hopeless(
    request: Request, candidates: Sequence[Candidate], predicted_s: Sequence[float] | None = None
) -> Shed | None:
    """The request has a TTFT bound that no candidate can meet even if nothing else happens there.

    predicted_s: what the served model expects of each candidate, where it is sure. Without it, only where the prefill speed of
    every candidate is known: the uncached tokens, its own and those queued before it, at that speed. None: it may be met, or
    it cannot be told.
    """
    if request.slo_ttft_ms <= 0:
        return None
    estimates = [prefill_s(candidate) for candidate in candidates] if predicted_s is None else predicted_s
    if not estimates or min(estimates) * 1000 <= request.slo_ttft_ms:
        return None
    message = f"No worker can give a first token within {request.slo_ttft_ms:.0f} ms: the soonest is {min(estimates):.2f} s."
    return Shed(ShedReason.SLO_UNREACHABLE, message, max(RETRY_SOON_S, min(estimates) - request.slo_ttft_ms / 1000))


def prefill_s(candidate: Candidate) -> float:
    """Time to compute what stands before this request's first token; 0 where the speed is not known."""
    speed = candidate.prefill_tokens_per_s
    return (candidate.uncached_tokens + candidate.prefill_tokens) / speed if speed > 0 else 0.0


@dataclass(frozen=True, slots=True, eq=False)
class Waiting:
    """A question in the queue, and to whom its answer goes."""

    question: Question
    owner: str
    question_id: int
    deadline: float

    @property
    def key(self) -> tuple[str, int]:
        return self.owner, self.question_id


class _FairQueue:
    """Of one model."""

    __slots__ = ("_classes", "size")

    def __init__(self) -> None:
        self._classes: dict[int, OrderedDict[str, deque[Waiting]]] = {}
        self.size = 0

    def put(self, waiting: Waiting) -> None:
        tenants = self._classes.setdefault(waiting.question.request.priority, OrderedDict())
        tenants.setdefault(waiting.question.request.tenant, deque()).append(waiting)
        self.size += 1

    def peek(self) -> Waiting | None:
        if not self._classes:
            return None
        tenants = self._classes[max(self._classes)]
        return next(iter(tenants.values()))[0]

    def took_turn(self, waiting: Waiting) -> None:
        """It was served: its tenant goes to the end of the row."""
        self.remove(waiting)
        tenants = self._classes.get(waiting.question.request.priority)
        if tenants is not None and waiting.question.request.tenant in tenants:
            tenants.move_to_end(waiting.question.request.tenant)

    def remove(self, waiting: Waiting) -> None:
        tenants = self._classes[waiting.question.request.priority]
        line = tenants[waiting.question.request.tenant]
        line.remove(waiting)
        self.size -= 1
        if not line:
            del tenants[waiting.question.request.tenant]
        if not tenants:
            del self._classes[waiting.question.request.priority]


class WaitingRoom:
    """The bounded queue over all models. waiting_max 0: nobody waits, saturation is refused at once."""

    def __init__(self, *, waiting_max: int = WAITING_MAX, wait_s_max: float = WAIT_S_MAX) -> None:
        self._waiting_max = waiting_max
        self._wait_s_max = wait_s_max
        self._queues: dict[str, _FairQueue] = {}
        self._by_key: dict[tuple[str, int], Waiting] = {}
        self._of_tenant: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._by_key)

    @property
    def enabled(self) -> bool:
        return self._waiting_max > 0

    def models(self) -> list[str]:
        """Models somebody waits for."""
        return list(self._queues)

    def waits_for(self, model: str) -> bool:
        return model in self._queues

    def offer(self, question: Question, owner: str, question_id: int, now: float) -> Shed | None:
        """Takes the question in, or says why not."""
        of_tenant = self._of_tenant.get(question.request.tenant, 0)
        crowded = len(self._by_key) > of_tenant and of_tenant >= TENANT_SHARE_MAX * self._waiting_max
        if len(self._by_key) >= self._waiting_max or crowded or (owner, question_id) in self._by_key:
            message = f"{len(self._by_key)} requests are waiting for a worker already, {of_tenant} of them of this tenant."
            return Shed(ShedReason.QUEUE_FULL, message, RETRY_SOON_S)
        wait_s = self._wait_s_max
        if question.request.slo_ttft_ms > 0:
            wait_s = min(wait_s, question.request.slo_ttft_ms / 1000)
        waiting = Waiting(question, owner, question_id, now + wait_s)
        self._queues.setdefault(question.request.model, _FairQueue()).put(waiting)
        self._by_key[waiting.key] = waiting
        self._of_tenant[question.request.tenant] = of_tenant + 1
        return None

    def next(self, model: str) -> Waiting | None:
        """Whose turn it is for this model; stays in the queue until `served`."""
        queue = self._queues.get(model)
        return None if queue is None else queue.peek()

    def served(self, waiting: Waiting) -> None:
        self._queues[waiting.question.request.model].took_turn(waiting)
        self._left(waiting)

    def withdraw(self, owner: str, question_id: int) -> bool:
        """Its caller has gone. False: it was not waiting."""
        waiting = self._by_key.get((owner, question_id))
        if waiting is None:
            return False
        self._remove(waiting)
        return True

    def withdraw_all(self, owner: str) -> None:
        """Its stream broke: the answers have nowhere to go."""
        for waiting in [waiting for waiting in self._by_key.values() if waiting.owner == owner]:
            self._remove(waiting)

    def expire(self, now: float) -> list[Waiting]:
        """Takes out those whose deadline has passed."""
        late = [waiting for waiting in self._by_key.values() if now >= waiting.deadline]
        for waiting in late:
            self._remove(waiting)
        return late

    def _remove(self, waiting: Waiting) -> None:
        self._queues[waiting.question.request.model].remove(waiting)
        self._left(waiting)

    def _left(self, waiting: Waiting) -> None:
        del self._by_key[waiting.key]
        left = self._of_tenant[waiting.question.request.tenant] - 1
        if left:
            self._of_tenant[waiting.question.request.tenant] = left
        else:
            del self._of_tenant[waiting.question.request.tenant]
        if self._queues[waiting.question.request.model].size == 0:
            del self._queues[waiting.question.request.model]
