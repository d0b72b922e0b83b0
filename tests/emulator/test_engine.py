from __future__ import annotations

import random
from array import array

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emulator.block_pool import Origin, Removed, Stored
from emulator.engine import Engine, EngineConfig
from emulator.latency import BatchingLatency, FormulaLatency
from emulator.sequence import FinishReason, Request

LATENCY = FormulaLatency(block_size=4, prefill_s_base=1.0, prefill_s_per_block=0.5, decode_s_per_token=0.25)


def engine(**changes: int) -> Engine:
    sizes = {"block_size": 4, "num_blocks": 33, "max_num_seqs": 4, "max_num_batched_tokens": 16, "max_model_len": 96}
    return Engine(EngineConfig(**(sizes | changes)), LATENCY)  # type: ignore[arg-type]


def prompt(*ids: int) -> bytes:
    return array("I", ids).tobytes()


def ask(request_id: str, tokens: bytes, max_tokens: int = 1, **more: object) -> Request:
    return Request(request_id, tokens, max_tokens, ignore_eos=True, **more)  # type: ignore[arg-type]


def finish(subject: Engine, now: float = 0.0) -> tuple[float, dict[str, list[int]]]:
    """Step until nothing is left. Returns the end and the tokens by request."""
    texts: dict[str, list[int]] = {}
    while subject.has_work:
        result = subject.step(now)
        now += result.duration_s
        for sequence, token, _ in result.outputs:
            texts.setdefault(sequence.request.request_id, []).append(token)
    return now, texts


def test_a_prompt_is_computed_once_and_found_again() -> None:
    subject = engine()
    first = subject.add(ask("a", prompt(*range(12)), 2), 0.0)
    finish(subject)
    second = subject.add(ask("b", prompt(*range(12), 99), 2), 0.0)
    finish(subject)
    assert (first.num_cached, second.num_cached) == (0, 12)


def test_a_full_hit_computes_its_last_block_again_and_announces_a_second_copy() -> None:
    subject = engine()
    subject.add(ask("a", prompt(*range(8))), 0.0)
    stored = [event for event in subject.step(0.0).events if isinstance(event, Stored)]
    again = subject.add(ask("b", prompt(*range(8))), 0.0)
    events = subject.step(0.0).events
    assert again.num_cached == 4
    assert len(events) == 1
    assert isinstance(events[0], Stored)
    assert events[0].hashes == stored[0].hashes[1:]
    assert events[0].parent == stored[0].hashes[0]


def test_two_equal_prompts_of_one_step_share() -> None:
    subject = engine(max_num_batched_tokens=64)
    subject.add(ask("a", prompt(*range(12), 1)), 0.0)
    second = subject.add(ask("b", prompt(*range(12), 2)), 0.0)
    result = subject.step(0.0)
    assert len(result.outputs) == 2
    assert second.num_cached == 12


def test_adapter_and_salt_keep_caches_apart() -> None:
    subject = engine()
    seen = []
    for number, origin in enumerate((Origin(), Origin("sql"), Origin("", "s"), Origin("sql", "s")) * 2):
        sequence = subject.add(ask(str(number), prompt(*range(9)), 1, origin=origin), 0.0)
        finish(subject)
        seen.append(sequence.num_cached)
    assert seen == [0, 0, 0, 0, 8, 8, 8, 8]


def test_a_long_prompt_is_computed_in_chunks_and_its_blocks_are_announced_chunk_by_chunk() -> None:
    subject = engine()
    subject.add(ask("a", prompt(*range(40))), 0.0)
    results = [subject.step(0.0) for _ in range(3)]
    assert [result.batch.tokens for result in results] == [16, 16, 8]
    assert [len(result.events[0].hashes) for result in results] == [4, 4, 2]
    assert [len(result.outputs) for result in results] == [0, 0, 1]


def test_decoding_announces_each_block_that_fills() -> None:
    subject = engine()
    subject.add(ask("a", prompt(1, 2, 3), 6), 0.0)
    counts = []
    while subject.has_work:
        counts.append(sum(isinstance(event, Stored) for event in subject.step(0.0).events))
    assert counts == [0, 1, 0, 0, 0, 1]


