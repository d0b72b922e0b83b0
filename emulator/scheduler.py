"""Who computes what in the next step: continuous batching, chunked prefill, preemption by recompute.

A step has a budget of tokens. Running sequences come first, in the order in which they were admitted: a decoding one takes
one token, one whose prompt is not finished takes its next chunk. When blocks run out, the latest running sequence gives all
of its blocks back and waits at the head of the queue; what it had computed is found in the prefix cache again, if nobody
needed the blocks in between. Waiting sequences are admitted in order while the budget, the seats and the blocks last, and
not at all in a step that preempted somebody.

Blocks enter the prefix cache when their tokens are scheduled, not when the step ends: two equal prompts admitted in one step
share, as in vLLM.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from emulator.block_pool import BlockPool
from emulator.latency import Batch, Chunk
from emulator.sequence import FinishReason, Sequence, extend_hashes


@dataclass(slots=True)
class Plan:
    """What one step computes. scheduled: sequences with the number of tokens each computes."""

    batch: Batch
    scheduled: list[tuple[Sequence, int]] = field(default_factory=list)
    started: list[Sequence] = field(default_factory=list)
    """Sequences admitted for the first time."""
    preempted: list[Sequence] = field(default_factory=list)


class Scheduler:
    """Waiting and running sequences over one block pool."""

    def __init__(self, pool: BlockPool, *, block_size: int, max_num_seqs: int, max_num_batched_tokens: int) -> None:
        self.pool = pool
        self.block_size = block_size
        self.max_num_seqs = max_num_seqs
        self.max_num_batched_tokens = max_num_batched_tokens
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self._blocked_budget: int | None = None
        """The head of the queue did not fit in the blocks with this budget. Only giving blocks back changes that, or a
        smaller budget (a smaller first chunk), or a new block that its prompt would hit."""
        self._blocked_hashes: frozenset[int] = frozenset()

    @property
    def has_work(self) -> bool:
        return bool(self.running or self.waiting)

    def add(self, sequence: Sequence) -> None:
        self.waiting.append(sequence)

    def admits(self, budget: int) -> bool:
        """Whether a step with this budget left could take up a waiting sequence. False is certain, True is not."""
        if not self.waiting or budget <= 0 or len(self.running) >= self.max_num_seqs:
            return False
        return self._blocked_budget is None or budget < self._blocked_budget

    def schedule(self, now: float) -> Plan:
        """Take blocks for, and plan, the next step."""
        plan = Plan(Batch([]))
        budget = self._schedule_running(plan, self.max_num_batched_tokens)
        if not plan.preempted:
            self._schedule_waiting(plan, budget, now)
        return plan

    def finish(self, sequence: Sequence, reason: FinishReason) -> None:
        """Take a waiting or running sequence out and give its blocks back."""
        sequence.finish = reason
        if sequence.blocks:
            self.running.remove(sequence)
        else:
            self.waiting.remove(sequence)
        self._release(sequence)

    def _schedule_running(self, plan: Plan, budget: int) -> int:
        index = 0
        while index < len(self.running) and budget > 0:
            sequence = self.running[index]
            count = min(sequence.missing, budget)
            if not self._make_room(sequence, count, plan):
                break
            self._place(sequence, count, plan)
            budget -= count
            index += 1
        return budget

    def _make_room(self, sequence: Sequence, count: int, plan: Plan) -> bool:
        """Preempt from the back until `sequence` can grow by `count` tokens. False: it had to go itself."""
        needed = self.blocks_needed(sequence, count)
        while needed > self.pool.num_free:
            victim = self.running.pop()
            self._preempt(victim)
            plan.preempted.append(victim)
            if victim is sequence:
                return False
        return True

    def _schedule_waiting(self, plan: Plan, budget: int, now: float) -> None:
        while self.admits(budget):
            sequence = self.waiting[0]
            hit = self._find(sequence)
            num_hit = len(hit) * self.block_size
            count = min(len(sequence.tokens) - num_hit, budget)
            needed = -(-(num_hit + count) // self.block_size) - len(hit)
            if needed > self.pool.num_free - self.pool.num_evictable(hit):
                self._blocked_budget = budget
                self._blocked_hashes = frozenset(sequence.hashes)
                return
            self.waiting.popleft()
            self._blocked_budget = None
            self.running.append(sequence)
            self._admit(sequence, hit, plan, now)
            self._place(sequence, count, plan)
            budget -= count

    def _find(self, sequence: Sequence) -> list[int]:
        # The last token is always computed: its logits are what the next token is sampled from.
        limit = (len(sequence.tokens) - 1) // self.block_size
        if not self.pool.caching:
            return []
        extend_hashes(sequence, self.block_size, limit)
        return self.pool.find(sequence.hashes, limit)

    def _admit(self, sequence: Sequence, hit: list[int], plan: Plan, now: float) -> None:
        self.pool.touch(hit)
        sequence.blocks = hit
        sequence.num_blocks_hashed = len(hit)
        sequence.num_computed = len(hit) * self.block_size
        plan.batch.starts += 1
        if sequence.scheduled_s is None:
            sequence.scheduled_s = now
            sequence.num_cached = sequence.num_computed
            plan.started.append(sequence)
        if sequence.request.kv_report_full and hit:
            tokens = sequence.tokens[: sequence.num_computed].tobytes()
            self.pool.announce(sequence.hashes[: len(hit)], tokens, parent=None, origin=sequence.request.origin)

    def grow(self, sequence: Sequence, count: int) -> None:
        """Blocks for the next `count` tokens; those that get full go into the prefix cache."""
        needed = self.blocks_needed(sequence, count)
        if needed > 0:
            sequence.blocks.extend(self.pool.allocate(needed))
        num_full = (sequence.num_computed + count) // self.block_size
        if num_full > sequence.num_blocks_hashed:
            self._store(sequence, num_full)

    def _place(self, sequence: Sequence, count: int, plan: Plan) -> None:
        self.grow(sequence, count)
        batch = plan.batch
        if count == 1 and sequence.num_output:
            batch.decodes += 1
            batch.decode_context += sequence.num_computed
        else:
            batch.chunks.append(Chunk(count, sequence.num_computed))
        plan.scheduled.append((sequence, count))

    def _store(self, sequence: Sequence, num_full: int) -> None:
        first = sequence.num_blocks_hashed
        extend_hashes(sequence, self.block_size, num_full)
        if self._blocked_budget is not None and not self._blocked_hashes.isdisjoint(sequence.hashes[first:num_full]):
            self._blocked_budget = None
        self.pool.store(
            sequence.blocks[first:num_full],
            sequence.hashes[first:num_full],
            sequence.tokens[first * self.block_size : num_full * self.block_size].tobytes(),
            parent=sequence.hashes[first - 1] if first else None,
            origin=sequence.request.origin,
        )
        sequence.num_blocks_hashed = num_full

    def blocks_needed(self, sequence: Sequence, count: int) -> int:
        """More blocks than it holds, for the next `count` tokens; 0 or less where they fit."""
        return -(-(sequence.num_computed + count) // self.block_size) - len(sequence.blocks)

    def _preempt(self, sequence: Sequence) -> None:
        self._release(sequence)
        sequence.num_preemptions += 1
        self.waiting.appendleft(sequence)

    def _release(self, sequence: Sequence) -> None:
        self._blocked_budget = None
        self.pool.release(sequence.blocks)
        sequence.blocks = []
        sequence.num_computed = 0
        sequence.num_blocks_hashed = 0
