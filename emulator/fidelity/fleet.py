"""Eight Llama-3.1-8B workers behind six routers: TTFT of every request, recorded and emulated.

The recorded GPUs (A100 or H20; the recording does not say which) are not the preset's, so three speeds are taken from requests
that were alone, at the three lowest rates: prefill from cold prompts, decoding from time per token, and what a full hit takes
over its last block. The higher rates, where requests meet, are compared. Which replica served a request was not recorded, nor
every router's rules: `routers` has a stand-in for each.
"""

from __future__ import annotations

import csv
import gzip
import random
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from emulator.engine import Engine, EngineConfig
from emulator.fidelity.recording import Floats, RecordingError
from emulator.fidelity.routers import REPLICAS, Replica, Router, routers
from emulator.latency import Batch, BatchingLatency, Chunk
from emulator.presets import LLAMA3_8B_H100
from emulator.sequence import Request

SETUP = "naive"
"""A plain Kubernetes service: prefill is timed here, where prompts are cold."""
ALONE_RATES = (0.1, 0.5, 0.9)
"""Requests a second of the whole fleet at which they seldom meet."""
CHUNK_TOKENS = 2_048
"""vLLM 0.8.5 serving on anything but an H100."""
_SYSTEM_TOKENS, _HISTORY_TOKENS = 1_000, 20_000
_COLD_S, _HIT_S = 2.5, 0.25
"""Above, a lone request found nothing of its user's history; below, all of it."""
_PAUSE_S = 30.0
_OFF_GPU = 6
"""Times the GPU's blocks where KV is kept outside of it: more than all users together fill."""


@dataclass(frozen=True, slots=True)
class Asked:
    """One request. Times in seconds from the beginning of its rate's run."""

    user: int
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
class Setup:
    """prefill, decode: how many times slower than the preset a lone request is; hit_s: TTFT of a lone full hit."""

    name: str
    router: Router
    prefill: float
    decode: float
    hit_s: float
    rates: list[Rate]


def measure(folder: Path) -> list[Setup]:
    """One for each router of the recording. RecordingError: the file is not there or has other columns."""
    recorded = _read(folder / "routing_8x_llama8b_multi_round_qa.csv.gz")
    cold_s = float(np.median([one.ttft_s for one in _alone(recorded[SETUP]) if one.ttft_s > _COLD_S]))
    return [_setup(name, router, recorded[name], cold_s) for name, router in routers().items()]


def _setup(name: str, router: Router, recorded: dict[float, list[Asked]], cold_s: float) -> Setup:
    alone = _alone(recorded)
    preset = LLAMA3_8B_H100.batching
    tokens = alone[0].prompt_tokens
    tpot_s = float(np.median([one.tpot_s for one in alone]))
    decode = tpot_s / preset.step_s(Batch([], decodes=1, decode_context=tokens))
    hit_s = float(np.median([one.ttft_s for one in alone if one.ttft_s < _HIT_S]))
    # Prefill in whole chunks is linear in its factor: two points give the one that the recording has.
    once, twice = (_prompt_s(_slower(factor, decode, 0.0), tokens) for factor in (1.0, 2.0))
    prefill = 1.0 + (cold_s - hit_s - once) / (twice - once)
    latency = _slower(prefill, decode, 0.0)
    hit = latency.step_s(Batch([Chunk(LLAMA3_8B_H100.block_size, tokens)]))
    latency = replace(latency, request_s=max(0.0, hit_s - hit))
    emulated = _replay(recorded, latency, router, random.Random(1))
    rates = [
        Rate(qps, np.array([one.ttft_s for one in recorded[qps]]), emulated[qps])
        for qps in sorted(recorded)
        if qps not in ALONE_RATES
    ]
    return Setup(name, router, prefill, decode, hit_s, rates)


def _alone(recorded: dict[float, list[Asked]]) -> list[Asked]:
    return [one for qps in ALONE_RATES for one in recorded[qps]]


