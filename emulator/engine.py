"""The engine: what vLLM's EngineCore does, one step at a time, without a clock or a socket.

    engine.add(request, now)              joins the waiting queue
    result = engine.step(now)             one iteration that starts at `now` and ends at `now + result.duration_s`
    engine.abort(request_id)              frees its blocks at once

`step` returns everything that becomes visible when the iteration ends: tokens, KV events, gauges. The server sleeps until
then and delivers; a simulator puts it into its event queue. So gauges are one step late by construction, and an arrival
during a step is seen by the next one.

Text is a function of the prompt and the sampling seed and of nothing else: not of the batch, the cache or the time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence as Items
from dataclasses import dataclass
from typing import NamedTuple

from emulator.block_pool import BlockPool, Event
from emulator.latency import Batch, Latency
from emulator.scheduler import Plan, Scheduler
from emulator.sequence import FinishReason, Request, Sequence, new_sequence, root_hash

NO_TOKEN = -1

_MASK = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Token ids that answers are made of. openers: may begin an answer; words: follow; eos: ends one."""

    openers: Items[int]
    words: Items[int]
    eos: int

    def __post_init__(self) -> None:
        if not self.openers or not self.words:
            raise ValueError("a vocabulary needs at least one opener and one word")


PLAIN_VOCABULARY = Vocabulary(openers=range(256, 512), words=range(512, 8_192), eos=2)
"""For engines whose text nobody reads (simulations, tests)."""


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """Sizes in blocks and tokens. answer_tokens_mean: where answers end by themselves, evenly between half of it and
    one and a half."""

    block_size: int
    num_blocks: int
    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int
    caching: bool = True
    answer_tokens_mean: int = 192
    hash_seed: int = 0
    """Root of the engine hashes: another number for each incarnation."""

    def __post_init__(self) -> None:
        for name in ("block_size", "max_num_seqs", "max_num_batched_tokens", "max_model_len", "answer_tokens_mean"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, must be at least 1")
        capacity = (self.num_blocks - 1) * self.block_size
        if self.max_model_len > capacity:
            raise ValueError(f"max_model_len is {self.max_model_len} tokens, the KV cache holds {capacity}")


class Output(NamedTuple):
    """What a step brought one sequence. token: NO_TOKEN where it ended without one."""

    sequence: Sequence
    token: int
    finish: FinishReason | None


@dataclass(frozen=True, slots=True)
class Gauges:
    """Counts at the end of a step. usage: share of blocks held by live sequences, 0 to 1."""

    running: int = 0
    waiting: int = 0
    usage: float = 0.0
    running_loras: tuple[str, ...] = ()
    waiting_loras: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class StepResult:
    """One iteration, from start to end."""

    duration_s: float
    outputs: list[Output]
    events: list[Event]
    gauges: Gauges
    batch: Batch
    started: list[Sequence]
    num_preempted: int


class Engine:
    """Scheduler, block pool, latency model and a text generator, stepped from outside."""

    def __init__(
        self, config: EngineConfig, latency: Latency, vocabulary: Vocabulary = PLAIN_VOCABULARY, *, text_seed: int = 0
    ) -> None:
        self.config = config
        self.latency = latency
        self.vocabulary = vocabulary
        self.slowdown = 1.0
        """Every step takes this many times as long; may be changed between steps."""
        self.pool = BlockPool(config.num_blocks, caching=config.caching)
        self.scheduler = Scheduler(
            self.pool,
            block_size=config.block_size,
            max_num_seqs=config.max_num_seqs,
            max_num_batched_tokens=config.max_num_batched_tokens,
        )
        self._text_seed = text_seed
        self._root = root_hash(config.hash_seed)
        self._live: dict[str, Sequence] = {}
        self._arriving: deque[Sequence] = deque()
        """Still with the API server, in order; the scheduler sees each from its `ready_s` on."""

    @property
    def has_work(self) -> bool:
        return bool(self._live)

    @property
    def num_live(self) -> int:
        """Requests inside, waiting or running."""
        return len(self._live)

    @property
    def num_queued(self) -> int:
        """Requests that no step has taken up."""
        return len(self.scheduler.waiting) + len(self._arriving)

    @property
    def queued_tokens(self) -> int:
        """Prompt tokens of requests that no step has taken up."""
        return sum(len(sequence.tokens) for queue in (self.scheduler.waiting, self._arriving) for sequence in queue)

    def add(self, request: Request, now: float) -> Sequence:
        """ValueError: an empty prompt, one that does not fit the model, or an id that is in use."""
        if request.request_id in self._live:
            raise ValueError(f"request {request.request_id} is already running")
        sequence = new_sequence(request, root=self._root, text_seed=self._text_seed, now=now)
        if sequence.num_prompt + min(request.max_tokens, 1) > self.config.max_model_len:
            raise ValueError(f"a prompt of {sequence.num_prompt} tokens exceeds max_model_len {self.config.max_model_len}")
        mean = self.config.answer_tokens_mean
        sequence.text_len = max(request.min_tokens, mean // 2 + sequence.text_state % (mean + 1))
        self._live[request.request_id] = sequence
        if self.latency.request_s > 0:
            sequence.ready_s = now + self.latency.request_s
            self._arriving.append(sequence)
        else:
            self.scheduler.add(sequence)
        return sequence

    def abort(self, request_id: str) -> bool:
        """Forget a request. False: it is not here (any more)."""
        sequence = self._live.pop(request_id, None)
        if sequence is None:
            return False
        if sequence in self._arriving:
            self._arriving.remove(sequence)
            sequence.finish = FinishReason.ABORT
        else:
            self.scheduler.finish(sequence, FinishReason.ABORT)
        return True

    def abort_all(self) -> list[Sequence]:
        """Forget every request; they are returned."""
        sequences = list(self._live.values())
        for sequence in sequences:
            self.abort(sequence.request.request_id)
        return sequences

    def step(self, now: float) -> StepResult:
        """One iteration. Where every request is still with the API server, it begins when the first gets through, and its
        duration says so. AssertionError: there was nothing to do."""
        assert self.has_work, "a step without work"
        begin = now if self.scheduler.has_work else max(now, self._arriving[0].ready_s)
        while self._arriving and self._arriving[0].ready_s <= begin:
            self.scheduler.add(self._arriving.popleft())
        plan = self.scheduler.schedule(begin)
        assert plan.scheduled or plan.preempted, f"{len(self.scheduler.waiting)} wait, nothing runs and nothing can"
        duration_s = begin - now + self.latency.step_s(plan.batch) * self.slowdown
        outputs = self._sample(plan, now + duration_s)
        return StepResult(
            duration_s=duration_s,
            outputs=outputs,
            events=self.pool.drain_events(),
            gauges=self.gauges(),
            batch=plan.batch,
            started=plan.started,
            num_preempted=len(plan.preempted),
        )

    def gauges(self) -> Gauges:
        """The state as it is now."""
        running, waiting = self.scheduler.running, self.scheduler.waiting
        return Gauges(len(running), len(waiting), self.pool.usage, _loras(running), _loras(waiting))

    def _sample(self, plan: Plan, end_s: float) -> list[Output]:
        outputs: list[Output] = []
        for sequence, count in plan.scheduled:
            sequence.num_computed += count
            if sequence.num_computed < len(sequence.tokens):
                continue
            if sequence.first_token_s is None:
                sequence.first_token_s = end_s
            sequence.last_token_s = end_s
            token, finish = (NO_TOKEN, FinishReason.STOP) if sequence.request.max_tokens == 0 else self._next_token(sequence)
            if finish is not None:
                self.scheduler.finish(sequence, finish)
                del self._live[sequence.request.request_id]
            outputs.append(Output(sequence, token, finish))
        return outputs

    def _next_token(self, sequence: Sequence) -> tuple[int, FinishReason | None]:
        request = sequence.request
        position = sequence.num_output
        if position >= sequence.text_len and not request.ignore_eos:
            token = self.vocabulary.eos
        else:
            state = (sequence.text_state * 6_364_136_223_846_793_005 + 1_442_695_040_888_963_407) & _MASK
            sequence.text_state = state
            choices = self.vocabulary.words if position else self.vocabulary.openers
            token = choices[(state >> 33) % len(choices)]
        sequence.tokens.append(token)
        if position + 1 >= request.min_tokens:
            if token == self.vocabulary.eos and not request.ignore_eos:
                return token, FinishReason.STOP
            if token in request.stop_token_ids:
                return token, FinishReason.STOP
        if position + 1 >= request.max_tokens or len(sequence.tokens) >= self.config.max_model_len:
            return token, FinishReason.LENGTH
        return token, None


def _loras(sequences: Items[Sequence]) -> tuple[str, ...]:
    return tuple(sorted({sequence.request.origin.lora for sequence in sequences if sequence.request.origin.lora}))
