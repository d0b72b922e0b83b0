"""One prompt on its way through the engine, and the engine's own name for its blocks.

The engine hash is this process's secret: a chain over full blocks, seeded per incarnation, as in vLLM up to 0.28 where
PYTHONHASHSEED is unset. Nothing outside may rely on it; readers of KV events re-chain the token ids that come with it.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from enum import Enum

from xxhash import xxh3_64_intdigest

from emulator.block_pool import PLAIN, Origin

_MASK = (1 << 64) - 1


class FinishReason(Enum):
    """How a sequence ended, in the words of the wire."""

    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class Request:
    """What the engine needs to know of a prompt.

    prompt: token ids as flat little-endian uint32, at least one. max_tokens: 1 or more; 0 for a request that ends with its
    prefill (embeddings). seed: tells apart samples of one prompt; text depends on nothing but prompt and seed.
    """

    request_id: str
    prompt: bytes
    max_tokens: int
    min_tokens: int = 0
    ignore_eos: bool = False
    stop_token_ids: frozenset[int] = frozenset()
    seed: int = 0
    origin: Origin = PLAIN
    """Adapter and salt, which keep caches apart, and the session, which events report."""
    kv_report_full: bool = False
    """Announce reused blocks again (`vllm_xargs: {"kv_cache_report_mode": "full"}`)."""


@dataclass(slots=True, eq=False)
class Sequence:
    """A request's state inside the engine. Owned by the scheduler, read by everyone else."""

    request: Request
    tokens: array[int]
    num_prompt: int
    hash_parent: int
    arrived_s: float
    ready_s: float = 0.0
    """When the scheduler may see it, where the API server takes its time."""
    num_computed: int = 0
    """Tokens whose KV is in blocks."""
    num_cached: int = -1
    """Prompt tokens found in the prefix cache when first scheduled; -1 before."""
    num_blocks_hashed: int = 0
    """Leading blocks that are in the prefix cache under `hashes`."""
    blocks: list[int] = field(default_factory=list)
    hashes: list[int] = field(default_factory=list)
    num_preemptions: int = 0
    scheduled_s: float | None = None
    first_token_s: float | None = None
    last_token_s: float | None = None
    finish: FinishReason | None = None
    text_state: int = 0
    text_len: int = 0
    """Where the answer ends by itself, in tokens."""

    @property
    def num_output(self) -> int:
        return len(self.tokens) - self.num_prompt

    @property
    def missing(self) -> int:
        """Tokens still to compute before the next one can be sampled."""
        return len(self.tokens) - self.num_computed


def new_sequence(request: Request, *, root: int, now: float, text_seed: int = 0) -> Sequence:
    """ValueError: an empty prompt."""
    tokens = array("I")
    tokens.frombytes(request.prompt)
    if not tokens:
        raise ValueError(f"request {request.request_id} has an empty prompt")
    # The adapter colours every block, the salt the first one and, through the chain, all that follow.
    parent = root
    lora, cache_salt, _ = request.origin
    if lora or cache_salt:
        parent = xxh3_64_intdigest(f"{lora}\x1f{cache_salt}".encode(), root)
    sequence = Sequence(request, tokens, len(tokens), parent, now)
    sequence.text_state = xxh3_64_intdigest(request.prompt, (request.seed ^ text_seed) & _MASK)
    return sequence


def extend_hashes(sequence: Sequence, block_size: int, num_blocks: int) -> None:
    """Make `hashes` cover at least `num_blocks` full blocks of tokens."""
    hashes = sequence.hashes
    view = memoryview(sequence.tokens)
    parent = hashes[-1] if hashes else sequence.hash_parent
    for index in range(len(hashes), num_blocks):
        parent = xxh3_64_intdigest(view[index * block_size : (index + 1) * block_size], parent)
        hashes.append(parent)


def root_hash(seed: int) -> int:
    """The parent of every first block of one engine incarnation."""
    return xxh3_64_intdigest(b"engine root", seed & _MASK)
