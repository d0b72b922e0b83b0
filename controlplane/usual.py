"""The usual question and the usual end by the shortest way: a policy that can choose in one go, a fleet of which all serve, a
request without bounds of its own; an answer that came whole.

Whatever is not usual goes to the director, before anything was done about it here. A test holds both ways against each other:
the same answers, loads, guesses, outcomes and explanations.

What the questions of one message have in common is looked at once for all of them (`_Ready`): nothing comes between them but
their own reservations, each of which changes one endpoint.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from contract.outcome import END_NAMES, End
from contract.routing import Answer, Asked
from controlplane.director import TOO_SHORT, Director
from controlplane.endpoint import Candidate, Endpoint, Standing
from controlplane.explain import Absent, Placed
from controlplane.ledger import Reservation
from controlplane.outcome_record import request_outcome
from controlplane.packed import CHAINS
from controlplane.question import Ended
from controlplane.snapshot import Lane
from controlplane.speculation import Chain
from controlplane.tally import Cell

_COMPLETE = End.COMPLETE
_COMPLETE_NAME = END_NAMES[int(End.COMPLETE)]
_NO_MATCH: dict[int, int] = {}
_NO_HASHES: Chain = ()


class _Ready:
    """A lane with what is asked of its endpoints again and again; as it is until the fleet or the policy changes."""

    __slots__ = ("absent", "block_size", "cells", "mask", "positions", "serving", "tokens_max", "urls", "workers")

    def __init__(self, lane: Lane, cells: list[Cell]) -> None:
        self.serving = lane.serving
        self.positions = {endpoint.slot: at for at, endpoint in enumerate(lane.serving)}
        self.urls = [endpoint.record.url for endpoint in lane.serving]
        self.workers = [endpoint.record.worker for endpoint in lane.serving]
        self.cells = cells
        self.block_size, self.mask = next(iter(lane.masks.items()))
        self.tokens_max = lane.taken_by_all
        self.absent: Absent = tuple((endpoint, endpoint.absence or TOO_SHORT) for endpoint in lane.absent)


class UsualDirector(Director):
    """A director that takes the short way as long as there is one."""

    def __init__(self, **parts: object) -> None:
        self._ready: dict[str, _Ready] = {}
        self._ready_for: tuple[int, str] | None = None
        self._complete: dict[Endpoint, Cell] = {}
        super().__init__(**parts)  # type: ignore[arg-type]  # as the director's own

    # ------------------------------------------------------------------------------------------------------- questions

    def answer_all(self, asked: Sequence[Asked], now: float, *, owner: str) -> list[Answer]:
        profile = self._profile
        choose, policy, active_max = profile.choose, profile.name, profile.active_max
        if choose is None:
            return super().answer_all(asked, now, owner=owner)
        if self._ready_for != (self._snapshot.version, policy):
            self._prepare_anew()
        index, ring, ledger, turn = self._index, self._ring, self._ledger, self._turn
        decided_at = now + self._unix_offset_s
        answers: list[Answer] = []
        ready = rows = None
        model, changed = "", -1
        input_tokens = matched_tokens = 0
        for one in asked:
            request = one.request
            if rows is None or request.model != model:
                model, changed = request.model, -1
                ready = self._lane(model)
                rows = None if ready is None else self._rows(ready, active_max, now)
            tokens, bound = request.input_tokens, request.max_tokens
            chains = one.chains
            if (
                ready is None
                or rows is None
                or tokens + bound > ready.tokens_max
                or request.exclude
                or request.slo_ttft_ms
                or (chains and (len(chains) > 1 or chains[0][0] != ready.block_size or len(chains[0][1]) not in CHAINS))
            ):
                answers += super().answer_all((one,), now, owner=owner)
                rows = None
                continue
            if changed >= 0:
                rows[changed] = ready.serving[changed].stands(now)
                changed = -1
            matched, there, hashes, last_block = _NO_MATCH, 0, _NO_HASHES, 0
            if chains:
                block_size, packed = chains[0]
                hashes = CHAINS[len(packed)](packed)
                found = index.match(hashes, ready.mask)
                if index.claims:  # it may be worth waiting
                    answers += super().answer_all((one,), now, owner=owner)
                    rows = None
                    continue
                if request.exact_tokens and len(hashes) == tokens // block_size:
                    last_block = hashes[-1]
                if found:
                    matched = _usable(found, ready.positions, tokens, block_size)
            at = choose(rows, matched, tokens, model, turn)
            row, endpoint = rows[at], ready.serving[at]
            if at in matched:
                there = matched[at]
            uncached, load = tokens - there, endpoint.load
            decision_id = self._next_id
            self._next_id = decision_id + 1
            placed = Placed(
                decision_id,
                decided_at,
                request,
                Candidate(row, tokens, there, uncached, bound, now, True, load.token_at),
                there,
                request.exact_tokens,
                policy,
                len(rows),
                0,
                last_block,
                profile=profile,
                rows=tuple(rows),
                matched=matched,
                absent=ready.absent,
            )
            pairs = uncached * (tokens - uncached / 2)  # ledger.attention_pairs
            url, question_id = ready.urls[at], one.question_id
            ledger.add(Reservation(decision_id, url, owner, question_id, uncached, tokens, now, placed, load, pairs))
            if hashes:
                index.speculate(row.slot, hashes, now)
            ring.add(placed)
            endpoint.requests += 1
            ready.cells[at].count += 1
            input_tokens += tokens
            matched_tokens += there
            answers.append(Answer(question_id, decision_id, row.slot, url, ready.workers[at], there, policy))
            if load.active > active_max:
                rows = None
            else:
                changed = at
        self.tally.input_tokens += input_tokens
        self.tally.matched_tokens += matched_tokens
        return answers

    def _prepare_anew(self) -> None:
        """The fleet or the policy is another."""
        self._ready_for = self._snapshot.version, self._profile.name
        self._ready.clear()
        self._complete.clear()

    def _lane(self, model: str) -> _Ready | None:
        """None: its questions are not usual."""
        ready = self._ready.get(model)
        if ready is None:
            lane = self._snapshot.lane(model)
            if lane is None or len(lane.masks) != 1:
                return None
            policy, tally = self._profile.name, self.tally
            ready = _Ready(lane, [tally.decision(policy, endpoint.record.worker) for endpoint in lane.serving])
            self._ready[model] = ready
        return ready

    def _rows(self, ready: _Ready, active_max: int, now: float) -> list[Standing] | None:
        """What its endpoints are now; None: not all of them take requests like any other, or somebody waits for room."""
        if len(self._waiting):
            return None
        rows = []
        for endpoint in ready.serving:
            load, standing = endpoint.load, endpoint.standing
            if load.active > active_max or not endpoint.breaker.closed or not endpoint.credit:
                return None
            if standing is None or standing.changes != load.changes:
                standing = endpoint.stands(now)
            rows.append(standing)
        return rows

    # ------------------------------------------------------------------------------------------------------------ ends

    def ended_all(self, outcomes: Iterable[Ended], now: float) -> None:
        ledger, by_url, thinning = self._ledger, self._snapshot.by_url, self.thinning
        reservations, complete, second = ledger.reservations, self._complete, int(now)
        for ended in outcomes:
            reservation = reservations.get(ended.decision_id)
            if reservation is None or ended.end != _COMPLETE:
                self.ended(ended, now)
                continue
            decision, endpoint = reservation.decision, by_url.get(reservation.url)
            if decision is None or endpoint is None or not endpoint.breaker.closed:
                self.ended(ended, now)
                continue
            ledger.drop(reservation, now)
            decision.ended = ended
            endpoint.breaker.good(second)
            if endpoint not in complete:
                complete[endpoint] = self.tally.end(endpoint.record.worker, _COMPLETE_NAME)
            complete[endpoint].count += 1
            if ended.ttft_s > 0 or ended.itl_s > 0 or ended.cached_tokens >= 0:
                self._learn(endpoint, decision, ended)
            if decision.last_block and ended.output_tokens > 0:
                self._note_answer(endpoint, decision, ended, now)
            if thinning.takes(now):
                at = reservation.reserved_at + self._unix_offset_s
                self._record(request_outcome(reservation, ended, endpoint, decided_at=at))


def _usable(found: dict[int, int], positions: dict[int, int], tokens: int, block_size: int) -> dict[int, int]:
    """Blocks by slot to tokens by position. An engine computes at least the last token of a prompt: that block never counts."""
    whole = max(0, tokens - 1) // block_size
    if not whole:
        return _NO_MATCH
    matched = {}
    for slot, blocks in found.items():
        matched[positions[slot]] = (blocks if blocks < whole else whole) * block_size
    return matched
