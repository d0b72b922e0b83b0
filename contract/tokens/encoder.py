"""Text to token ids: fastokens where it is proven equal to `tokenizers` on the model's own vocabulary, else `tokenizers`.

What was measured (8k vocabulary, English and code; 8,900 and 125,000 tokens; one of two shared cores):

    call                              8,900    125,000   GIL
    tokenizers encode().ids          6.1 ms     150 ms   held throughout: 140 ms in one piece
    tokenizers encode_batch_fast     5.1 ms      95 ms   released, but for 1 ms that makes the list of ids
    fastokens, text never seen       0.4 ms       6 ms   released, but for 0.3 ms
    fastokens, words seen           0.04 ms     0.6 ms   released
    fastokens, segment cache        0.01 ms    0.13 ms   released

So `encode` of `tokenizers` is never called on a request's path. The next turn of a conversation (200 new tokens on 8,000 in 20
messages; template, tokens and block hashes) costs 0.7 % of `tokenizers` encode on the whole with fastokens, and 3.3 % where
only `tokenizers` can be had (2.5 % is the share of the new tokens). `make bench ARGS=tokens` prints these figures.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from typing import Any, Protocol

from tokenizers import Tokenizer

CACHE_BYTES_MAX = 64 * 1024 * 1024
"""Memory for texts and their token ids, per model."""


PACKED_AT_ONCE_MAX = 16_384
"""Token ids put into an array in one go, in which no other thread has its turn: 0.1 ms."""


@dataclass(frozen=True)
class CacheStats:
    """How the token cache does: look-ups of text segments since the start, and its size now."""

    hits: int
    misses: int
    size_bytes: int
    size_bytes_max: int


class Encoder(Protocol):
    """Encodes texts; may be called from several threads at once."""

    def encode(self, text: str, add_special_tokens: bool) -> bytes:
        """Flat little-endian uint32 token ids."""

    def stats(self) -> CacheStats:
        """The state of its cache."""


class Reference:
    """`tokenizers`, without a cache: the truth that the others are held to."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def encode(self, text: str, add_special_tokens: bool) -> bytes:
        """Flat little-endian uint32 token ids."""
        ids: list[int] = self._tokenizer.encode_batch_fast([text], add_special_tokens=add_special_tokens)[0].ids
        if len(ids) <= PACKED_AT_ONCE_MAX:
            return array("I", ids).tobytes()
        packed = array("I")
        for start in range(0, len(ids), PACKED_AT_ONCE_MAX):
            packed.extend(ids[start : start + PACKED_AT_ONCE_MAX])
        return packed.tobytes()

    def stats(self) -> CacheStats:
        """All zero."""
        return CacheStats(0, 0, 0, 0)


class Fast:
    """fastokens, with its cache of the texts between special tokens (the argument that this is exact: `segments`).

    serialized: the text of a tokenizer.json. Raises whatever fastokens raises for a kind of tokenizer that it does not know.
    """

    def __init__(self, serialized: str, cache_bytes_max: int = CACHE_BYTES_MAX) -> None:
        import fastokens

        self._tokenizer: Any = fastokens.Tokenizer.from_json_str(serialized)
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.enable_segment_cache(cache_bytes_max)
        self._encode = self._tokenizer.encode_batch_flat

    def encode(self, text: str, add_special_tokens: bool) -> bytes:
        """Flat little-endian uint32 token ids."""
        ids: bytes = self._encode([text], add_special_tokens)[0]
        return ids

    def stats(self) -> CacheStats:
        """The state of the segment cache."""
        now: dict[str, int] = self._tokenizer.segment_cache_stats() or {}
        return CacheStats(now.get("hits", 0), now.get("misses", 0), now.get("bytes", 0), now.get("max_bytes", 0))
