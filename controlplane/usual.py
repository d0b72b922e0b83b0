"""The usual question and the usual end by the shortest way: a policy that can choose in one go, a fleet of which all serve, a
request without bounds of its own; an answer that came whole.

Whatever is not usual goes to the director, before anything was done about it here. A test holds both ways against each other:
the same answers, loads, guesses, outcomes and explanations.

What the questions of one message have in common is looked at once for all of them (`_Ready`): nothing comes between them but
their own reservations, each of which changes one endpoint.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from contract.blocks import unpack_hashes
from contract.outcome import END_NAMES, End
from contract.routing import Answer, Asked
from controlplane.director import TOO_SHORT, Director
from controlplane.endpoint import Candidate, Endpoint, Standing
from controlplane.ends import Ends
from controlplane.explain import Absent, Placed
from controlplane.ledger import Reservation
from controlplane.outcome_record import request_outcome
from controlplane.packed import CHAINS
from controlplane.question import Ended, Request
from controlplane.snapshot import Lane
from controlplane.speculation import Chain
from controlplane.tally import Cell

_COMPLETE = End.COMPLETE
_COMPLETE_NAME = END_NAMES[int(End.COMPLETE)]
_NO_MATCH: dict[int, int] = {}
_UNUSUAL = (False, None, _NO_MATCH, 0)
Chains = Sequence[tuple[int, bytes]]


class _Ready:
    """A lane with what is asked of its endpoints again and again; as it is until the fleet or the policy changes."""

    __slots__ = (
        *("absent", "block_size", "cells", "changed", "positions", "rows"),
        *("serving", "token_ats", "tokens_max", "urls", "workers"),
    )

    def __init__(self, lane: Lane, cells: list[Cell]) -> None:
        self.serving = lane.serving
        self.positions = {endpoint.slot: at for at, endpoint in enumerate(lane.serving)}
        self.urls = [endpoint.record.url for endpoint in lane.serving]
        self.workers = [endpoint.record.worker for endpoint in lane.serving]
        self.cells = cells
        self.rows: list[Standing] = []
        """What its endpoints are, but for"""
        self.changed = -1
        """the position where something was placed since."""
        self.token_ats: tuple[float, ...] = ()
        (self.block_size,) = lane.masks
        self.tokens_max = lane.taken_by_all
        self.absent: Absent = tuple((endpoint, endpoint.absence or TOO_SHORT) for endpoint in lane.absent)


class UsualEnds(Ends):
    """Ends that take the short way where an answer came whole and well."""

    def __init__(self, **parts: object) -> None:
        super().__init__(**parts)  # type: ignore[arg-type]  # as those of the director
        self._complete: dict[Endpoint, Cell] = {}

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

    def forget(self, endpoint: Endpoint) -> None:
        self._complete.pop(endpoint, None)
        super().forget(endpoint)


class UsualDirector(Director):
    """A director that takes the short way as long as there is one."""

    _ends_kind = UsualEnds

    def __init__(self, **parts: object) -> None:
        self._ready: dict[str, _Ready] = {}
        self._ready_for: tuple[int, str] | None = None
        super().__init__(**parts)  # type: ignore[arg-type]  # as the director's own

    def answer_all(self, asked: Sequence[Asked], now: float, *, owner: str) -> list[Answer]:
        profile = self._profile
        choose, policy = profile.choose, profile.name
        if choose is None:
            return super().answer_all(asked, now, owner=owner)
        if self._ready_for != (self._snapshot.version, policy):
            self._prepare_anew()
        ring, ledger = self._ring, self._ledger
        decided_at = now + self._unix_offset_s
        answers: list[Answer] = []
        ready: _Ready | None = None  # for the question before, as far as that was usual
        model = ""
        input_tokens = matched_tokens = 0
        for one in asked:
            request = one.request
            if ready is None or request.model != model:
                model = request.model
                ready = self._made_ready(model, now)
            elif (changed := ready.changed) >= 0:
                row = ready.rows[changed] = ready.serving[changed].stands(now)
                if row.active > profile.active_max:
                    ready = None
            tokens, bound = request.input_tokens, request.max_tokens
            hashes, matched, last_block = None, _NO_MATCH, 0
            if ready is None or tokens + bound > ready.tokens_max or request.exclude or request.slo_ttft_ms:
                usual = False
            elif one.chains:
                usual, hashes, matched, last_block = self._match(one.chains, request, ready)
            else:
                usual = True
            if not usual or ready is None:
                answers += super().answer_all((one,), now, owner=owner)
                ready = None
                continue
            row = choose(ready.rows, matched, tokens, model, self._turn)
            slot, endpoint = row.slot, row.endpoint
            at, load = ready.positions[slot], endpoint.load
            there = matched.get(slot, 0) if matched else 0
            uncached = tokens - there
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
                len(ready.rows),
                0,
                last_block,
                profile=profile,
                rows=tuple(ready.rows),
                token_ats=ready.token_ats,
                matched=matched,
                absent=ready.absent,
            )
            pairs = uncached * (tokens - uncached / 2)  # ledger.attention_pairs
            url, question_id = ready.urls[at], one.question_id
            ledger.add(Reservation(decision_id, url, owner, question_id, uncached, tokens, now, placed, load, pairs))
            if hashes is not None:
                self._index.speculate(slot, hashes, now)
            ring.add(placed)
            endpoint.requests += 1
            ready.cells[at].count += 1
            input_tokens += tokens
            matched_tokens += there
            answers.append(Answer(question_id, decision_id, slot, url, ready.workers[at], there, policy))
            ready.changed = at
        self.tally.input_tokens += input_tokens
        self.tally.matched_tokens += matched_tokens
        return answers

    def _match(self, chains: Chains, request: Request, ready: _Ready) -> tuple[bool, Chain | None, dict[int, int], int]:
        """(whether it is usual, hashes, matched tokens by slot, hash of the last full block)."""
        block_size, packed = chains[0]
        if block_size != ready.block_size or len(chains) > 1 or not packed or len(packed) % 8:
            return _UNUSUAL
        read = CHAINS.get(len(packed), unpack_hashes)
        hashes = read(packed)
        index = self._index
        found = index.match(hashes)
        tokens = request.input_tokens
        last_block = hashes[-1] if request.exact_tokens and len(hashes) == tokens // block_size else 0
        if not found:
            return True, hashes, _NO_MATCH, last_block
        if index.claims:
            return _UNUSUAL  # it may be worth waiting
        whole = (tokens - 1) // block_size  # an engine computes at least the last token of a prompt: that block never counts
        matched = {}
        if whole > 0:
            for slot, blocks in found.items():
                if slot in ready.positions:
                    matched[slot] = (blocks if blocks < whole else whole) * block_size
        return True, hashes, matched, last_block

    def _prepare_anew(self) -> None:
        """The fleet or the policy is another."""
        self._ready_for = self._snapshot.version, self._profile.name
        self._ready.clear()

    def _made_ready(self, model: str, now: float) -> _Ready | None:
        """A lane with what its endpoints are now. None: not all of them take requests like any other, or somebody waits."""
        if len(self._waiting):
            return None
        ready = self._ready.get(model)
        if ready is None:
            lane = self._snapshot.lane(model)
            if lane is None or len(lane.masks) != 1 or lane.ranked:
                return None
            policy, tally = self._profile.name, self.tally
            ready = _Ready(lane, [tally.decision(policy, endpoint.record.worker) for endpoint in lane.serving])
            self._ready[model] = ready
        active_max, rows, token_ats = self._profile.active_max, [], []
        for endpoint in ready.serving:
            load, standing = endpoint.load, endpoint.standing
            if not endpoint.breaker.closed or not endpoint.credit:
                return None
            if standing is None or standing.changes != load.changes:
                standing = endpoint.stands(now)
            if standing.active > active_max:
                return None
            rows.append(standing)
            token_ats.append(load.token_at)
        ready.rows, ready.token_ats, ready.changed = rows, tuple(token_ats), -1
        return ready
