"""How long an engine step takes, from what is in it. All times in seconds.

`BatchingLatency` describes continuous batching: one step computes the prefill chunks and one token of every decoding sequence
together, so a long prefill holds up everyone. What the API server does with a request before the scheduler can see it
(parsing, tokenizing, the way to the engine's process) takes `request_s` and holds up nobody.

`FormulaLatency` is the closed form of a request alone on an engine: prefill = base + missing blocks x per block, counted from
the first missing block; decode = tokens x per token.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import NamedTuple, Protocol


class Chunk(NamedTuple):
    """Prompt tokens of one sequence computed in one step."""

    tokens: int
    context: int
    """Tokens of that sequence whose KV was there before."""


@dataclass(slots=True)
class Batch:
    """The work of one step."""

    chunks: list[Chunk]
    starts: int = 0
    """Chunks that are the first of their sequence."""
    decodes: int = 0
    """Sequences that compute one token."""
    decode_context: int = 0
    """Sum of their context lengths in tokens."""

    @property
    def tokens(self) -> int:
        return self.decodes + sum(chunk.tokens for chunk in self.chunks)


class Latency(Protocol):
    @property
    def request_s(self) -> float:
        """Seconds from a request's arrival until the scheduler can see it, 0 or more."""

    def step_s(self, batch: Batch) -> float:
        """Seconds that a step with this batch takes."""


@dataclass(frozen=True, slots=True)
class BatchingLatency:
    """Continuous batching. Every field in seconds."""

    step_s_base: float
    """Any step: launches, weights read once, sampling, bookkeeping."""
    prefill_s_base: float
    """Once more in a step where a sequence starts."""
    prefill_s_per_token: float
    attention_s_per_pair: float
    """Per pair of a prompt token and a token that it attends to."""
    decode_s_per_sequence: float
    context_s_per_token: float
    """Per token of context that a decoding sequence reads."""
    request_s: float = 0.0
    """API server: from a request's arrival until the scheduler can see it."""
    tokens_in_base: int = 0
    """Tokens of a step, decoding ones first, that are computed while a GPU still reads the weights: no time of their own."""

    def step_s(self, batch: Batch) -> float:
        seconds = (
            self.step_s_base + batch.decodes * self.decode_s_per_sequence + batch.decode_context * self.context_s_per_token
        )
        if batch.starts:
            seconds += self.prefill_s_base
        computed = -max(0, self.tokens_in_base - batch.decodes)
        for tokens, context in batch.chunks:
            computed += tokens
            seconds += tokens * (context + tokens / 2) * self.attention_s_per_pair
        return seconds + max(0, computed) * self.prefill_s_per_token


@dataclass(frozen=True, slots=True)
class FormulaLatency:
    """Prefill = base + missing blocks x per block; decode = tokens x per token. Several prefills in a step add up."""

    block_size: int
    prefill_s_base: float
    prefill_s_per_block: float
    decode_s_per_token: float
    request_s: float = 0.0

    def step_s(self, batch: Batch) -> float:
        seconds = batch.starts * self.prefill_s_base
        for tokens, context in batch.chunks:
            blocks = ceil((context + tokens) / self.block_size) - ceil(context / self.block_size)
            seconds += blocks * self.prefill_s_per_block
        if batch.decodes:
            seconds += self.decode_s_per_token
        return seconds
