"""Step times from kernel timings: what a step costs where every kernel was measured alone, and the constants that say so.

Two tables: an H100 SXM (vLLM 0.24: GEMMs, context and generation attention), and an RTX PRO 6000 (every layer of
Llama-3.1-8B). A step is the sum over layers. The H100 table has no norms, rotary embedding and activation: they move memory, so
those of the RTX are scaled by memory bandwidth. Neither has the time between kernels.
"""

from __future__ import annotations

import csv
import gzip
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow.parquet as parquet

from emulator.fidelity.recording import Floats, RecordingError
from emulator.latency import Batch, BatchingLatency, Chunk

H100_BANDWIDTH, RTX_BANDWIDTH = 3.35e12, 1.79e12
_HEAD = 128
_ROBUST = 0.1
"""Relative errors beyond this count less and less."""
_REWEIGHTED = 20
KernelStep = Callable[[Batch], float]


@dataclass(frozen=True, slots=True)
class Shape:
    """One model on `ranks` GPUs (tensor parallel)."""

    layers: int
    hidden: int
    inner: int
    heads: int
    kv_heads: int
    vocabulary: int
    ranks: int = 1

    @property
    def gemms(self) -> tuple[tuple[int, int], ...]:
        """(n, k) of each layer on one rank: qkv, out, gate and up, down."""
        qkv = (self.heads + 2 * self.kv_heads) * _HEAD // self.ranks
        return (
            (qkv, self.hidden),
            (self.hidden, self.heads * _HEAD // self.ranks),
            (2 * self.inner // self.ranks, self.hidden),
            (self.hidden, self.inner // self.ranks),
        )

    @property
    def weight_bytes(self) -> float:
        """Read once a step by each rank, in BF16."""
        return 2.0 * (self.layers * sum(n * k for n, k in self.gemms) + self.vocabulary * self.hidden / self.ranks)


LLAMA_8B = Shape(32, 4_096, 14_336, 32, 8, 128_256)
LLAMA_34B_TP2 = Shape(48, 8_192, 22_016, 64, 8, 32_000, 2)
LLAMA_70B_TP4 = Shape(80, 8_192, 28_672, 64, 8, 32_000, 4)


class Rtx:
    """Llama-3.1-8B on one RTX PRO 6000, layer by layer. RecordingError: a table is not there."""

    def __init__(self, folder: Path) -> None:
        self._dense = _by_name(_rows(folder / "rtxpro6000_llama8b_dense.csv.gz"), "tokens")
        self._last = _by_name(_rows(folder / "rtxpro6000_llama8b_per_sequence.csv.gz"), "sequences")
        points = [
            [float(row[name]) for name in ("prefill_chunk", "kv_prefill", "n_decode", "kv_decode", "time_us")]
            for row in _rows(folder / "rtxpro6000_llama8b_attention.csv.gz")
        ]
        self._prefill = _surface([(chunk, kv, us) for chunk, kv, decodes, _, us in points if chunk and not decodes])
        self._decode = _surface([(decodes, kv, us) for chunk, _, decodes, kv, us in points if decodes and not chunk])

    def step_s(self, batch: Batch) -> float:
        micro = sum(self._layer(name, batch.tokens) for name in ("qkv_proj", "o_proj", "gate_up_proj", "down_proj"))
        micro += sum(_at(self._prefill, chunk.tokens, chunk.context) for chunk in batch.chunks)
        if batch.decodes:
            micro += _at(self._decode, batch.decodes, batch.decode_context / batch.decodes)
        sequences = max(1, batch.decodes + len(batch.chunks))
        ends = sum(float(np.interp(sequences, *self._last[name])) for name in ("lm_head", "sampler"))
        return (LLAMA_8B.layers * micro + ends) / 1e6 + self.elementwise_s(batch.tokens)

    def elementwise_s(self, tokens: int) -> float:
        """Norms, rotary embedding and activation of all layers."""
        names = ("layernorm", "layernorm", "rotary_emb", "act_fn")
        return LLAMA_8B.layers * sum(self._layer(name, tokens) for name in names) / 1e6

    def _layer(self, name: str, tokens: int) -> float:
        known, micro = self._dense[name]
        if tokens > known[-1]:
            return float(micro[-1] * tokens / known[-1])
        return float(np.interp(tokens, known, micro))


class H100:
    """Any Llama on H100s. elementwise_s: of Llama-3.1-8B on the RTX. RecordingError: a table is not there."""

    def __init__(self, folder: Path, shape: Shape, elementwise_s: Callable[[int], float]) -> None:
        self._shape = shape
        self._elementwise_s = elementwise_s
        self._gemms = _gemms(folder / "h100_vllm_gemm.parquet")
        heads, kv_heads = shape.heads // shape.ranks, shape.kv_heads // shape.ranks
        self._prefill = _attention(folder / "h100_vllm_context_attention.parquet", "isl", heads, kv_heads, batch=1)
        self._decode = _attention(folder / "h100_vllm_generation_attention.parquet", "step", heads, kv_heads)

    def step_s(self, batch: Batch) -> float:
        shape = self._shape
        layer_ms = sum(self._gemm_ms(batch.tokens, n, k) for n, k in shape.gemms)
        for tokens, context in batch.chunks:
            # Measured for whole prompts only: a later chunk attends to what a whole prompt of its pairs does.
            pairs = tokens * (context + tokens / 2)
            layer_ms += _at(self._prefill, 1, float(np.sqrt(2 * pairs)))
        if batch.decodes:
            layer_ms += _at(self._decode, batch.decodes, batch.decode_context / batch.decodes)
        sequences = max(1, batch.decodes + len(batch.chunks))
        head_ms = self._gemm_ms(sequences, shape.vocabulary // shape.ranks, shape.hidden)
        scale = RTX_BANDWIDTH / H100_BANDWIDTH * (shape.layers * shape.hidden) / (LLAMA_8B.layers * LLAMA_8B.hidden)
        return (shape.layers * layer_ms + head_ms) / 1e3 + scale * self._elementwise_s(batch.tokens)

    def _gemm_ms(self, tokens: int, n: int, k: int) -> float:
        """The nearest measured shape, scaled by its size."""
        near = min(self._gemms, key=lambda shape: (np.log(shape[0] / n)) ** 2 + (np.log(shape[1] / k)) ** 2)
        known, milli = self._gemms[near]
        return float(np.interp(tokens, known, milli)) * n * k / (near[0] * near[1])


def grid(tokens_max: int, sequences_max: int) -> list[Batch]:
    """Batches that an engine sees: decoding alone, one chunk alone, and both."""
    batches = [
        Batch([], decodes=count, decode_context=count * context)
        for count in (1, 4, 16, 32, 64, 128, 256)
        for context in (128, 512, 1_024, 2_048, 4_096)
        if count <= sequences_max
    ]
    sizes = [size for size in (128, 256, 512, 1_024, 2_048, 4_096, 8_192) if size <= tokens_max]
    batches += [Batch([Chunk(size, context)]) for size in sizes for context in (0, 2_048, 8_192)]
    batches += [
        Batch([Chunk(size, 0)], decodes=count, decode_context=count * 1_024)
        for size in sizes
        for count in (16, 64, 128)
        if count <= sequences_max and size + count <= tokens_max
    ]
    return batches


def constants(step_s: KernelStep, batches: Iterable[Batch], *, request_s: float = 0.0) -> BatchingLatency:
    """Robust least squares on relative errors, no constant below 0. How many tokens ride with the weights is tried out."""
    batches = list(batches)
    measured = np.array([step_s(batch) for batch in batches])
    fits = [_constants(batches, measured, free, request_s) for free in range(0, 513, 32)]
    return min(fits, key=lambda latency: _loss(np.array([latency.step_s(batch) for batch in batches]) / measured))


def _loss(ratios: Floats) -> float:
    return float(np.sum(np.sqrt(1 + ((ratios - 1) / _ROBUST) ** 2)))


def _constants(batches: list[Batch], measured: Floats, free: int, request_s: float) -> BatchingLatency:
    rows = []
    for batch in batches:
        pairs = sum(tokens * (context + tokens / 2) for tokens, context in batch.chunks)
        computed = sum(chunk.tokens for chunk in batch.chunks) - max(0, free - batch.decodes)
        rows.append([1.0, max(0, computed), pairs, batch.decodes, batch.decode_context])
    base, per_token, per_pair, per_sequence, per_context = _non_negative(np.array(rows) / measured[:, None])
    return BatchingLatency(
        step_s_base=base,
        prefill_s_base=0.0,
        prefill_s_per_token=per_token,
        attention_s_per_pair=per_pair,
        decode_s_per_sequence=per_sequence,
        context_s_per_token=per_context,
        request_s=request_s,
        tokens_in_base=free,
    )


def _non_negative(matrix: Floats) -> list[float]:
    """x >= 0 with matrix x close to 1, robustly: rows far off count less. Columns that would be negative are left out."""
    weight = np.ones(len(matrix))
    x = np.zeros(matrix.shape[1])
    for _ in range(_REWEIGHTED):
        used = list(range(matrix.shape[1]))
        while True:
            weighted = matrix[:, used] * weight[:, None]
            found = np.linalg.lstsq(weighted, weight, rcond=None)[0]
            if (found >= 0).all():
                break
            used.remove(used[int(np.argmin(found * np.abs(matrix[:, used]).mean(axis=0)))])
        x[:] = 0.0
        x[used] = found
        weight = (1 + ((matrix @ x - 1) / _ROBUST) ** 2) ** -0.25
    return [float(value) for value in x]


def _rows(path: Path) -> list[dict[str, str]]:
    try:
        with gzip.open(path, "rt", newline="") as file:
            return list(csv.DictReader(file))
    except OSError as error:
        raise RecordingError(f"{path}: {error}") from None


def _by_name(rows: list[dict[str, str]], axis: str) -> dict[str, tuple[Floats, Floats]]:
    found: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        found.setdefault(row["layer"], []).append((float(row[axis]), float(row["time_us"])))
    return {name: (np.array(sorted(points))[:, 0], np.array(sorted(points))[:, 1]) for name, points in found.items()}


Surface = list[tuple[float, Floats, Floats]]
"""At each first coordinate: second coordinates and values."""


def _surface(points: Iterable[tuple[float, float, float]]) -> Surface:
    found: dict[float, dict[float, list[float]]] = {}
    for first, second, value in points:
        found.setdefault(first, {}).setdefault(second, []).append(value)
    return [
        (first, np.array(sorted(line)), np.array([np.median(line[second]) for second in sorted(line)]))
        for first, line in sorted(found.items())
    ]


def _at(surface: Surface, first: float, second: float) -> float:
    """Linear in between; beyond an end in proportion to the first coordinate, along the last slope of the second."""
    firsts = [line[0] for line in surface]
    values = [_along(line[1], line[2], second) for line in surface]
    if first > firsts[-1]:
        return values[-1] * first / firsts[-1]
    return float(np.interp(first, firsts, values))


def _along(known: Floats, values: Floats, at: float) -> float:
    if at > known[-1] and len(known) > 1:
        return float(values[-1] + (values[-1] - values[-2]) / (known[-1] - known[-2]) * (at - known[-1]))
    return float(np.interp(at, known, values))


@lru_cache(maxsize=8)
def _table(path: Path) -> dict[str, list[object]]:
    try:
        columns: dict[str, list[object]] = parquet.read_table(path).to_pydict()
    except OSError as error:
        raise RecordingError(f"{path}: {error}") from None
    return columns


def _gemms(path: Path) -> dict[tuple[int, int], tuple[Floats, Floats]]:
    table = _table(path)
    found: dict[tuple[int, int], dict[int, float]] = {}
    for kind, m, n, k, milli in zip(*(table[name] for name in ("gemm_dtype", "m", "n", "k", "latency")), strict=True):
        if kind == "bfloat16":
            found.setdefault((int(str(n)), int(str(k))), {})[int(str(m))] = float(str(milli))
    return {shape: (np.array(sorted(line), float), np.array([line[m] for m in sorted(line)])) for shape, line in found.items()}


def _attention(path: Path, axis: str, heads: int, kv_heads: int, batch: int | None = None) -> Surface:
    table = _table(path)
    names = (
        *("num_heads", "num_key_value_heads", "head_dim", "kv_cache_dtype", "window_size", "kernel_source"),
        *("batch_size", axis, "latency"),
    )
    wanted = (heads, kv_heads, _HEAD, "bfloat16", 0, "vllm_flash_attn_fa3")
    points = [
        (float(str(row[6])), float(str(row[7])), float(str(row[8])))
        for row in zip(*(table[name] for name in names), strict=True)
        if row[:6] == wanted and batch in (None, row[6])
    ]
    return _surface(points)
