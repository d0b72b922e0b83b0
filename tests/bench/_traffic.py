"""KV-event payloads as an engine sends them under real traffic, made from traces of requests.

One engine, a few sequences at a time, steps of a bounded number of tokens. What a step computes of a prompt is one event of
many blocks, what it ends by decoding an event of one block each, what had to go for them removals of one block each. Prefixes
that the trace says were seen before cost nothing, and no event, while they are cached.
"""

from __future__ import annotations

import csv
import gzip
import itertools
import random
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

BLOCK_SIZE, VOCABULARY = 16, 128_000
STEP_TOKENS, CACHE_BLOCKS = 2_048, 24_000
BLOCK_EVENTS = 40_000
TRACES = Path(__file__).resolve().parents[3] / "shared" / "data" / "traces"
SEGMENT_BLOCKS = 512 // BLOCK_SIZE
"""Mooncake names prefixes by segments of 512 tokens."""


@dataclass(slots=True)
class Request:
    """segments: names of the prompt's prefixes, 512 tokens each, none where the trace has none."""

    input_tokens: int
    output_tokens: int
    segments: list[Any] = field(default_factory=list)


@dataclass(slots=True)
class Traffic:
    """Payloads that fill the cache, those after them, and what is in the latter."""

    name: str
    filling: list[bytes]
    payloads: list[bytes]
    stored: int
    removed: int
    alone: int  # stored blocks that had an event of their own

    @property
    def blocks(self) -> int:
        return self.stored + self.removed

    def __str__(self) -> str:
        each = self.blocks / len(self.payloads)
        return f"{self.name}: {each:.0f} block events a step, {self.alone / self.stored:.0%} of the stored alone in their event"


# For where the traces are not at hand: (input, mean output) tokens of each tenth of their requests by input. The conversations
# of Mooncake (FAST '25), without their shared prefixes; ServeGen's m-mid, a general model with short prompts.
MOONCAKE = [
    (901, 293),
    (1261, 308),
    (2306, 364),
    (4250, 340),
    (5870, 336),
    (8186, 335),
    (11236, 354),
    (15366, 345),
    (21461, 358),
    (39552, 394),
]
SERVEGEN = [(131, 29), (137, 42), (145, 43), (155, 44), (167, 42), (176, 44), (194, 37), (237, 38), (373, 52), (1192, 83)]


def traffics() -> Iterator[Traffic]:
    """A conversation service with long prompts, and a model with short ones."""
    yield _traffic("long conversations (mooncake)", _mooncake(), 16)
    yield _traffic("short chats (servegen)", _servegen(), 64)


def _mooncake() -> Iterator[Request]:
    path = TRACES / "mooncake_conversation.jsonl.gz"
    if not path.exists():
        return _of_pairs(MOONCAKE)
    rows = map(msgspec.json.decode, gzip.decompress(path.read_bytes()).splitlines())
    return (Request(row["input_length"], row["output_length"], row["hash_ids"]) for row in rows)


def _servegen() -> Iterator[Request]:
    path = TRACES / "servegen_mmid_1h.csv.gz"
    if not path.exists():
        return _of_pairs(SERVEGEN)
    rows = csv.DictReader(gzip.decompress(path.read_bytes()).decode().splitlines())
    return (Request(int(row["input_tokens"]), int(row["output_tokens"])) for row in rows)


def _of_pairs(pairs: list[tuple[int, int]]) -> Iterator[Request]:
    chance = random.Random(1)
    return (Request(*chance.choice(pairs)) for _ in itertools.count())


def stored(names: list[int], tokens: list[int], parent: int | None) -> dict[str, Any]:
    """An event as vLLM 0.32 packs it."""
    return {
        "type": "BlockStored",
        "block_hashes": names,
        "parent_block_hash": parent,
        "token_ids": tokens,
        "block_size": BLOCK_SIZE,
        "lora_id": None,
        "medium": "GPU",
        "lora_name": None,
        "extra_keys": [None] * len(names),
        "group_idx": 0,
        "kv_cache_spec_kind": "full_attention",
    }


