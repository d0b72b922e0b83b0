"""A clean-room model of one engine's cache and of what an observer of its events may believe. Slow and obvious.

The engine holds physical copies: a list of (engine name, prefix) per rank and tier. A prefix is the tuple of everything that
the block and the ones before it contain. Block hashes are computed from prefixes, not from parents.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from contract import blocks


@dataclass
class ReferenceEngine:
    """What is really there."""

    model: str
    block_size: int
    copies: list[tuple[int, tuple[int, ...], str, str]] = field(default_factory=list)  # (name, prefix tokens, lora, salt)

    def holds(self) -> set[int]:
        return {self.block_hash(prefix, lora, salt) for _, prefix, lora, salt in self.copies}

    def block_hash(self, prefix: tuple[int, ...], lora: str, salt: str) -> int:
        parent = blocks.root_hash(self.model, lora=lora, cache_salt=salt)
        return blocks.chain(blocks.pack_tokens(prefix), self.block_size, parent)[-1]

    @staticmethod
    def name(prefix: tuple[int, ...], lora: str, salt: str, seed: int) -> int:
        return hash((prefix, lora, salt, seed)) & (2**64 - 1)