def test_an_arrival_during_a_step_waits_for_the_next() -> None:
    subject = engine()
    subject.add(ask("a", prompt(1, 2, 3), 3), 0.0)
    result = subject.step(0.0)
    subject.add(ask("b", prompt(4, 5, 6), 3), 0.5)
    assert (result.gauges.running, result.gauges.waiting) == (1, 0)
    assert subject.step(result.duration_s).gauges.running == 2


def test_seats_and_not_blocks_limit_how_many_run() -> None:
    subject = engine(max_num_seqs=2)
    for number in range(5):
        subject.add(ask(str(number), prompt(number, 1), 3), 0.0)
    result = subject.step(0.0)
    assert (result.gauges.running, result.gauges.waiting) == (2, 3)


def test_when_blocks_run_out_the_latest_is_preempted_and_computed_again() -> None:
    subject = engine(num_blocks=9, max_model_len=32)
    subject.add(ask("old", prompt(*range(12)), 16), 0.0)
    young = subject.add(ask("young", prompt(*range(50, 62)), 16), 0.0)
    preempted = 0
    texts: dict[str, list[int]] = {}
    while subject.has_work:
        result = subject.step(0.0)
        preempted += result.num_preempted
        for sequence, token, _ in result.outputs:
            texts.setdefault(sequence.request.request_id, []).append(token)
    assert preempted >= 1
    assert young.num_preemptions == preempted
    assert [len(text) for text in texts.values()] == [16, 16]


def test_text_depends_on_the_prompt_and_the_seed_alone() -> None:
    alone = engine()
    alone.add(ask("a", prompt(*range(12)), 8), 0.0)
    _, expected = finish(alone)
    crowded = engine(num_blocks=13, max_model_len=48, hash_seed=5)
    for number in range(3):
        crowded.add(ask(str(number), prompt(number, *range(9)), 8), 0.0)
    crowded.add(ask("a", prompt(*range(12)), 8), 3.0)
    crowded.add(ask("b", prompt(*range(12)), 8, seed=1), 3.0)
    _, texts = finish(crowded)
    assert texts["a"] == expected["a"]
    assert texts["b"] != expected["a"]


def test_an_answer_ends_by_itself_unless_told_to_go_on() -> None:
    subject = engine(answer_tokens_mean=8)
    sequence = subject.add(Request("a", prompt(1), 90), 0.0)
    finish(subject)
    assert sequence.finish is FinishReason.STOP
    assert 4 <= sequence.num_output <= 13
    assert sequence.tokens[-1] == subject.vocabulary.eos
    patient = subject.add(Request("b", prompt(1), 90, min_tokens=40), 0.0)
    finish(subject)
    assert patient.num_output >= 40


def test_an_abort_frees_blocks_at_once_and_twice_is_no_error() -> None:
    subject = engine()
    subject.add(ask("a", prompt(*range(12)), 8), 0.0)
    subject.add(ask("b", prompt(*range(12)), 8), 0.0)
    subject.step(0.0)
    assert subject.pool.num_used > 0
    assert subject.abort("a")
    assert subject.abort("b")
    assert not subject.abort("a")
    assert subject.pool.num_used == 0
    assert not subject.has_work


def test_what_can_never_be_served_is_refused() -> None:
    subject = engine()
    with pytest.raises(ValueError, match="max_model_len"):
        subject.add(ask("a", prompt(*range(96))), 0.0)
    with pytest.raises(ValueError, match="empty"):
        subject.add(ask("a", b""), 0.0)
    subject.add(ask("a", prompt(1), 4), 0.0)
    with pytest.raises(ValueError, match="already"):
        subject.add(ask("a", prompt(1)), 0.0)
    with pytest.raises(ValueError, match="holds 128"):
        engine(max_model_len=129)


def test_alone_on_an_engine_the_formula_is_exact() -> None:
    subject = engine(max_num_batched_tokens=96)
    subject.add(ask("a", prompt(*range(12), 1), 1), 0.0)
    assert subject.step(0.0).duration_s == 1.0 + 4 * 0.5
    subject.add(ask("b", prompt(*range(8), 7, 7, 7, 7, 7), 5), 0.0)
    prefill = subject.step(0.0).duration_s
    assert prefill == 1.0 + 2 * 0.5
    end, _ = finish(subject, prefill)
    assert end == prefill + 4 * 0.25


