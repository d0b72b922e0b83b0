"""A tokenizer's name to a PromptTokenizer: read the source, choose the encoder."""

from __future__ import annotations

from contract.tokens import source as sources
from contract.tokens.encoder import Encoder, Fast, Reference
from contract.tokens.prompt import PromptTokenizer


def load(spec: str) -> PromptTokenizer:
    """See `contract.tokens.load`."""
    source = sources.read(spec)
    fast = _fast(source)
    return PromptTokenizer(spec, source, fast or Reference(source.tokenizer), fast=fast is not None)


def _fast(source: sources.Source) -> Encoder | None:
    import fastokens

    try:
        return Fast(fastokens.Tokenizer.from_json_str(source.serialized))
    except Exception:  # fastokens does not know every kind of tokenizer
        return None
