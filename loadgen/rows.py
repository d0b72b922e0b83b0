"""One request of a workload, before it has a text and a time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

NAMESPACE_BITS = 40
"""Block ids local to a row or conversation are moved apart by this many bits."""


@dataclass(frozen=True, slots=True)
class Blocks:
    """A prompt known by its length and by which pieces it shares with others.

    ids: runs of block ids, in order; every id stands for `block_tokens` tokens, the last one for what is left of `tokens`.
    """

    tokens: int
    ids: tuple[range, ...]
    block_tokens: int

    @property
    def count(self) -> int:
        return sum(map(len, self.ids))


@dataclass(frozen=True, slots=True)
class Messages:
    """A recorded prompt: chat messages as the API takes them."""

    items: list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Row:
    """at_s: seconds since the trace's start, as recorded (0 where it does not say). session: "" for none."""

    at_s: float
    prompt: Blocks | Messages
    output_tokens: int
    session: str = ""


@dataclass(frozen=True, slots=True)
class Trace:
    """A readable name, its rows in the order in which they are to be sent, and whether it knows its own times."""

    name: str
    rows: Sequence[Row]
    timed: bool


def runs(ids: Iterable[int]) -> tuple[range, ...]:
    """A list of ids as runs of consecutive ones: 0, 14, 15, 16 is two runs."""
    found: list[range] = []
    begin = end = 0
    for value in ids:
        if value == end and end > begin:
            end += 1
            continue
        if end > begin:
            found.append(range(begin, end))
        begin, end = value, value + 1
    if end > begin:
        found.append(range(begin, end))
    return tuple(found)


def own_blocks(namespace: int, tokens: int, block_tokens: int, *, shared: tuple[range, ...] = ()) -> Blocks:
    """A prompt that begins with `shared` full blocks and is its own from there on; namespace: a number nobody else uses."""
    begin = (namespace + 1) << NAMESPACE_BITS
    left = max(0, tokens - block_tokens * sum(map(len, shared)))
    count = -(-left // block_tokens)
    own = (range(begin, begin + count),) if count else ()
    return Blocks(tokens, shared + own, block_tokens)
