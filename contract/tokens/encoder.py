"""Text to token ids: fastokens where it is proven equal to `tokenizers` on this vocabulary, else `tokenizers`."""

from __future__ import annotations

from array import array
from typing import Any, Protocol

from tokenizers import Tokenizer


class Encoder(Protocol):
    """Encodes a text; thread-safe."""

    def encode(self, text: str, add_special_tokens: bool) -> bytes:
        """Flat little-endian uint32 token ids."""


class Reference:
    """`tokenizers` as it is. `encode_batch_fast` lets other threads run meanwhile; `encode` does not."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def encode(self, text: str, add_special_tokens: bool) -> bytes:
        """Flat little-endian uint32 token ids."""
        return array("I", self._tokenizer.encode_batch_fast([text], add_special_tokens=add_special_tokens)[0].ids).tobytes()


class Fast:
    """fastokens: the same BPE, 40 to 170 times faster; it lets other threads run, too."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def encode(self, text: str, add_special_tokens: bool) -> bytes:
        """Flat little-endian uint32 token ids."""
        ids: bytes = self._tokenizer.encode_batch_flat([text], add_special_tokens=add_special_tokens)[0]
        return ids
