"""The usual question and the usual end by the shortest way: a policy that can choose in one go, a fleet of which all serve, a
request without bounds of its own; an answer that came whole.

Whatever is not usual goes to the director, before anything was done about it here. A test holds both ways against each other:
the same answers, loads, guesses, outcomes and explanations.

What the questions of one message have in common is looked at once for all of them (`Moment`): nothing comes between them but
their own reservations, each of which changes one endpoint, and that is added to its row. Of a decision no more is kept than
what does not follow from its moment and from those before it (`Placed`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from contract.blocks import unpack_hashes
from contract.outcome import End
from contract.routing import Answer, Asked, Placement
from controlplane.director import Director
from controlplane.ends import Ends
from controlplane.explain import Foretold, Moment, Placed
from controlplane.lanes import ReadyLane, ReadyLanes
from controlplane.outcome_record import request_outcome
from controlplane.packed import CHAIN_BYTES, READERS
from controlplane.question import Ended
from controlplane.ranking import Brief
from controlplane.row import Row
from controlplane.speculation import Chain

TOGETHER_MAX = 64
"""Questions of one moment. Who asks for the row of the last of them later adds up what the others had reserved."""

_COMPLETE = End.COMPLETE
_NO_MATCH: dict[int, int] = {}
_NO_ROWS: list[Row] = []


class UsualEnds(Ends):
    """Ends that take the short way where an answer came whole and well."""

    def __init__(self, **parts: object) -> None:
        super().__init__(**parts)  # type: ignore[arg-type]  # as those of the director
        self.lanes = ReadyLanes(self._snapshot, self.tally)
        self.policy = ""
        """In use: rows are those of one."""

    def ended_all(self, outcomes: Iterable[Ended], now: float) -> None:
        self.lanes.look(self.policy)
        reservations = self._ledger.reservations
        well: list[Placed] = []  # those that took the short way
        for ended in outcomes:
            placed = reservations.get(ended.decision_id)
            if (type(placed) is Placed or type(placed) is Foretold) and ended.end == _COMPLETE and placed.ended is None:
                row = placed.row
                if row.current and row.endpoint.breaker.closed:
                    placed.ended = ended
                    row.completed += 1
                    if ended.ttft_s > 0 or ended.itl_s > 0 or ended.cached_tokens >= 0:
                        self._learn(row.endpoint, placed, ended)
                    if placed.last_block and ended.output_tokens > 0 and ended.prompt_tokens in (-1, placed.input_tokens):
                        self._note_answer(row.endpoint, placed, ended, now)
                    well.append(placed)
                    continue
            if well:
                self._close(well, now)
                well = []
            self.ended(ended, now)
        if well:
            self._close(well, now)

    def _close(self, well: Sequence[Placed], now: float) -> None:
        """What complete ends of one moment have in common."""
        self._ledger.drop_all(well, now)
        second = int(now)
        for placed in well:
            row = placed.row
            if completed := row.completed:
                row.endpoint.breaker.good(second, completed)
                row.complete.count += completed
                row.completed = 0
        for placed in well[: self.thinning.takes_of(len(well), now)]:
            ended = placed.ended
            assert ended is not None
            at = placed.reserved_at + self._unix_offset_s
            self._record(request_outcome(placed, ended, placed.row.endpoint, decided_at=at))


class UsualDirector(Director):
    """A director that takes the short way as long as there is one."""

    ends: UsualEnds
    _ends_kind = UsualEnds

    def set_policy(self, name: str) -> None:
        super().set_policy(name)
        self.ends.policy = name

    def answer_all(self, asked: Sequence[Asked], now: float, *, owner: str) -> list[Answer | Placement]:
        if not owner or not self._profile.short or not self._taken(asked):
            return super().answer_all(asked, now, owner=owner)
        if len(asked) <= TOGETHER_MAX:
            return self._answer_together(asked, now, owner)
        answers: list[Answer | Placement] = []
        for start in range(0, len(asked), TOGETHER_MAX):
            answers += self._answer_together(asked[start : start + TOGETHER_MAX], now, owner)
        return answers

    def _taken(self, asked: Sequence[Asked]) -> bool:
        """Whether the ranker has a short way for this message, by the endpoints of its first question: else all of its
        questions are better predicted in one call."""
        ranker = self._profile.brief
        if ranker is None or not asked:
            return True
        lanes = self.ends.lanes
        lanes.look(self._profile.name)
        lane = lanes.lane(asked[0].request.model)
        return lane is None or ranker.takes(len(lane.rows), len(asked))

    def _answer_together(self, asked: Sequence[Asked], now: float, owner: str) -> list[Answer | Placement]:
        profile, turn, index, ledger = self._profile, self._turn, self._index, self._ledger
        choose, policy = profile.choose, profile.name
        assert choose is not None
        lanes = self.ends.lanes
        lanes.look(policy)
        reservations, held = ledger.reservations, ledger.held(owner)
        answers: list[Answer | Placement] = []
        keep, say = held.setdefault, answers.append
        lane: ReadyLane | None = None  # of the question before, as far as that was usual
        model = ""
        input_tokens = matched_tokens = 0
        decision_id = self._next_id
        left, reason = 0, ""
        brief: Brief | None = None
        kind: type[Placed] = Placed
        judged: Sequence[float] = ()
        for one in asked:
            request = one.request
            if lane is None or request.model != model:
                model = request.model
                lane = None if len(self._waiting) else lanes.lane(model)
                begun = None if lane is None else lane.begin(profile, now, self._unix_offset_s)
                if lane is not None and begun is not None:
                    moment: Moment = begun
                    rows, by_slot, block_size, tokens_max = lane.rows, lane.by_slot, lane.block_size, lane.tokens_max
                    stamp = ledger.stamp()
                    before: Placed | None = None
                    brief, reason = moment.brief, moment.reason
                    kind = Placed if brief is None else Foretold
                    remember = self._ring.adder(len(rows))
                else:
                    lane = None
            tokens, chains = request.input_tokens, one.chains
            found, matched, last_block = _NO_MATCH, _NO_ROWS, 0
            hashes: Chain | None = None
            usual = True
            if lane is None or tokens + request.max_tokens > tokens_max or request.exclude or request.slo_ttft_ms:
                usual = False
            elif chains:
                size, packed = chains[0]
                length = len(packed)
                read = READERS[length] if length <= CHAIN_BYTES else None if length % 8 else unpack_hashes
                if size != block_size or read is None or len(chains) > 1:
                    usual = False
                else:
                    hashes = read(packed)
                    found = index.match(hashes)
                    if found:
                        if index.claims:
                            usual = False  # it may be worth waiting
                        else:  # an engine computes at least the last token of a prompt: that block never counts
                            whole, matched = (tokens - 1) // block_size, []
                            if whole > 0:
                                for slot, blocks in found.items():
                                    row = by_slot.get(slot)
                                    if row is not None:
                                        row.matched_tokens = (blocks if blocks < whole else whole) * block_size
                                        matched.append(row)
                    if request.exact_tokens and length == tokens // block_size * 8:
                        last_block = hashes[-1]
            if not usual:
                self._next_id = decision_id
                answers += super().answer_all((one,), now, owner=owner)
                decision_id = self._next_id
                lane = None
                continue
            if brief is None:
                row = choose(rows, matched, tokens, model, turn)
                if reason:
                    left += 1
            else:
                row, judged = brief.choose(matched, tokens, request.max_tokens, model, turn)
            there, uncached = 0, tokens
            if matched:
                there = row.matched_tokens
                matched_tokens += there
                uncached = tokens - there
                for other in matched:
                    other.matched_tokens = 0
            ahead, pairs = row.prefill_tokens + uncached, uncached * (tokens + tokens - uncached) / 2
            load, question_id, url = row.load, one.question_id, row.url
            before = kind(
                decision_id,
                url,
                owner,
                question_id,
                uncached,
                tokens,
                now,
                None,
                load,
                pairs,
                False,
                0.0,
                0.0,
                request,
                found,
                last_block,
                ahead,
                row,
                moment,
                before,
            )
            if brief is not None:
                before.judged = judged  # type: ignore[attr-defined]
            reservations[decision_id] = before
            if keep(question_id, before) is not before:
                ledger.hold(before)
            queue = load.queue
            if not queue:
                load.prefill_since = now
            queue[decision_id] = before
            waiting = load.no_first_byte = load.no_first_byte + 1
            load.prefill_tokens += uncached
            load.prefill_pairs += pairs
            load.context_tokens += tokens
            load.changes = stamp
            if load.plan is not None:
                load.plan.add(before)
            active = load.active = load.active + 1
            if active == 1:
                load.moved_at = now
            if active >= row.next_batch:
                row.next_batch = active + 1
            row.prefill_tokens = ahead
            row.context_tokens = load.context_tokens
            if waiting > row.waiting:
                row.queued = waiting
            slot, endpoint = row.slot, row.endpoint
            if hashes is not None:
                index.speculate(slot, hashes, now)
            remember(before)
            endpoint.requests += 1
            row.cell.count += 1
            input_tokens += tokens
            say((question_id, decision_id, slot, url, row.worker, there, policy))
            decision_id += 1
            if active > row.active_most:
                lane = None
        self._next_id = decision_id
        if left and profile.brief is not None:
            profile.brief.tally.leave(reason, left)
        self.tally.input_tokens += input_tokens
        self.tally.matched_tokens += matched_tokens
        return answers
