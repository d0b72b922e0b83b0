from __future__ import annotations

import statistics
from array import array

import pytest

from emulator.engine import Engine, EngineConfig
from emulator.presets import LLAMA2_13B_A100, LLAMA3_8B_H100, PRESETS, TINY_CPU, Preset
from emulator.sequence import Request

COLD_MS = {16: 13, 64: 18, 128: 27, 256: 46, 512: 88, 1024: 178, 1536: 304, 2048: 461, 3072: 847, 3900: 1216}
CACHED_MS = {16: 13, 64: 16, 128: 16, 256: 16, 512: 18, 1024: 19, 1536: 21, 2048: 23, 3072: 31, 3900: 33}
"""Recorded medians of a real vLLM on the CPU: TTFT by prompt length."""
ITL_MS = {1: 5.1, 2: 5.8, 4: 8.3, 6: 8.0, 8: 8.2}
"""Recorded medians: time between tokens by running requests."""


def engine_of(preset: Preset) -> Engine:
    config = EngineConfig(
        block_size=preset.block_size,
        num_blocks=preset.num_blocks,
        max_num_seqs=preset.max_num_seqs,
        max_num_batched_tokens=preset.max_num_batched_tokens,
        max_model_len=preset.max_model_len,
    )
    return Engine(config, preset.batching)


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


def test_an_h100_prefills_about_22_thousand_tokens_a_second_and_holds_435_thousand() -> None:
    preset = LLAMA3_8B_H100
    seconds = ttft_ms(engine_of(preset), "a", 8_192) / 1e3
    assert 8_192 / seconds == pytest.approx(22_000, rel=0.1)
    assert preset.num_blocks * preset.block_size == pytest.approx(435_000, rel=0.01)


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
