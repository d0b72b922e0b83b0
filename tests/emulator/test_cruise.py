"""A brief step is the same step: an engine that cruises beside one that looks at every sequence in every step."""

from __future__ import annotations

import random
from array import array
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from emulator.block_pool import Event, Origin
from emulator.engine import Engine, EngineConfig, StepResult
from emulator.latency import BatchingLatency
from emulator.sequence import FinishReason, Request, Sequence

LATENCY = BatchingLatency(
    step_s_base=0.01,
    prefill_s_base=0.003,
    prefill_s_per_token=0.0007,
    attention_s_per_pair=0.00001,
    decode_s_per_sequence=0.0003,
    context_s_per_token=0.0000123,
    request_s=0.004,
)


class Forgetful(Engine):
    """Looks at the head of the queue in every step, whatever it found the last time."""

    def step(self, now: float, *, brief: bool = False) -> StepResult:
        self.scheduler._blocked_budget = None
        return super().step(now, brief=False)


@dataclass
class Side:
    """One engine and what it has shown."""

    engine: Engine
    brief: bool
    now: float = 0.0
    answers: dict[str, Sequence] = field(default_factory=dict)

    def step(self) -> tuple[float, list[Event], object, int, int]:
        result = self.engine.step(self.now, brief=self.brief)
        self.now += result.duration_s
        for sequence, _, finish in result.outputs:
            if finish is not None:
                self.answers[sequence.request.request_id] = sequence
        return result.duration_s, result.events, result.gauges, result.num_outputs, result.num_preempted


def pair(config: EngineConfig) -> tuple[Side, Side]:
    return Side(Forgetful(config, LATENCY), False), Side(Engine(config, LATENCY), True)


def same_ends(one: Side, other: Side) -> None:
    assert one.answers.keys() == other.answers.keys()
    for name, sequence in one.answers.items():
        twin = other.answers[name]
        assert sequence.tokens == twin.tokens
        assert (sequence.first_token_s, sequence.last_token_s) == (twin.first_token_s, twin.last_token_s)
        assert (sequence.scheduled_s, sequence.finish, sequence.num_cached) == (twin.scheduled_s, twin.finish, twin.num_cached)


def conversation(first: int, length: int) -> list[int]:
    """A prompt and the answer that every engine gives it: a later prompt that begins so hits blocks made while decoding."""
    engine = Engine(EngineConfig(4, 100, 1, 100, length), LATENCY)
    sequence = engine.add(Request("a", array("I", [first, 1, 2]).tobytes(), length, ignore_eos=True), 0.0)
    while engine.has_work:
        engine.step(0.0)
    return list(sequence.tokens)


CONVERSATIONS = [conversation(first, 60) for first in (7, 8)]


def request(rng: random.Random, serial: int, model_len: int) -> Request:
    spoken = rng.choice(CONVERSATIONS)
    length = rng.choice((3, rng.randint(1, model_len // 3), rng.randint(1, model_len - 10)))
    tokens = spoken[:length] if rng.random() < 0.7 else [rng.randint(0, 1) * 100 + index // 4 for index in range(length)]
    return Request(
        str(serial),
        array("I", tokens).tobytes(),
        rng.randint(0, model_len - length),
        ignore_eos=rng.random() < 0.5,
        min_tokens=rng.choice((0, 0, 5)),
        stop_token_ids=frozenset(range(512, 900)) if rng.random() < 0.1 else frozenset(),
        origin=Origin(rng.choice(("", "", "sql"))),
    )


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 1 << 32),
    num_blocks=st.integers(17, 60),
    seats=st.integers(1, 9),
    budget=st.integers(4, 40),
    caching=st.booleans(),
    arrivals=st.sampled_from((0.02, 0.1, 0.4)),
)
def test_a_cruise_takes_the_same_steps(
    seed: int, num_blocks: int, seats: int, budget: int, caching: bool, arrivals: float
) -> None:
    rng = random.Random(seed)
    config = EngineConfig(
        block_size=4,
        num_blocks=num_blocks,
        max_num_seqs=seats,
        max_num_batched_tokens=budget,
        max_model_len=60,
        caching=caching,
        answer_tokens_mean=20,
    )
    one, other = pair(config)
    live: list[str] = []
    for serial in range(300):
        if rng.random() < arrivals:
            asked = request(rng, serial, 60)
            for side in (one, other):
                side.engine.add(asked, side.now)
            live.append(asked.request_id)
        if live and rng.random() < 0.01:
            gone = live.pop(rng.randrange(len(live)))
            assert one.engine.abort(gone) == other.engine.abort(gone)
        if rng.random() < 0.02:
            one.engine.slowdown = other.engine.slowdown = rng.choice((1.0, 2.5))
        if one.engine.has_work:
            assert one.step() == other.step()
            assert one.engine.pool.free_order() == other.engine.pool.free_order()
    while one.engine.has_work:
        assert one.step() == other.step()
    assert not other.engine.has_work
    assert one.now == other.now
    same_ends(one, other)


def test_a_batch_that_only_decodes_is_looked_at_in_few_steps() -> None:
    config = EngineConfig(block_size=16, num_blocks=600, max_num_seqs=32, max_num_batched_tokens=2_048, max_model_len=512)
    looked_at = 0

    class Watched(Engine):
        def _due_in(self, sequence: Sequence) -> int:
            nonlocal looked_at
            looked_at += 1
            return super()._due_in(sequence)

    side = Side(Watched(config, LATENCY), True)
    for number in range(32):
        prompt = array("I", range(number, number + 40)).tobytes()
        side.engine.add(Request(str(number), prompt, 160, ignore_eos=True), 0.0)
    tokens = 0
    while side.engine.has_work:
        tokens += side.step()[3]
    assert tokens == 32 * 160
    assert looked_at < tokens / 6


def test_whoever_leaves_a_cruise_leaves_the_others_where_they_were() -> None:
    config = EngineConfig(block_size=16, num_blocks=600, max_num_seqs=8, max_num_batched_tokens=2_048, max_model_len=512)
    one, other = pair(config)
    for side in (one, other):
        for number in range(4):
            prompt = array("I", range(number, number + 10)).tobytes()
            side.engine.add(Request(str(number), prompt, 40, ignore_eos=True), 0.0)
        for _ in range(9):
            side.step()
        assert side.engine.abort("2")
        while side.engine.has_work:
            side.step()
    same_ends(one, other)
    assert {name: sequence.finish for name, sequence in other.answers.items()} == dict.fromkeys("013", FinishReason.LENGTH)
