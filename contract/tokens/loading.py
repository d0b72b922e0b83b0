"""A tokenizer's name to a PromptTokenizer: read the source, choose the encoder and prove it."""

from __future__ import annotations

import os
from collections.abc import Callable

from contract.tokens import proof, segments
from contract.tokens import source as sources
from contract.tokens.encoder import Encoder, Fast, Reference
from contract.tokens.prompt import PromptTokenizer
from contract.tokens.source import Source

VOCABULARY_SAMPLE = 4096
"""How many of the vocabulary's tokens the proof draws its texts from, spread evenly."""


def load(spec: str, *, fast: bool = True) -> PromptTokenizer:
    """See `contract.tokens.load`. fast: False does without fastokens (for comparisons)."""
    # One text a call leaves nothing to do in parallel; the library's own threads would only take processors from other work.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    source = sources.read(spec)
    chosen = _proven(source, lambda: Fast(source.serialized)) if fast else None
    return PromptTokenizer(spec, source, chosen or fallback(source), fast=chosen is not None)


def fallback(source: Source) -> Encoder:
    """`tokenizers` with the segment cache, or bare where this tokenizer does not let itself be cut."""
    whole = Reference(source.tokenizer)
    allowed = segments.cuts(source.serialized)
    return _proven(source, lambda: segments.Segmented(whole, allowed)) or whole


def _proven(source: Source, make: Callable[[], Encoder]) -> Encoder | None:
    """A fresh encoder, if one like it passes the proof."""
    try:
        return make() if _equal(make(), source) else None
    except Exception:  # fastokens does not know every kind of tokenizer, and may not be there on every platform
        return None


def _equal(encoder: Encoder, source: Source) -> bool:
    size = source.tokenizer.get_vocab_size()
    step = max(1, size // VOCABULARY_SAMPLE)
    vocabulary = source.tokenizer.decode_batch([[id_] for id_ in range(0, size, step)], skip_special_tokens=False)
    special = [token.content for token in source.tokenizer.get_added_tokens_decoder().values()][: proof.SAMPLES]
    return proof.equal(encoder, Reference(source.tokenizer), vocabulary, special)