def _slower(prefill: float, decode: float, request_s: float) -> BatchingLatency:
    preset = LLAMA3_8B_H100.batching
    return replace(
        preset,
        step_s_base=preset.step_s_base * decode,
        decode_s_per_sequence=preset.decode_s_per_sequence * decode,
        context_s_per_token=preset.context_s_per_token * decode,
        prefill_s_per_token=preset.prefill_s_per_token * prefill,
        attention_s_per_pair=preset.attention_s_per_pair * prefill,
        request_s=request_s,
    )


def _prompt_s(latency: BatchingLatency, tokens: int) -> float:
    steps = range(0, tokens, CHUNK_TOKENS)
    return sum(latency.step_s(Batch([Chunk(min(CHUNK_TOKENS, tokens - done), done)])) for done in steps)


def _read(path: Path) -> dict[str, dict[float, list[Asked]]]:
    setups: dict[str, dict[float, list[Asked]]] = {}
    try:
        with gzip.open(path, "rt", newline="") as file:
            for row in csv.DictReader(file):
                outputs = max(1, int(float(row["generation_tokens"])))
                setups.setdefault(row["setup"], {}).setdefault(float(row["qps"]), []).append(
                    Asked(
                        user=int(row["user_id"]),
                        launch_s=float(row["launch_s"]),
                        prompt_tokens=int(float(row["prompt_tokens"])),
                        output_tokens=outputs,
                        ttft_s=float(row["ttft"]),
                        tpot_s=float(row["generation_time"]) / max(1, outputs - 1),
                    )
                )
    except (OSError, KeyError, ValueError) as error:
        raise RecordingError(f"{path}: {error!r}") from None
    return {
        name: {qps: sorted(asked, key=lambda one: one.launch_s) for qps, asked in rates.items()}
        for name, rates in setups.items()
    }


def _replay(
    recorded: dict[float, list[Asked]], latency: BatchingLatency, router: Router, rng: random.Random
) -> dict[float, Floats]:
    """Rate after rate, as recorded: what users said before stays in the caches."""
    preset = LLAMA3_8B_H100
    blocks = preset.num_blocks * (_OFF_GPU if router.off_gpu else 1)
    config = EngineConfig(preset.block_size, blocks, preset.max_num_seqs, CHUNK_TOKENS, preset.max_model_len)
    replicas = [Replica(Engine(config, latency)) for _ in range(REPLICAS)]
    histories: dict[int, array[int]] = {}
    system = _tokens(rng, _SYSTEM_TOKENS)
    found: dict[float, Floats] = {}
    if router.warm:
        users = {one.user: one.prompt_tokens for asked in recorded.values() for one in reversed(asked)}
        first = [Asked(user, 10.0 * index, tokens, 1, 0.0, 0.0) for index, (user, tokens) in enumerate(sorted(users.items()))]
        _serve(first, replicas, router, histories, system, rng, 0.0)
    for qps in sorted(recorded):
        begin_s = max(replica.now for replica in replicas) + _PAUSE_S
        found[qps] = _serve(recorded[qps], replicas, router, histories, system, rng, begin_s)
    return found


def _serve(
    asked: Sequence[Asked],
    replicas: Sequence[Replica],
    router: Router,
    histories: dict[int, array[int]],
    system: array[int],
    rng: random.Random,
    begin_s: float,
) -> Floats:
    """TTFT of each, in seconds. Returns when all of them are done."""
    served = []
    for index, one in enumerate(asked):
        at_s = begin_s + one.launch_s
        for replica in replicas:
            replica.advance(at_s)
        history = histories.setdefault(one.user, system + _tokens(rng, _HISTORY_TOKENS))
        history.extend(_tokens(rng, max(0, one.prompt_tokens - len(history))))
        prompt = history[: one.prompt_tokens].tobytes()
        replica = replicas[router.choose(one.user, replicas, rng)]
        name = f"{begin_s}/{index}"
        replica.add(one.user, Request(name, prompt, one.output_tokens, ignore_eos=True), at_s)
        served.append((replica, name, at_s))
    for replica in replicas:
        replica.advance(float("inf"))
    return np.array([replica.first_s[name] - at_s for replica, name, at_s in served])


def _tokens(rng: random.Random, count: int) -> array[int]:
    return array("I", [rng.randrange(100_000) for _ in range(count)])
