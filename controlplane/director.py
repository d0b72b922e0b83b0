"""The director: from a question to a decision. What becomes of it afterwards is the business of its `ends`.

    decide   admit · candidates = snapshot x ledger x index x breaker · scheduler · reserve · speculate · remember
    tick     what time alone changes

It is pure: time and chance are arguments, the outcome log is a callable, and what waits for room is answered when whoever
drives it asks (`answers`). Everything runs in one thread, a decision is never interrupted, and each one sees the
reservations of all that came before it: the questions of one message do not herd.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Sequence
from random import Random
from typing import Protocol

import msgspec

from contract import routing
from contract.outcome import Outcome
from contract.routing import RANK_STEP, Asked, named
from controlplane import admission, packed
from controlplane.admission import Waiting, WaitingRoom
from controlplane.answers import NEVER
from controlplane.candidates import candidates_of, last_block, usable
from controlplane.endpoint import Candidate, Endpoint
from controlplane.ends import Ends
from controlplane.explain import DecisionRing, Trace
from controlplane.filters import Filter
from controlplane.ledger import Claim, Ledger
from controlplane.outcome_record import shed_outcome
from controlplane.picker import Turn
from controlplane.profiles import Profile
from controlplane.progress import HUNG_AFTER_S, suspect_hung
from controlplane.question import Decision, Ended, Question, Request, Shed, ShedReason
from controlplane.rankers import LeastPredicted
from controlplane.ranking import Ranking
from controlplane.scheduler import schedule
from controlplane.self_check import SelfCheck
from controlplane.settling import Settling
from controlplane.snapshot import FleetSnapshot, Lane
from controlplane.speculation import Chain
from controlplane.tally import Tally
from controlplane.thinning import Thinning

TOGETHER_ROWS_MIN = 48
"""Candidates of several decisions of one moment, from which they are predicted together; looking twice costs more below."""
TOGETHER_ROWS_MAX = 4_096

_NO_BLOCKS: dict[int, int] = {}

_NEVER_HOLD = float("inf")

TOO_SHORT = "context too short"
"""Why an endpoint that serves was no candidate."""


class Index(Protocol):
    """What the director asks of the prefix index."""

    def match(self, hashes: Chain, live_mask: int | None = None) -> dict[int, int]: ...

    def speculate(self, slot: int, hashes: Chain, now: float) -> None: ...

    def answered(self, slot: int, last_block: int, prompt_blocks: int, filled_blocks: int, now: float) -> None: ...

    def claim_judged(self, *, came_true: bool) -> None: ...

    @property
    def claims(self) -> dict[int, int]: ...

    @property
    def awaited(self) -> float: ...

    @property
    def generation(self) -> int: ...

    def detach(self, slot: int) -> None: ...


class UnknownPolicyError(ValueError):
    """No such profile; the message lists those there are."""


class Answer(msgspec.Struct, frozen=True, gc=False):
    """What became of a question that had to wait."""

    owner: str
    question_id: int
    result: Decision | Shed


class Director:
    _ends_kind: type[Ends] = Ends

    def __init__(
        self,
        *,
        snapshot: FleetSnapshot,
        ledger: Ledger,
        index: Index,
        waiting: WaitingRoom,
        ring: DecisionRing,
        self_check: SelfCheck,
        profiles: dict[str, Profile],
        policy: str,
        rng: Random,
        record: Callable[[Outcome], None],
        unix_offset_s: float,
        first_decision_id: int = 1,
        hung_after_s: float = HUNG_AFTER_S,
        predicted: LeastPredicted | None = None,
        thinning: Thinning | None = None,
        settle_s: float = 0.0,
    ) -> None:
        """record: takes every outcome; unix_offset_s: Unix time less `now`; predicted: judges TTFT bounds, whatever the
        policy; thinning: which records of complete requests are taken, by default all; settle_s: how long at
        most the next turn may wait for the engine's word on the answer before it, by default not at all. UnknownPolicyError."""
        self._snapshot = snapshot
        self._ledger = ledger
        self._index = index
        self._waiting = waiting
        self._may_wait = waiting.enabled
        self.settling = Settling(settle_s)
        self._ring = ring
        self._profiles = profiles
        self._turn = Turn(rng)
        self._claims: dict[int, int] = {}
        self._awaited = NEVER  # until when blocks that the last question's match may lack are worth waiting for
        self._record = record
        self._unix_offset_s = unix_offset_s
        self._next_id = first_decision_id
        self._hung_after_s = hung_after_s
        self._predicted = predicted
        self.tally = Tally()
        self.ends = self._ends_kind(
            snapshot=snapshot,
            ledger=ledger,
            index=index,
            self_check=self_check,
            rankers=[profile.ranker for profile in profiles.values() if profile.ranker is not None],
            tally=self.tally,
            thinning=thinning or Thinning(0),
            record=record,
            unix_offset_s=unix_offset_s,
        )
        self.warm = False
        """Whether the fleet's state has been read; until then an unknown model is no mistake of the caller."""
        self.set_policy(policy)

    @property
    def policy(self) -> str:
        return self._profile.name

    @property
    def needs_chains(self) -> bool:
        """Whether the policy looks at prompts."""
        return self._profile.needs_chains

    @property
    def policies(self) -> list[str]:
        return list(self._profiles)

    def set_policy(self, name: str) -> None:
        """From the next decision on. UnknownPolicyError: no such profile."""
        if name not in self._profiles:
            raise UnknownPolicyError(f"no policy {name!r}; there are {', '.join(self._profiles)}")
        self._profile = self._profiles[name]

    # ------------------------------------------------------------------------------------------------------- decide

    def ask(self, question: Question, now: float, *, owner: str, question_id: int) -> Decision | Shed | None:
        """As `decide` with a reservation; None: it waits for room, or for the engine's word on the answer before it, and
        `answers` or `cancel` will have it."""
        if self._may_wait and self._waiting.waits_for(question.request.model):
            return self._queue(question, now, owner, question_id)
        hold_past = now if self.settling.open else _NEVER_HOLD
        result = self._attempt(question, now, owner, question_id, reserve=True, hold_past=hold_past)
        if isinstance(result, Decision):
            return result
        if result is None:
            self.settling.hold(question, owner, question_id, self._awaited, self._claims, now)
            return None
        if self._may_wait and result.reason == ShedReason.ALL_SATURATED:
            return self._queue(question, now, owner, question_id)
        return self._refused(question, result, now)

    def ask_all(
        self, questions: Sequence[tuple[int, Question]], now: float, *, owner: str
    ) -> list[tuple[int, Decision | Shed | None]]:
        """(question_id, question) of one moment, in their order: as `ask` for each, and each sees those before it. What a
        model has to predict for them it is asked in one call."""
        together = len(questions) > 1 and self._foresee(questions, now)
        answers = [
            (question_id, self.ask(question, now, owner=owner, question_id=question_id)) for question_id, question in questions
        ]
        if together and self._predicted is not None:
            self._predicted.forecaster.foresee(())
        return answers

    def answer_all(self, asked: Sequence[Asked], now: float, *, owner: str) -> list[routing.Answer | routing.Placement]:
        """As `ask_all`, from packed questions to packed answers."""
        questions = [(one.question_id, packed.readable(one)) for one in asked]
        results = self.ask_all(questions, now, owner=owner)
        policy = self._profile.name
        return [packed.answer(result, question_id, policy) for question_id, result in results]

    def _foresee(self, questions: Sequence[tuple[int, Question]], now: float) -> bool:
        """Whether anything was predicted."""
        predicted = self._predicted
        if predicted is None or self._profile.ranker is not predicted or not predicted.forecaster.serving:
            return False
        alone_max = predicted.forecaster.alone_max
        lanes = [self._snapshot.lane(question.request.model) for _, question in questions]
        lanes = [lane if lane is not None and len(lane.serving) > alone_max else None for lane in lanes]
        if sum([len(lane.serving) for lane in lanes if lane is not None]) < TOGETHER_ROWS_MIN:
            return False
        rows: list[Candidate] = []
        for lane, (_, question) in zip(lanes, questions, strict=True):
            if lane is not None and len(rows) + len(lane.serving) <= TOGETHER_ROWS_MAX:
                rows += candidates_of(lane, question.request, self._matches(lane, question), now)
        predicted.forecaster.foresee(rows)
        return bool(rows)

    def decide(self, question: Question, now: float, *, reserve: bool = False) -> Decision | Shed:
        """At once, without an owner. reserve False: a dry run that leaves no trace."""
        result = self._attempt(question, now, "", 0, reserve=reserve)
        assert result is not None
        return self._refused(question, result, now) if reserve and isinstance(result, Shed) else result

    def _attempt(
        self,
        question: Question,
        now: float,
        owner: str,
        question_id: int,
        *,
        reserve: bool,
        hold_past: float = _NEVER_HOLD,
    ) -> Decision | Shed | None:
        """None: it had better be held back, since it lacks blocks that are awaited beyond `hold_past`."""
        snapshot = self._snapshot
        request = question.request
        model = request.model
        lane = snapshot.lane(model)
        if lane is None or not lane.serving:
            absent = () if lane is None else lane.absent
            return admission.refuse_absent(model, absent, seen=snapshot.model_seen(model), warm=self.warm)
        if request.input_tokens + request.max_tokens > lane.taken_by_all:
            lane = lane.for_tokens(request.input_tokens + request.max_tokens)
        matches = self._matches(lane, question)
        if self._awaited > hold_past and not request.slo_ttft_ms:
            return None
        candidates = candidates_of(lane, request, matches, now)
        profile = self._profile
        choice = schedule(profile, candidates, request, self._turn)
        if isinstance(choice, Filter):
            return admission.refuse_filtered(choice.emptied, model, candidates, now)
        if request.slo_ttft_ms > 0:
            hopeless = admission.refuse_hopeless(request, candidates, self._predicted_s(candidates))
            if hopeless is not None:
                return hopeless
        chosen, at, ranking = choice.candidate, choice.position, choice.ranking
        endpoint = chosen.standing.endpoint
        forecast = None if ranking is None else ranking.forecast
        decision = Decision(
            decision_id=self._take_id() if reserve else 0,
            decided_at=now + self._unix_offset_s,
            request=request,
            candidate=chosen,
            expected_tokens=usable(matches.get(endpoint.slot, 0), endpoint, request) if matches else 0,
            checkable=request.exact_tokens,
            policy=profile.name,
            candidates=choice.kept,
            claimed_tokens=usable(self._claims.get(endpoint.slot, 0), endpoint, request) if self._claims else 0,
            last_block=last_block(question, endpoint) if question.chains else 0,
            predicted_ttft_s=0.0 if forecast is None else forecast.p50_s[at],
            predicted_p90_s=0.0 if forecast is None else forecast.p90_s[at],
            model_id="" if forecast is None else forecast.model_id,
            fell_back="" if ranking is None else ranking.reason,
        )
        if reserve:
            self._reserve(decision, question.chains, candidates, lane, now, owner, question_id, ranking)
        return decision

    def _predicted_s(self, candidates: Sequence[Candidate]) -> Sequence[float] | None:
        """What the served model expects of each; None: there is none, or it is not sure."""
        ranking = None if self._predicted is None else self._predicted.judge(candidates)
        return ranking.costs if ranking is not None and ranking.costs else None

    def _matches(self, lane: Lane, question: Question) -> dict[int, int]:
        """Slot -> matched blocks, for every block size in use."""
        self._claims = matches = _NO_BLOCKS
        self._awaited = NEVER
        chains = question.chains
        if not chains:
            return matches
        for size, mask in lane.masks.items():
            hashes = chains.get(size)
            if hashes:
                found = self._index.match(hashes, mask)
                matches = matches | found if matches else found
                if self._index.claims:
                    self._claims = self._claims | self._index.claims
                    self._awaited = max(self._awaited, self._index.awaited)
        return matches

    def _reserve(
        self,
        decision: Decision,
        chains: dict[int, array[int]],
        candidates: list[Candidate],
        lane: Lane,
        now: float,
        owner: str,
        question_id: int,
        ranking: Ranking | None,
    ) -> None:
        request, chosen = decision.request, decision.candidate
        endpoint = chosen.standing.endpoint
        self._ledger.reserve(
            decision.decision_id,
            endpoint.place,
            uncached_tokens=chosen.uncached_tokens,
            input_tokens=request.input_tokens,
            now=now,
            owner=owner,
            question_id=question_id,
            decision=decision,
        )
        if not endpoint.breaker.closed:
            endpoint.breaker.began(now, decision.decision_id)
        endpoint.requests += 1
        hashes = chains.get(endpoint.record.block_size) if chains else None
        if hashes:
            self._index.speculate(endpoint.slot, hashes, now)
        tally = self.tally
        tally.decision(decision.policy, endpoint.record.worker).count += 1
        tally.input_tokens += request.input_tokens
        tally.matched_tokens += chosen.matched_tokens
        self._remember(decision.decision_id, decision, request, candidates, lane, decision.decided_at, ranking)

    def _remember(
        self,
        decision_id: int,
        result: Decision | Shed,
        request: Request,
        candidates: list[Candidate],
        lane: Lane | None,
        at: float,
        ranking: Ranking | None = None,
    ) -> None:
        absent: tuple[tuple[Endpoint, str], ...] = ()
        if lane is not None and lane.absent:
            absent = tuple([(endpoint, endpoint.absence or TOO_SHORT) for endpoint in lane.absent])
        self._ring.add(Trace(decision_id, at, self._profile, request, tuple(candidates), absent, result, ranking))

    def _refused(self, question: Question, shed: Shed, now: float) -> Shed:
        """A refusal that leaves this process: numbered, counted, recorded."""
        numbered = Shed(shed.reason, shed.message, shed.retry_after_s, self._take_id())
        self.tally.sheds[shed.reason.name] = self.tally.sheds.get(shed.reason.name, 0) + 1
        at = now + self._unix_offset_s
        request = question.request
        lane = self._snapshot.lane(request.model)
        candidates = candidates_of(lane, request, self._matches(lane, question), now) if lane and lane.serving else []
        self._remember(numbered.decision_id, numbered, request, candidates, lane, at)
        self._record(shed_outcome(request, numbered, policy=self.policy, decided_at=at, candidates=len(candidates)))
        return numbered

    def _take_id(self) -> int:
        decision_id = self._next_id
        self._next_id += 1
        return decision_id

    @property
    def at_rest(self) -> bool:
        """Nothing is in flight, and nobody waits."""
        return not (len(self._ledger) or len(self._waiting) or len(self.settling))

    # --------------------------------------------------------------------------------------------------------- wait

    def _queue(self, question: Question, now: float, owner: str, question_id: int) -> Shed | None:
        refusal = self._waiting.offer(question, owner, question_id, now)
        return None if refusal is None else self._refused(question, refusal, now)

    def answers(self, now: float) -> list[Answer]:
        """Those that waited and can be answered now: a place came free, an engine's word came, or their deadline passed."""
        settled = self._settle(now) if len(self.settling) else []
        if not len(self._waiting):
            return settled
        answered = settled + [self._late(waiting, now) for waiting in self._waiting.expire(now)]
        for model in self._waiting.models():
            while (waiting := self._waiting.next(model)) is not None:
                result = self._attempt(waiting.question, now, waiting.owner, waiting.question_id, reserve=True)
                assert result is not None
                if isinstance(result, Shed):
                    if result.reason == ShedReason.ALL_SATURATED:
                        break
                    result = self._refused(waiting.question, result, now)
                self._waiting.served(waiting)
                answered.append(Answer(waiting.owner, waiting.question_id, result))
        return answered

    def _settle(self, now: float) -> list[Answer]:
        """Decides held questions of which nothing is awaited any more, or whose time is over."""
        answered = []
        for held in self.settling.due(self._index.generation, now):
            question, owner, question_id, _, claims = held
            hold_past = _NEVER_HOLD if self.settling.is_over(held, now) else NEVER
            result = self._attempt(question, now, owner, question_id, reserve=True, hold_past=hold_past)
            if result is None:
                continue
            self.settling.settled(held, now)
            if isinstance(result, Shed):
                if self._may_wait and result.reason == ShedReason.ALL_SATURATED:
                    refusal = self._queue(question, now, owner, question_id)
                    if refusal is None:
                        continue
                    result = refusal
                else:
                    result = self._refused(question, result, now)
            elif not result.claimed_tokens and result.candidate.slot in claims:
                claimed = usable(claims[result.candidate.slot], result.candidate.endpoint, question.request)
                self._index.claim_judged(came_true=result.expected_tokens >= claimed)
            answered.append(Answer(owner, question_id, result))
        return answered

    def _late(self, waiting: Waiting, now: float) -> Answer:
        message = "No worker had room for this request within its deadline."
        shed = Shed(ShedReason.DEADLINE, message, admission.RETRY_SOON_S)
        return Answer(waiting.owner, waiting.question_id, self._refused(waiting.question, shed, now))

    def cancel(self, owner: str, question_id: int, now: float) -> None:
        """Its caller has gone: whatever it was given, or waits for, is released. Not an outcome of any engine."""
        if self._waiting.withdraw(owner, question_id) or self.settling.withdraw(owner, question_id):
            return
        released = self._ledger.cancel(owner, question_id, now)
        if released is not None:
            self.ends.withdrawn(released, now)

    # ------------------------------------------------------------------------------------------------ data planes

    def arrived(self, owner: str, claims: Iterable[Claim], now: float) -> None:
        """A data plane opened its stream and says what it relays. What waited on an older one, whose end nobody noticed, is
        over: its answer would be a reservation that nobody knows of."""
        self._withdraw_waiting(owner)
        for lost in self._ledger.arrived(owner, claims, now):
            self.ends.lost(lost, now)

    def departed(self, owner: str, now: float) -> None:
        """Its stream broke."""
        self._withdraw_waiting(owner)
        self._ledger.departed(owner, now)

    def _withdraw_waiting(self, owner: str) -> None:
        self._waiting.withdraw_all(owner)
        self.settling.withdraw_all(owner)

    def moved(self, owner: str, now: float) -> None:
        """Another control plane counts what this process relays: it is no more held here, and no outcome of any engine."""
        self._withdraw_waiting(owner)
        for released in self._ledger.let_go(owner, now):
            self.ends.withdrawn(released, now)

    def first_byte(self, decision_id: int, ttft_s: float, now: float) -> None:
        """The first event with content reached the data plane. Unknown or repeated: ignored."""
        self.ends.first_byte(decision_id, ttft_s, now)

    def ended(self, ended: Ended, now: float) -> bool:
        """One request at one endpoint ended. False: it was known to have ended, or never reserved; it does not count."""
        return self.ends.ended(ended, now)

    def ended_all(self, outcomes: Iterable[Ended], now: float) -> None:
        """As `ended` for each, in their order."""
        self.ends.ended_all(outcomes, now)

    def tokens_came(self, ages: Iterable[tuple[int, float]], now: float) -> None:
        """ages: endpoint or rank (contract.routing.numbered), and how long ago tokens came from there last; unknown numbers are
        ignored, and so is an engine of several ranks of which none is named."""
        at_slot = self._snapshot.at_slot
        for number, age_s in ages:
            endpoint = at_slot(number)
            if endpoint is None and number >= RANK_STEP:
                slot, rank = named(number)
                first = at_slot(slot)
                endpoint = None if first is None or rank >= len(first.ranks) else first.ranks[rank]
            elif endpoint is not None and endpoint.ranks:
                continue
            if endpoint is not None and (at := now - age_s) > endpoint.load.token_at:
                endpoint.load.token_at = at

    # ---------------------------------------------------------------------------------------------------- time passes

    def stood_still(self, seconds: float) -> None:
        """This process did, and perhaps the whole machine: what no engine could show in that time is held against none."""
        for endpoint in self._snapshot.endpoints():
            endpoint.progressed_at = max(endpoint.progressed_at, endpoint.load.moved_at) + seconds

    def tick(self, now: float, *, connected: bool) -> None:
        """A few times a second: what time alone changes. connected: Redis answers."""
        for endpoint in self._snapshot.tick(now, connected=connected):
            self._index.detach(endpoint.slot)
            self.ends.forget(endpoint)
            if self._snapshot.slot_of(endpoint.worker) is None:
                self.tally.forget(endpoint.worker)
        for lost in self._ledger.expire(now):
            self.ends.lost(lost, now)
        if len(self._ledger.loads) > len(self._snapshot.by_url):
            self._ledger.forget_unknown(self._snapshot.by_url)
        self.ends.teach(self._profile.ranker)
        for endpoint in self._snapshot.endpoints():
            self.tally.breakers_opened += suspect_hung(endpoint, now, self._hung_after_s)
