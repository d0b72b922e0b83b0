"""Prompt to token ids, exactly as the engine does it: chat template and tools included.

    body ─▶ responses, anthropic ─▶ conversation ─▶ template ─▶ encoder ─▶ token ids (flat little-endian uint32)

errors          what can go wrong
loading         a name to a PromptTokenizer
source          where tokenizer and chat templates come from: shipped, a directory, a hub
prompt          PromptTokenizer: all of the below, for one model
responses       a /v1/responses body as a chat body
anthropic       a /v1/messages body as a chat body
conversation    a chat body as the template gets it
content_format  does a template want texts or parts
template        rendering
compiled        a template as a plain function, where it is covered
coverage        which templates are
encoder         text to token ids
segments        the token cache of the fallback, and why it is exact
proof           are two encoders equal on a vocabulary
chains          block hashes of a prompt whose beginning was hashed before
text            the fallback without a tokenizer
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from contract.tokens.errors import NotTokenizable, PromptError, TokenizerUnavailable
from contract.tokens.text import text_of

if TYPE_CHECKING:
    from contract.tokens.prompt import PromptTokenizer

__all__ = ["BUILTIN", "NotTokenizable", "PromptError", "PromptTokenizer", "TokenizerUnavailable", "load", "text_of"]

BUILTIN = "headway-8k"
"""Name of the shipped tokenizer; always loadable, offline too."""


def load(spec: str) -> PromptTokenizer:
    """The tokenizer that `spec` names: BUILTIN, a directory with tokenizer.json, or a name on the hub.

    Takes from 50 ms to seconds and may read the network (not with HF_HUB_OFFLINE=1). TokenizerUnavailable.
    """
    from contract.tokens.loading import load as loaded

    return loaded(spec)


def __getattr__(name: str) -> object:
    """`PromptTokenizer` on first use: importing this package costs nothing to processes that never tokenize."""
    if name == "PromptTokenizer":
        from contract.tokens.prompt import PromptTokenizer

        return PromptTokenizer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
