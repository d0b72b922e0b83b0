from __future__ import annotations

import statistics
from array import array

import pytest

from emulator.engine import Engine
from emulator.latency import Batch, Chunk
from emulator.presets import LLAMA2_13B_A100, LLAMA3_8B_H100, PRESETS, TINY_CPU, Preset
from emulator.sequence import Request

COLD_MS = {16: 13, 64: 18, 128: 27, 256: 46, 512: 88, 1024: 178, 1536: 304, 2048: 461, 3072: 847, 3900: 1216}
CACHED_MS = {16: 13, 64: 16, 128: 16, 256: 16, 512: 18, 1024: 19, 1536: 21, 2048: 23, 3072: 31, 3900: 33}
"""Recorded medians of a real vLLM on the CPU: TTFT by prompt length."""
ITL_MS = {1: 5.1, 2: 5.8, 4: 8.3, 6: 8.0, 8: 8.2}
"""Recorded medians: time between tokens by running requests."""


def engine_of(preset: Preset) -> Engine:
    return Engine(preset.config(), preset.batching)


def ttft_ms(subject: Engine, name: str, tokens: int) -> float:
    subject.add(Request(name, array("I", range(tokens)).tobytes(), 1), 0.0)
    now = 0.0
    while subject.has_work:
        now += subject.step(now).duration_s
    return now * 1e3


@pytest.mark.parametrize("tokens", COLD_MS)
def test_tiny_cpu_gives_the_recorded_first_token_times(tokens: int) -> None:
    # The idle recordings come from the machine's fastest spell, the constants from its median one.
    subject = engine_of(TINY_CPU)
    assert ttft_ms(subject, "cold", tokens) == pytest.approx(COLD_MS[tokens], rel=0.23)
    assert ttft_ms(subject, "cached", tokens) == pytest.approx(CACHED_MS[tokens], rel=0.2)


@pytest.mark.parametrize("running", ITL_MS)
def test_tiny_cpu_gives_the_recorded_time_between_tokens(running: int) -> None:
    subject = engine_of(TINY_CPU)
    for number in range(running):
        subject.add(Request(str(number), array("I", range(number, number + 200)).tobytes(), 60, ignore_eos=True), 0.0)
    durations = []
    while subject.has_work:
        durations.append(subject.step(0.0).duration_s * 1e3)
    assert statistics.median(durations) == pytest.approx(ITL_MS[running], rel=0.25)


def test_an_h100_takes_what_its_kernels_take_and_a_tenth_and_holds_435_thousand_tokens() -> None:
    preset = LLAMA3_8B_H100
    seconds = ttft_ms(engine_of(preset), "a", 8_192) / 1e3
    layer_ms = 0.536 + 0.347 + 2.63 + 1.29 + 0.912 + 0.31  # qkv, out, gate and up, down, attention, the rest: 8,192 tokens
    assert seconds == pytest.approx(32 * layer_ms / 1e3 * 1.1, rel=0.12)
    decode = Batch([], decodes=64, decode_context=64 * 1_024)
    assert preset.batching.step_s(decode) == pytest.approx((32 * (0.16 + 0.119) + 0.45) / 1e3 * 1.1, rel=0.12)
    assert preset.num_blocks * preset.block_size == pytest.approx(435_000, rel=0.01)


def test_tokens_that_ride_along_with_the_weights_cost_nothing_of_their_own() -> None:
    latency = LLAMA3_8B_H100.batching
    riders = latency.tokens_in_base
    alone = latency.step_s(Batch([Chunk(riders, 0)]))
    pairs = riders * riders / 2 * latency.attention_s_per_pair
    assert alone == pytest.approx(latency.step_s_base + pairs)
    beside = latency.step_s(Batch([Chunk(riders, 0)], decodes=100, decode_context=0))
    assert beside == pytest.approx(alone + 100 * (latency.decode_s_per_sequence + latency.prefill_s_per_token))


def test_llama2_13b_blocks_have_the_size_that_40_layers_of_40_heads_give() -> None:
    preset = LLAMA2_13B_A100
    assert preset.block_bytes == 13_107_200
    assert (preset.block_size, preset.num_blocks) == (16, 924)


def test_every_preset_runs_with_both_latency_models() -> None:
    for preset in PRESETS.values():
        for kind in ("batching", "formula"):
            subject = engine_of(preset)
            subject.latency = preset.latency(kind)
            assert ttft_ms(subject, kind, 100) > 0
    with pytest.raises(ValueError, match="polynomial"):
        TINY_CPU.latency("polynomial")
