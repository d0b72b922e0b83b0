"""The requests of a step: made up to measure, or taken from a recorded workload by their lengths. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Protocol

from loadgen.errors import LoadError
from loadgen.rows import NAMESPACE_BITS, Blocks, Row, Trace
from loadgen.sweep import BUCKETS, MIXED, OUTPUTS, Combination, bucket_of

PIECE_TOKENS = 16
"""Shared beginnings are kept to whole pieces, which most engines' blocks are made of."""
DOCUMENTS = 6
"""Beginnings that the prompts of a step share, for each bucket."""


class Source(Protocol):
    def rows(self, combination: Combination, count: int, rng: Random) -> list[Row]:
        """The step's requests, in order of arrival, without times."""


@dataclass(frozen=True, slots=True)
class MadeUp:
    """tokens_max: of a prompt in the longest bucket."""

    tokens_max: int

    def __post_init__(self) -> None:
        if self.tokens_max <= BUCKETS[">1024"][0]:
            raise LoadError(f"prompts of at most {self.tokens_max} tokens leave the bucket >1024 empty")

    def rows(self, combination: Combination, count: int, rng: Random) -> list[Row]:
        return [self._row(combination, number, rng) for number in range(count)]

    def _row(self, combination: Combination, number: int, rng: Random) -> Row:
        names = tuple(BUCKETS)
        bucket = rng.randrange(len(names)) if combination.mix == MIXED else names.index(combination.mix)
        least, most = BUCKETS[names[bucket]]
        tokens = _log_uniform(rng, least, most or self.tokens_max)
        shared = int(combination.overlap * tokens) // PIECE_TOKENS
        document = (bucket * DOCUMENTS + rng.randrange(DOCUMENTS) + 1) << NAMESPACE_BITS
        own = (len(names) * DOCUMENTS + number + 1) << NAMESPACE_BITS
        pieces = -(-tokens // PIECE_TOKENS)
        ids = (range(document, document + shared), range(own, own + pieces - shared))
        return Row(0.0, Blocks(tokens, tuple(filter(len, ids)), PIECE_TOKENS), _log_uniform(rng, *OUTPUTS[combination.output]))


def _log_uniform(rng: Random, least: int, most: int) -> int:
    return min(most, int(math.exp(rng.uniform(math.log(least), math.log(most + 1)))))


class Recorded:
    """Rows of a trace, sorted into the buckets once; a step takes the next ones of its bucket, round and round."""

    def __init__(self, trace: Trace, tokens: Sequence[int]) -> None:
        """tokens: of each row's prompt. LoadError: no rows."""
        if not trace.rows:
            raise LoadError(f"{trace.name}: no requests")
        self._rows: dict[str, list[Row]] = {MIXED: list(trace.rows)}
        for row, count in zip(trace.rows, tokens, strict=True):
            self._rows.setdefault(bucket_of(count), []).append(row)

    @property
    def mixes(self) -> tuple[str, ...]:
        """Those it has requests for."""
        return tuple(name for name in (MIXED, *BUCKETS) if name in self._rows)

    def rows(self, combination: Combination, count: int, rng: Random) -> list[Row]:
        """ValueError: a mix it has no requests for."""
        found = self._rows.get(combination.mix)
        if not found:
            raise ValueError(f"no recorded prompt of {combination.mix} tokens")
        first = rng.randrange(len(found))
        return [found[(first + number) % len(found)] for number in range(count)]
