"""GPU sources: how far kernel sums are from engines that ran, and `llama3-8b-h100`, which is made of them.

An engine's step takes longer than its kernels, each timed alone. By how much is measured where both are known: Llama-3.1-8B on
an RTX PRO 6000, layer timings beside a run of 300 ShareGPT requests. One factor on every constant makes the emulator's time per
output token that of the run; its TTFT is then compared, not fitted. The same factor turns H100 kernel sums into the preset.
"""

from __future__ import annotations

import csv
import gzip
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from pathlib import Path

import numpy as np

from emulator.engine import Engine, EngineConfig
from emulator.fidelity.kernels import H100, LLAMA_8B, LLAMA_34B_TP2, LLAMA_70B_TP4, Rtx, Shape, constants, grid
from emulator.fidelity.recording import Floats, RecordingError
from emulator.latency import Batch, BatchingLatency, Chunk
from emulator.presets import LLAMA3_8B_H100
from emulator.sequence import Request

RTX_TOKENS_MAX, RTX_SEQUENCES_MAX = 2_048, 128
"""The run's limits of a step."""
_RTX_BLOCKS = 40_000
"""More than its 128 sequences ever fill."""
STEP_GAP_MAX_S = 0.2


@dataclass(frozen=True, slots=True)
class Run:
    """Requests at an engine, in the order of arrival, in seconds."""

    arrived_s: Floats
    prompt_tokens: list[int]
    output_tokens: list[int]
    ttft_s: Floats
    tpot_s: Floats


@dataclass(frozen=True, slots=True)
class Steps:
    """Recorded and computed seconds of the same scheduler steps."""

    model: str
    recorded_s: Floats
    computed_s: Floats
    weights_s: float
    """Reading the weights once at full memory bandwidth: no step can be shorter."""
    prefills: int


@dataclass(frozen=True, slots=True)
class Gpu:
    """kernels: constants of kernel sums; factor: engine over kernels; preset: what llama3-8b-h100 should say."""

    rtx: BatchingLatency
    kernels: BatchingLatency
    factor: float
    request_s: float
    run: Run
    emulated: Run
    grid_ratios: Floats
    """Fitted over summed, over the grid of batches, H100."""

    @property
    def preset(self) -> BatchingLatency:
        return replace(scaled(self.kernels, self.factor), request_s=self.request_s)


def measure(folder: Path) -> Gpu:
    """RecordingError: a file is not there or not what it should be."""
    rtx = Rtx(folder)
    h100 = H100(folder, LLAMA_8B, rtx.elementwise_s)
    rtx_constants = constants(rtx.step_s, grid(RTX_TOKENS_MAX, RTX_SEQUENCES_MAX))
    batches = grid(LLAMA3_8B_H100.max_num_batched_tokens, LLAMA3_8B_H100.max_num_seqs)
    kernels = constants(h100.step_s, batches)
    run = sharegpt(folder)
    factor = _factor(run, rtx_constants)
    return Gpu(
        rtx=rtx_constants,
        kernels=kernels,
        factor=factor,
        request_s=request_s(folder),
        run=run,
        emulated=emulate(run, scaled(rtx_constants, factor)),
        grid_ratios=np.array([kernels.step_s(batch) / h100.step_s(batch) for batch in batches]),
    )


def scaled(latency: BatchingLatency, factor: float) -> BatchingLatency:
    """Every step takes `factor` times as long."""
    names = [field.name for field in fields(latency) if field.name not in ("request_s", "tokens_in_base")]
    return replace(latency, **{name: getattr(latency, name) * factor for name in names})


def _factor(run: Run, latency: BatchingLatency) -> float:
    """By bisection: median time per output token is that of the run."""
    low, high = 0.8, 1.6
    for _ in range(7):
        middle = (low + high) / 2
        ratio = np.median(emulate(run, scaled(latency, middle)).tpot_s) / np.median(run.tpot_s)
        low, high = (middle, high) if ratio < 1 else (low, middle)
    return (low + high) / 2


