"""Engines worth imitating: their memory, their limits, their speed.

`tiny-cpu`: the 32 M parameter Llama of the CPU recordings (vLLM 0.32, one thread, block 32, 700 blocks, max_num_seqs 8,
chunks of 2,048). Constants: robust least squares on TTFT, ITL, TPOT and prefill time of 2,383 recorded requests at 22 load
levels, replayed at their recorded times (`python -m emulator.fidelity DATA --fit`; residuals in docs/fidelity.md). The unit of
speed is the median run on a machine that nobody else used. Idle, in the quietest spell, the real engine was up to a fifth
faster.

`llama3-8b-h100`: Llama-3.1-8B in BF16 on one H100 80 GB: 27,200 blocks of 16 tokens (435k tokens, 131,072 bytes each), chunks
of 8,192. Constants: kernel timings of vLLM 0.24 on an H100 SXM, summed over 32 layers and times 1.10, which is what an engine's
step took over its kernels where both were measured, an RTX PRO 6000 (the same command). So made, H100 steps of a 34B
and a 70B model come out within 6 % of recorded medians. 41,000 prefill tokens/s for a prompt of 8,192, 27,000 for one of
32,768. request_s: from traces of another vLLM with a 7B model.

`llama2-13b-a100-40gb`: 40 layers x 40 heads x 128 in FP16: 819,200 bytes of KV a token, 16-token blocks of 13,107,200
bytes; what 26 GB of weights leave of 40 GB at 0.9 utilisation holds 924 of them. Not measured; derived from the device: 26
GB at 1.3 TB/s achieved for a step's base and 0.63 us a context token, 26 GFLOP a token at 170 TFLOP/s achieved for prefill,
819 kFLOP a pair at 120 TFLOP/s. No measurement of it was at hand to compare with.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from emulator.engine import EngineConfig
from emulator.latency import BatchingLatency, FormulaLatency, Latency


@dataclass(frozen=True, slots=True)
class Preset:
    """One engine. bytes_per_token: KV bytes of a token over all layers."""

    model: str
    block_size: int
    num_blocks: int
    bytes_per_token: int
    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int
    batching: BatchingLatency
    formula: FormulaLatency
    accelerator: str

    @property
    def block_bytes(self) -> int:
        return self.block_size * self.bytes_per_token

    def config(self, *, hash_seed: int = 0) -> EngineConfig:
        """Its sizes as an engine takes them."""
        return EngineConfig(
            block_size=self.block_size,
            num_blocks=self.num_blocks,
            max_num_seqs=self.max_num_seqs,
            max_num_batched_tokens=self.max_num_batched_tokens,
            max_model_len=self.max_model_len,
            hash_seed=hash_seed,
        )

    def latency(self, kind: str) -> Latency:
        """kind: `batching` or `formula`. ValueError: another word."""
        if kind == "batching":
            return self.batching
        if kind == "formula":
            return self.formula
        raise ValueError(f"latency model {kind!r} is not one of batching, formula")


TINY_CPU = Preset(
    model="tiny",
    block_size=32,
    num_blocks=700,
    bytes_per_token=8_192,
    max_model_len=4_096,
    max_num_seqs=8,
    max_num_batched_tokens=2_048,
    batching=BatchingLatency(
        step_s_base=4.778e-3,
        prefill_s_base=2.260e-3,
        prefill_s_per_token=1.383e-4,
        attention_s_per_pair=9.06e-8,
        decode_s_per_sequence=4.329e-4,
        context_s_per_token=8.349e-7,
        request_s=5.849e-3,
    ),
    formula=FormulaLatency(block_size=32, prefill_s_base=10e-3, prefill_s_per_block=32 * 0.16e-3, decode_s_per_token=5.1e-3),
    accelerator="cpu",
)

LLAMA3_8B_H100 = Preset(
    model="llama-3.1-8b",
    block_size=16,
    num_blocks=27_200,
    bytes_per_token=131_072,
    max_model_len=131_072,
    max_num_seqs=256,
    max_num_batched_tokens=8_192,
    batching=BatchingLatency(
        step_s_base=6.955e-3,
        prefill_s_base=0.0,
        prefill_s_per_token=1.924e-5,
        attention_s_per_pair=1.084e-9,
        decode_s_per_sequence=1.134e-5,
        context_s_per_token=4.290e-8,
        request_s=3.87e-3,
        tokens_in_base=192,
    ),
    formula=FormulaLatency(block_size=16, prefill_s_base=10.8e-3, prefill_s_per_block=16 / 42_000, decode_s_per_token=7.0e-3),
    accelerator="h100-80gb",
)

LLAMA2_13B_A100 = Preset(
    model="llama-2-13b",
    block_size=16,
    num_blocks=924,
    bytes_per_token=2 * 40 * 40 * 128 * 2,
    max_model_len=4_096,
    max_num_seqs=256,
    max_num_batched_tokens=2_048,
    batching=BatchingLatency(
        step_s_base=21.5e-3,
        prefill_s_base=4e-3,
        prefill_s_per_token=1.53e-4,
        attention_s_per_pair=6.8e-9,
        decode_s_per_sequence=4e-5,
        context_s_per_token=6.3e-7,
    ),
    formula=FormulaLatency(block_size=16, prefill_s_base=25e-3, prefill_s_per_block=16 * 1.53e-4, decode_s_per_token=21.5e-3),
    accelerator="a100-40gb",
)

PRESETS: Mapping[str, Preset] = MappingProxyType(
    {"tiny-cpu": TINY_CPU, "llama3-8b-h100": LLAMA3_8B_H100, "llama2-13b-a100-40gb": LLAMA2_13B_A100}
)
