"""Eight workers behind a service that spreads requests blindly: TTFT of every request, recorded and emulated.

The recorded GPUs (A100 or H20; the recording does not say which) are not the preset's, so two speeds are fitted where requests
are alone: prefill from cold prompts and decoding from time per token, at the three lowest rates. The higher rates, where
requests meet, are compared. A request's replica was not recorded: it is drawn.
"""

from __future__ import annotations

import csv
import gzip
import random
from array import array
from collections import deque
from dataclasses import dataclass, replace
from operator import itemgetter
from pathlib import Path

import numpy as np

from emulator.engine import Engine, EngineConfig
from emulator.fidelity.recording import Floats, RecordingError
from emulator.latency import Batch, BatchingLatency, Chunk
from emulator.presets import LLAMA3_8B_H100
from emulator.sequence import Request

REPLICAS = 8
SETUP = "naive"
"""A plain Kubernetes service: no setup of the recording knows less of its replicas."""
ALONE_RATES = (0.1, 0.5, 0.9)
"""Requests a second of the whole fleet at which they seldom meet."""
CHUNK_TOKENS = 2_048
"""vLLM 0.8.5 serving on anything but an H100."""
_SYSTEM_TOKENS, _HISTORY_TOKENS = 1_000, 20_000
_COLD_S = 2.5
"""Above this a lone request found nothing of its user's history."""
_PAUSE_S = 30.0


@dataclass(frozen=True, slots=True)
class Asked:
    """One request. Times in seconds from the beginning of its rate's run."""

    user: int
    question: int
    launch_s: float
    prompt_tokens: int
    output_tokens: int
    ttft_s: float
    tpot_s: float


@dataclass(frozen=True, slots=True)
class Rate:
    """Requests a second, and TTFT of all of them, recorded and emulated."""

    qps: float
    recorded_s: Floats
    emulated_s: Floats


@dataclass(frozen=True, slots=True)
class Fleet:
    """prefill, decode: how many times slower than the preset a lone request is."""

    prefill: float
    decode: float
    rates: list[Rate]


def measure(folder: Path, *, draws: int = 3) -> Fleet:
    """draws: how often replicas are drawn; their requests are pooled. RecordingError: the file is not there."""
    recorded = _read(folder / "routing_8x_llama8b_multi_round_qa.csv.gz")
    alone = [asked for qps in ALONE_RATES for asked in recorded[qps]]
    cold = [asked for asked in alone if asked.ttft_s > _COLD_S]
    preset = LLAMA3_8B_H100.batching
    tokens = cold[0].prompt_tokens
    decode = float(np.median([asked.tpot_s for asked in cold])) / preset.step_s(Batch([], decodes=1, decode_context=tokens))
    # TTFT of a lone prompt is linear in the factor of prefill: two points give the one that the recording has.
    once, twice = (_prompt_s(_slower(factor, decode), tokens) for factor in (1.0, 2.0))
    prefill = 1.0 + (float(np.median([asked.ttft_s for asked in cold])) - preset.request_s - once) / (twice - once)
    latency = _slower(prefill, decode)
    emulated = [_replay(recorded, latency, random.Random(seed)) for seed in range(draws)]
    rates = [
        Rate(qps, np.array([asked.ttft_s for asked in recorded[qps]]), np.concatenate([found[qps] for found in emulated]))
        for qps in sorted(recorded)
        if qps not in ALONE_RATES
    ]
    return Fleet(prefill, decode, rates)


def _slower(prefill: float, decode: float) -> BatchingLatency:
    preset = LLAMA3_8B_H100.batching
    return replace(
        preset,
        step_s_base=preset.step_s_base * decode,
        decode_s_per_sequence=preset.decode_s_per_sequence * decode,
        context_s_per_token=preset.context_s_per_token * decode,
        prefill_s_per_token=preset.prefill_s_per_token * prefill,
        attention_s_per_pair=preset.attention_s_per_pair * prefill,
    )


def _prompt_s(latency: BatchingLatency, tokens: int) -> float:
    steps = range(0, tokens, CHUNK_TOKENS)
    return sum(latency.step_s(Batch([Chunk(min(CHUNK_TOKENS, tokens - done), done)])) for done in steps)


def _read(path: Path) -> dict[float, list[Asked]]:
    rates: dict[float, list[Asked]] = {}
    try:
        with gzip.open(path, "rt", newline="") as file:
            for row in csv.DictReader(file):
                if row["setup"] == SETUP:
                    outputs = int(float(row["generation_tokens"]))
                    rates.setdefault(float(row["qps"]), []).append(
                        Asked(
                            user=int(row["user_id"]),
                            question=int(row["question_id"]),
                            launch_s=float(row["launch_s"]),
                            prompt_tokens=int(float(row["prompt_tokens"])),
                            output_tokens=max(1, outputs),
                            ttft_s=float(row["ttft"]),
                            tpot_s=float(row["generation_time"]) / max(1, outputs - 1),
                        )
                    )
    except OSError as error:
        raise RecordingError(f"{path}: {error}") from None
    return {qps: sorted(asked, key=lambda one: one.launch_s) for qps, asked in rates.items()}


def _replay(recorded: dict[float, list[Asked]], latency: BatchingLatency, rng: random.Random) -> dict[float, Floats]:
    """Rate after rate, as recorded: what users said before stays in the caches."""
    preset = LLAMA3_8B_H100
    config = EngineConfig(preset.block_size, preset.num_blocks, preset.max_num_seqs, CHUNK_TOKENS, preset.max_model_len)
    engines = [Engine(config, latency) for _ in range(REPLICAS)]
    histories: dict[int, array[int]] = {}
    system = _tokens(rng, _SYSTEM_TOKENS)
    begin_s = 0.0
    found = {}
    for qps in sorted(recorded):
        asked = recorded[qps]
        shares: list[list[tuple[float, Request]]] = [[] for _ in engines]
        for index, one in enumerate(asked):
            history = histories.setdefault(one.user, system + _tokens(rng, _HISTORY_TOKENS))
            history.extend(_tokens(rng, max(0, one.prompt_tokens - len(history))))
            prompt = history[: one.prompt_tokens].tobytes()
            request = Request(f"{qps}/{index}", prompt, one.output_tokens, ignore_eos=True)
            shares[rng.randrange(REPLICAS)].append((begin_s + one.launch_s, request))
        first_s: dict[str, float] = {}
        ends = [_serve(engine, share, first_s) for engine, share in zip(engines, shares, strict=True)]
        found[qps] = np.array([first_s[f"{qps}/{index}"] - begin_s - one.launch_s for index, one in enumerate(asked)])
        begin_s = max(ends) + _PAUSE_S
    return found


def _serve(engine: Engine, share: list[tuple[float, Request]], first_s: dict[str, float]) -> float:
    """Until all of them are done; returns when."""
    waiting = deque(sorted(share, key=itemgetter(0)))
    now = 0.0
    while waiting or engine.has_work:
        if not engine.has_work:
            now = max(now, waiting[0][0])
        while waiting and waiting[0][0] <= now:
            at_s, request = waiting.popleft()
            engine.add(request, at_s)
        result = engine.step(now, brief=True)
        now += result.duration_s
        for sequence, _, _ in result.outputs:
            first_s.setdefault(sequence.request.request_id, sequence.first_token_s or now)
    return now


def _tokens(rng: random.Random, count: int) -> array[int]:
    return array("I", [rng.randrange(100_000) for _ in range(count)])