def sharegpt(folder: Path) -> Run:
    """300 requests, 10 a second, at one vLLM 0.19 on an RTX PRO 6000 with Llama-3.1-8B. Arrival: into the engine's queue."""
    rows = [row for row in _rows(folder / "vllm_sharegpt_runs.csv.gz") if row["model"] == "Llama-3.1-8B"]
    rows.sort(key=lambda row: float(row["t_queued"]))
    times = {name: np.array([float(row[f"t_{name}"]) for row in rows]) for name in ("queued", "first_token", "last_token")}
    outputs = [int(float(row["output_toks"])) for row in rows]
    return Run(
        arrived_s=times["queued"],
        prompt_tokens=[int(float(row["input_toks"])) for row in rows],
        output_tokens=outputs,
        ttft_s=times["first_token"] - times["queued"],
        tpot_s=(times["last_token"] - times["first_token"]) / (np.array(outputs) - 1),
    )


def emulate(run: Run, latency: BatchingLatency) -> Run:
    """The same arrivals and lengths, prompts that share nothing."""
    config = EngineConfig(
        block_size=16,
        num_blocks=_RTX_BLOCKS,
        max_num_seqs=RTX_SEQUENCES_MAX,
        max_num_batched_tokens=RTX_TOKENS_MAX,
        max_model_len=16_384,
    )
    engine = Engine(config, latency)
    rng = np.random.default_rng(1)
    count, now, place = len(run.prompt_tokens), 0.0, 0
    first, last = np.zeros(count), np.zeros(count)
    while place < count or engine.has_work:
        if not engine.has_work:
            now = max(now, float(run.arrived_s[place]))
        while place < count and run.arrived_s[place] <= now:
            prompt = rng.integers(0, 100_000, run.prompt_tokens[place], dtype=np.uint32).tobytes()
            engine.add(Request(str(place), prompt, run.output_tokens[place], ignore_eos=True), now)
            place += 1
        result = engine.step(now)
        now += result.duration_s
        for sequence, _, finish in result.outputs:
            index = int(sequence.request.request_id)
            if sequence.num_output == 1:
                first[index] = now
            if finish is not None:
                last[index] = now
    outputs = np.array(run.output_tokens)
    return replace(run, ttft_s=first - run.arrived_s, tpot_s=(last - first) / (outputs - 1))


def request_s(folder: Path) -> float:
    """What of TTFT is neither queue nor prefill, in traces of a vLLM with a 7B model: the median."""
    rows = [row for row in _rows(folder / "vllm_request_spans.csv.gz") if row["run"].startswith("llama-2-7b")]
    return float(np.median([float(row["ttft_s"]) - float(row["queue_s"]) - float(row["prefill_s"]) for row in rows]))


def steps(folder: Path, factor: float) -> list[Steps]:
    """H100 steps whose successor was recorded too: from scheduling one to scheduling the next."""
    rows = _rows(folder / "vllm_h100_steps.csv.gz")
    elementwise_s = Rtx(folder).elementwise_s
    shapes = {"llama-2-70b": LLAMA_70B_TP4, "codellama-34b": LLAMA_34B_TP2}
    return [
        _steps(model, [row for row in rows if row["model"] == model], shape, H100(folder, shape, elementwise_s), factor)
        for model, shape in shapes.items()
    ]


def _steps(model: str, rows: list[dict[str, str]], shape: Shape, kernels: H100, factor: float) -> Steps:
    recorded, computed, prefills = [], [], 0
    rows = sorted(rows, key=lambda row: int(row["step.id"]))
    for row, following in pairwise(rows):
        gap = float(following["t_s"]) - float(row["t_s"])
        if int(following["step.id"]) != int(row["step.id"]) + 1 or gap > STEP_GAP_MAX_S:
            continue
        decodes, prefill = int(row["batch.num_decode_reqs"]), int(row["batch.prefill_tokens"])
        running = max(1, decodes + int(row["batch.num_prefill_reqs"]))
        held = (int(row["kv.blocks_total_gpu"]) - int(row["kv.blocks_free_gpu"])) * 16
        chunks = [Chunk(prefill, 0)] if prefill else []
        computed.append(factor * kernels.step_s(Batch(chunks, decodes=decodes, decode_context=held * decodes // running)))
        recorded.append(gap)
        prefills += bool(prefill)
    return Steps(model, np.array(recorded), np.array(computed), shape.weight_bytes / 3.35e12, prefills)


def _rows(path: Path) -> list[dict[str, str]]:
    try:
        with gzip.open(path, "rt", newline="") as file:
            return list(csv.DictReader(file))
    except OSError as error:
        raise RecordingError(f"{path}: {error}") from None
