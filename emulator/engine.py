"""The engine: what vLLM's EngineCore does, one step at a time, without a clock or a socket.

    engine.add(request, now)              joins the waiting queue
    result = engine.step(now)             one iteration that starts at `now` and ends at `now + result.duration_s`
    engine.abort(request_id)              frees its blocks at once

`step` returns everything that becomes visible when the iteration ends: tokens, KV events, gauges. The server sleeps until
then and delivers; a simulator puts it into its event queue. So gauges are one step late by construction, and an arrival
during a step is seen by the next one.

`step(now, brief=True)` is for those who do not read along (simulations): the same steps, but a token that neither begins nor
ends an answer may be left out of `outputs`, and sequences in between are not up to date. It costs a fraction (see cruise).

Text is a function of the prompt and the sampling seed and of nothing else: not of the batch, the cache or the time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence as Items
from dataclasses import dataclass
from typing import NamedTuple

from emulator.block_pool import BlockPool, Event
from emulator.cruise import Cruise
from emulator.latency import Batch, Latency
from emulator.scheduler import Plan, Scheduler
from emulator.sequence import FinishReason, Request, Sequence, new_sequence, root_hash

NO_TOKEN = -1

_MASK = (1 << 64) - 1
_MULTIPLIER, _INCREMENT = 6_364_136_223_846_793_005, 1_442_695_040_888_963_407
"""Of the generator behind the text, modulo 2**64."""


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
    """One iteration, from start to end. num_outputs: sequences that got a token or ended, whether in `outputs` or not."""

    duration_s: float
    outputs: list[Output]
    num_outputs: int
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
        self._num_adapted = 0
        """Requests inside that use an adapter."""
        self._cruise: Cruise | None = None
        self._end_s = 0.0
        """When the last step of the cruise ended."""
        self._may_cruise = vocabulary.eos not in vocabulary.words

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
        self._num_adapted += bool(request.origin.lora)
        if self.latency.request_s > 0:
            sequence.ready_s = now + self.latency.request_s
            self._arriving.append(sequence)
        else:
            self.scheduler.add(sequence)
        return sequence

    def abort(self, request_id: str) -> bool:
        """Forget a request. False: it is not here (any more)."""
        if request_id not in self._live:
            return False
        self._land()
        sequence = self._forget(request_id)
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

    def step(self, now: float, *, brief: bool = False) -> StepResult:
        """One iteration. Where every request is still with the API server, it begins when the first gets through, and its
        duration says so. AssertionError: there was nothing to do."""
        assert self.has_work, "a step without work"
        begin = now if self.scheduler.has_work else max(now, self._arriving[0].ready_s)
        while self._arriving and self._arriving[0].ready_s <= begin:
            self.scheduler.add(self._arriving.popleft())
        result = self._step_of_cruise(begin) if self._on_cruise(brief) else None
        if result is not None:
            return result
        plan = self.scheduler.schedule(begin)
        assert plan.scheduled or plan.preempted, f"{len(self.scheduler.waiting)} wait, nothing runs and nothing can"
        duration_s = begin - now + self.latency.step_s(plan.batch) * self.slowdown
        outputs = self._sample(plan, now + duration_s)
        return self._result(plan, duration_s, outputs, len(outputs))

    def gauges(self) -> Gauges:
        """The state as it is now."""
        running, waiting = self.scheduler.running, self.scheduler.waiting
        if not self._num_adapted:
            return Gauges(len(running), len(waiting), self.pool.usage)
        return Gauges(len(running), len(waiting), self.pool.usage, _loras(running), _loras(waiting))

    def _result(self, plan: Plan, duration_s: float, outputs: list[Output], num_outputs: int) -> StepResult:
        return StepResult(
            duration_s=duration_s,
            outputs=outputs,
            num_outputs=num_outputs,
            events=self.pool.drain_events(),
            gauges=self.gauges(),
            batch=plan.batch,
            started=plan.started,
            num_preempted=len(plan.preempted),
        )

    # ----------------------------------------------------------------------------------------------------------- cruise

    def _on_cruise(self, brief: bool) -> bool:
        """Whether the next step is one of a cruise, which begins or ends here."""
        running = self.scheduler.running
        if not (brief and self._may_cruise and running) or self.scheduler.admits(
            self.config.max_num_batched_tokens - len(running)
        ):
            self._land()
        elif (
            self._cruise is None
            and len(running) <= self.config.max_num_batched_tokens
            and all(map(_only_decodes, reversed(running)))
        ):
            self._cruise = Cruise(running, self._due_in, self._catch_up)
        return self._cruise is not None

    def _step_of_cruise(self, now: float) -> StepResult | None:
        """None: blocks ran out, or somebody can be taken up, and the step must be planned as any other."""
        cruise, scheduler = self._cruise, self.scheduler
        assert cruise is not None, "no cruise"
        due = cruise.begin()
        if sum(max(0, scheduler.blocks_needed(sequence, 1)) for sequence in due) > self.pool.num_free:
            self._land()
            return None
        for sequence in due:
            scheduler.grow(sequence, 1)
        if scheduler.admits(self.config.max_num_batched_tokens - cruise.count):
            # One of their new blocks is what the head of the queue was waiting for. To grow again changes nothing.
            self._land()
            return None
        plan = Plan(Batch([], decodes=cruise.count, decode_context=cruise.context))
        duration_s = self.latency.step_s(plan.batch) * self.slowdown
        self._end_s = now + duration_s
        outputs = []
        for sequence in due:
            sequence.num_computed += 1
            output = self._output(sequence, self._end_s)
            if output.finish is not None:
                outputs.append(output)
        cruise.end(last=bool(outputs))
        if outputs:
            self._land()
        return self._result(plan, duration_s, outputs, cruise.count)

    def _land(self) -> None:
        """Everyone is up to date, and the next step is planned as any other."""
        if self._cruise is not None:
            self._cruise.land()
            self._cruise = None

    def _due_in(self, sequence: Sequence) -> int:
        """Steps until a block begins or gets full, or the answer ends."""
        request, size = sequence.request, self.config.block_size
        output = sequence.num_output
        steps = min(
            len(sequence.blocks) * size - sequence.num_computed + 1,
            (sequence.num_blocks_hashed + 1) * size - sequence.num_computed,
            request.max_tokens - output,
            self.config.max_model_len - len(sequence.tokens),
        )
        if not request.ignore_eos:
            steps = min(steps, sequence.text_len - output + 1)
        return max(1, steps)

    def _catch_up(self, sequence: Sequence, count: int) -> None:
        """Tokens of `count` steps of a cruise."""
        state, words = sequence.text_state, self.vocabulary.words
        append, size = sequence.tokens.append, len(words)
        for _ in range(count):
            state = (state * _MULTIPLIER + _INCREMENT) & _MASK
            append(words[(state >> 33) % size])
        sequence.text_state = state
        sequence.num_computed += count
        sequence.last_token_s = self._end_s

    # ------------------------------------------------------------------------------------------------------------ tokens

    def _sample(self, plan: Plan, end_s: float) -> list[Output]:
        outputs: list[Output] = []
        for sequence, count in plan.scheduled:
            sequence.num_computed += count
            if sequence.num_computed == len(sequence.tokens):
                outputs.append(self._output(sequence, end_s))
        return outputs

    def _output(self, sequence: Sequence, end_s: float) -> Output:
        if sequence.first_token_s is None:
            sequence.first_token_s = end_s
        sequence.last_token_s = end_s
        token, finish = (NO_TOKEN, FinishReason.STOP) if sequence.request.max_tokens == 0 else self._next_token(sequence)
        if finish is not None:
            self.scheduler.finish(sequence, finish)
            self._forget(sequence.request.request_id)
        return Output(sequence, token, finish)

    def _forget(self, request_id: str) -> Sequence:
        sequence = self._live.pop(request_id)
        self._num_adapted -= bool(sequence.request.origin.lora)
        return sequence

    def _next_token(self, sequence: Sequence) -> tuple[int, FinishReason | None]:
        request = sequence.request
        position = sequence.num_output
        if position >= sequence.text_len and not request.ignore_eos:
            token = self.vocabulary.eos
        else:
            state = (sequence.text_state * _MULTIPLIER + _INCREMENT) & _MASK
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


def _only_decodes(sequence: Sequence) -> bool:
    return sequence.missing == 1 and sequence.num_output > 0 and not sequence.request.stop_token_ids


def _loras(sequences: Items[Sequence]) -> tuple[str, ...]:
    return tuple(sorted({sequence.request.origin.lora for sequence in sequences if sequence.request.origin.lora}))
