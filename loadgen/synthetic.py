"""Prompt text from block ids: equal ids give equal tokens, different ids different ones.

A block is a row of words drawn from its id (and a salt) alone. Every word carries its leading space and is one token of the
target tokenizer wherever it stands, since tokenizers split before a space: so a block of N words is N tokens, and blocks
joined are their tokens joined. That is verified for the tokenizer at hand when the word list is made, not assumed.
"""

from __future__ import annotations

import gzip
import hashlib
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib import resources
from itertools import chain

from loadgen.errors import LoadError

CountTokens = Callable[[str], int]

WORDS_MIN = 256
"""Fewer words that are one token each, and this tokenizer is not one for which prompts can be made to measure."""
BLOCKS_CACHED_MAX = 8192
"""At 512 tokens and about 7 characters a token: 30 MB."""
_TABLE = 1 << 16


def candidate_words() -> list[str]:
    """Common words, each with its leading space."""
    text = gzip.decompress(resources.files("loadgen").joinpath("data/words.txt.gz").read_bytes()).decode()
    return [" " + word for word in text.split()]


def verified_words(candidates: Iterable[str], count_tokens: CountTokens) -> list[str]:
    """The candidates that are one token each and stay so side by side. LoadError: too few, or they do not."""
    fixed = count_tokens("")  # a beginning-of-text token, where the tokenizer adds one
    words = [word for word in candidates if count_tokens(word) == fixed + 1]
    if len(words) < WORDS_MIN:
        raise LoadError(f"only {len(words)} known words are one token each in this tokenizer ({WORDS_MIN} needed)")
    sample = words + words[::-1] + words[::7]
    if count_tokens("".join(sample)) != fixed + len(sample):
        raise LoadError("words that are one token alone merge with their neighbours in this tokenizer")
    return words


class BlockText:
    """Text by block id. Building a cached block costs a dictionary look-up, a new one of 512 tokens about 20 us."""

    def __init__(self, words: Sequence[str], *, salt: str = "", blocks_cached_max: int = BLOCKS_CACHED_MAX) -> None:
        """words: as `verified_words` returns them. salt: another one gives other texts throughout."""
        self._blocks_cached_max = blocks_cached_max
        self._words = [words[place % len(words)] for place in range(_TABLE)]
        self._salt = salt.encode()
        self._cache: dict[tuple[int, int], str] = {}

    def block(self, block_id: int, tokens: int) -> str:
        """The block's first `tokens` words."""
        key = (block_id, tokens)
        text = self._cache.get(key)
        if text is None:
            if len(self._cache) >= self._blocks_cached_max:
                del self._cache[next(iter(self._cache))]
            self._cache[key] = text = self._write(block_id, tokens)
        return text

    def _write(self, block_id: int, tokens: int) -> str:
        draws = array("H")
        digest = hashlib.shake_128(b"%d/" % block_id + self._salt).digest(2 * tokens)
        draws.frombytes(digest)
        return "".join(map(self._words.__getitem__, draws))

    def prompt(self, ids: Iterable[range], block_tokens: int, tokens: int) -> str:
        """`tokens` tokens: the blocks in order, the last one cut."""
        return "".join(self._parts(chain.from_iterable(ids), block_tokens, tokens))

    def _parts(self, ids: Iterator[int], block_tokens: int, left: int) -> Iterator[str]:
        for block_id in ids:
            if left <= 0:
                return
            yield self.block(block_id, min(block_tokens, left))
            left -= block_tokens