def removed(name: int) -> dict[str, Any]:
    return {"type": "BlockRemoved", "block_hashes": [name], "medium": "GPU", "group_idx": 0}


@dataclass(slots=True)
class _Sequence:
    request: Request
    computed: int = 0
    names: list[int] = field(default_factory=list)  # of its full blocks

    @property
    def ended(self) -> bool:
        return self.computed >= self.request.input_tokens + self.request.output_tokens


class _Engine:
    def __init__(self, requests: Iterator[Request], sequences: int) -> None:
        self._sequences = sequences
        self.stored = self.removed = self.alone = 0
        self._requests = requests
        self._chance = random.Random(2)
        self._running: deque[_Sequence] = deque()
        self._cache: OrderedDict[Any, list[int]] = OrderedDict()  # segment or block -> its names, least recently used first
        self._held = 0

    def step(self) -> list[dict[str, Any]]:
        self._running = deque(one for one in self._running if not one.ended)
        while len(self._running) < self._sequences:
            self._running.append(self._admit(next(self._requests)))
        budget, events = STEP_TOKENS, list[dict[str, Any]]()
        decoding = [one for one in self._running if one.computed >= one.request.input_tokens]
        for one in decoding:
            budget -= 1
            self._compute(one, 1, events)
        for one in self._running:
            missing = one.request.input_tokens - one.computed
            if missing > 0 and budget > 0:
                tokens = min(missing, budget)
                budget -= tokens
                self._compute(one, tokens, events)
        return [*self._evict(), *events]

    def _admit(self, request: Request) -> _Sequence:
        names: list[int] = []
        for segment in request.segments[: request.input_tokens // (SEGMENT_BLOCKS * BLOCK_SIZE)]:
            if segment not in self._cache or len(self._cache[segment]) != SEGMENT_BLOCKS:
                break
            self._cache.move_to_end(segment)
            names += self._cache[segment]
        return _Sequence(request, min(len(names) * BLOCK_SIZE, request.input_tokens - 1), names)

    def _compute(self, one: _Sequence, tokens: int, events: list[dict[str, Any]]) -> None:
        one.computed += tokens
        first, new = len(one.names), one.computed // BLOCK_SIZE - len(one.names)
        if new <= 0:
            return
        names = [self._chance.getrandbits(64) for _ in range(new)]
        ids = [self._chance.randrange(VOCABULARY) for _ in range(new * BLOCK_SIZE)]
        events.append(stored(names, ids, one.names[-1] if first else None))
        one.names += names
        for number, name in enumerate(names, start=first):
            segments, at = one.request.segments, number // SEGMENT_BLOCKS
            whole = at < len(segments) and (at + 1) * SEGMENT_BLOCKS * BLOCK_SIZE <= one.request.input_tokens
            self._cache.setdefault(segments[at] if whole else ("block", name), []).append(name)
        self._held += new
        self.stored += new
        self.alone += new == 1

    def _evict(self) -> list[dict[str, Any]]:
        events = []
        while self._held > CACHE_BLOCKS:
            _, names = self._cache.popitem(last=False)
            events += [removed(name) for name in names]
            self._held -= len(names)
        self.removed += len(events)
        return events


def _traffic(name: str, requests: Iterator[Request], sequences: int) -> Traffic:
    engine = _Engine(requests, sequences)
    filling = list(_until(engine, lambda: engine.removed > 0))
    engine.stored = engine.removed = engine.alone = 0
    payloads = list(_until(engine, lambda: engine.stored + engine.removed >= BLOCK_EVENTS))
    return Traffic(name, filling, payloads, engine.stored, engine.removed, engine.alone)


def _until(engine: _Engine, enough: Callable[[], bool]) -> Iterator[bytes]:
    while not enough():
        events = engine.step()
        if events:
            yield msgspec.msgpack.encode([0.0, events, 0])
