"""Token ids to text: the words that answers are made of, each with its JSON form ready for the wire.

Answers are built of whole words that encode back to themselves one by one, so that the next turn of a conversation, which
carries the answer as text, gets the very tokens that are in the cache.
"""

from __future__ import annotations

import json
import re
from array import array
from contextlib import suppress

from contract import tokens
from contract.tokens import source as sources
from emulator.engine import PLAIN_VOCABULARY, Vocabulary

_WORD = re.compile(r" [a-z]{2,}")
_OPENER = re.compile(r"[A-Z][a-z]+")
_WORDS_MAX = 4_096
"""Enough variety; a larger vocabulary is not searched further."""


class Texts:
    """One tokenizer's ids as text and as JSON string bytes."""

    def __init__(self, spec: str) -> None:
        """spec: as for contract.tokens.load. TokenizerUnavailable."""
        self.tokenizer = tokens.load(spec)
        source = sources.read(spec)
        self.vocab_size = int(source.tokenizer.get_vocab_size(with_added_tokens=True))
        eos = source.tokenizer.token_to_id(source.special_tokens.get("eos_token", ""))
        self._text: dict[int, str] = {}
        self._json: dict[int, bytes] = {}
        self.vocabulary = self._choose(PLAIN_VOCABULARY.eos if eos is None else int(eos))
        self._text[self.vocabulary.eos] = ""

    def warm_up(self) -> None:
        """Pay now for what is loaded with the first chat. A model without a chat template has nothing to load."""
        with suppress(tokens.NotTokenizable):
            self.tokenizer.prompts("/v1/chat/completions", {"messages": [{"role": "user", "content": "hi"}]})

    def text(self, token: int) -> str:
        """One token's text; "" for the end of an answer."""
        text = self._text.get(token)
        if text is None:
            text = self._text[token] = self.tokenizer.decode([token])
        return text

    def json(self, token: int) -> bytes:
        """The same as a JSON string."""
        encoded = self._json.get(token)
        if encoded is None:
            encoded = self._json[token] = json_string(self.text(token))
        return encoded

    def _choose(self, eos: int) -> Vocabulary:
        openers: list[int] = []
        words: list[int] = []
        for token in range(self.vocab_size):
            text = self.tokenizer.decode([token])
            chosen = words if _WORD.fullmatch(text) else openers if _OPENER.fullmatch(text) else None
            if chosen is not None and len(chosen) < _WORDS_MAX and self._is_stable(token, text):
                chosen.append(token)
        return Vocabulary(openers or words, words, eos)

    def _is_stable(self, token: int, text: str) -> bool:
        return self.tokenizer.encode(text, add_special_tokens=False) == array("I", (token,)).tobytes()


def json_string(text: str) -> bytes:
    return json.dumps(text, ensure_ascii=False).encode()


class StopFilter:
    """Cuts a growing text at the first stop string, holding back what may be the beginning of one."""

    def __init__(self, stops: tuple[str, ...]) -> None:
        self._stops = stops
        self._hold = max(map(len, stops)) - 1
        self._pending = ""

    def feed(self, text: str) -> tuple[str, str | None]:
        """Text that may be shown, and the stop string that was hit, if any (its text is not shown)."""
        self._pending += text
        found = [(self._pending.find(stop), stop) for stop in self._stops if stop in self._pending]
        if found:
            position, stop = min(found)
            return self._pending[:position], stop
        cut = max(0, len(self._pending) - self._hold)
        shown, self._pending = self._pending[:cut], self._pending[cut:]
        return shown, None

    def rest(self) -> str:
        """What was held back, at the end."""
        rest, self._pending = self._pending, ""
        return rest