def behind_an_api_server(request_s: float) -> Engine:
    latency = BatchingLatency(
        step_s_base=1.0,
        prefill_s_base=0.0,
        prefill_s_per_token=0.0,
        attention_s_per_pair=0.0,
        decode_s_per_sequence=0.0,
        context_s_per_token=0.0,
        request_s=request_s,
    )
    return Engine(engine().config, latency)


def test_an_idle_engine_waits_for_the_api_server_and_a_busy_one_does_not() -> None:
    subject = behind_an_api_server(0.25)
    first = subject.add(ask("a", prompt(1, 2), 3), 10.0)
    assert (subject.has_work, subject.num_queued, subject.gauges().waiting) == (True, 1, 0)
    assert subject.step(10.0).duration_s == 1.25
    assert (first.scheduled_s, first.first_token_s) == (10.25, 11.25)
    late = subject.add(ask("b", prompt(3, 4), 3), 11.1)
    assert subject.step(11.25).duration_s == 1.0
    assert (late.scheduled_s, subject.num_queued) == (None, 1)
    assert len(subject.step(12.25).outputs) == 2
    assert late.scheduled_s == 12.25


def test_a_request_may_leave_while_the_api_server_has_it() -> None:
    subject = behind_an_api_server(5.0)
    gone = subject.add(ask("a", prompt(1, 2), 3), 0.0)
    kept = subject.add(ask("b", prompt(1, 2), 1), 1.0)
    assert subject.queued_tokens == 4
    assert subject.abort("a")
    assert gone.finish is FinishReason.ABORT
    assert subject.step(1.0).duration_s == 6.0
    assert kept.first_token_s == 7.0
    assert not subject.has_work


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 1 << 32), num_blocks=st.integers(9, 24), steps=st.integers(10, 60))
def test_whatever_arrives_and_leaves_no_block_is_lost_and_every_request_ends(seed: int, num_blocks: int, steps: int) -> None:
    rng = random.Random(seed)
    subject = engine(num_blocks=num_blocks, max_model_len=30)
    waiting_for: dict[str, int] = {}
    followed: dict[int, int] = {}
    serial = 0
    for _ in range(steps):
        while rng.random() < 0.5:
            length = rng.randint(1, 20)
            tokens = prompt(*[rng.randint(0, 1) * 100 + i // 4 for i in range(length)])
            wanted = rng.randint(1, 30 - length)
            subject.add(ask(str(serial), tokens, wanted), 0.0)
            waiting_for[str(serial)] = wanted
            serial += 1
        if waiting_for and rng.random() < 0.2:
            gone = rng.choice(list(waiting_for))
            assert subject.abort(gone)
            del waiting_for[gone]
        if subject.has_work:
            _step(subject, waiting_for, followed)
    for _ in range(5_000):
        if not subject.has_work:
            break
        _step(subject, waiting_for, followed)
    assert not waiting_for
    assert subject.pool.num_used == 0


def _step(subject: Engine, waiting_for: dict[str, int], followed: dict[int, int]) -> None:
    result = subject.step(0.0)
    assert result.batch.tokens <= subject.config.max_num_batched_tokens
    assert len(subject.scheduler.running) <= subject.config.max_num_seqs
    assert subject.pool.num_used <= subject.pool.num_blocks - 1
    held = {block for sequence in subject.scheduler.running for block in sequence.blocks}
    assert len(held) == subject.pool.num_used
    for sequence, _, reason in result.outputs:
        waiting_for[sequence.request.request_id] -= 1
        if reason is not None:
            assert reason is FinishReason.LENGTH
            assert waiting_for.pop(sequence.request.request_id) == 0
    for event in result.events:
        if isinstance(event, Stored):
            for key in event.hashes:
                followed[key] = followed.get(key, 0) + 1
        elif isinstance(event, Removed):
            followed[event.hash] -= 1
    assert {key: count for key, count in followed.items() if count} == subject.pool.cached_counts()
