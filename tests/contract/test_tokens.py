"""Prompts become token ids as the engine makes them."""

from __future__ import annotations

import pytest

from contract import tokens


@pytest.fixture(scope="module")
def builtin() -> tokens.PromptTokenizer:
    return tokens.load(tokens.BUILTIN)


def test_the_shipped_tokenizer_loads_and_reverses_its_own_encoding(builtin: tokens.PromptTokenizer) -> None:
    encoded = builtin.encode("Grüße, 世界 🌍\n\tdef f():", add_special_tokens=False)
    assert builtin.decode(memoryview(encoded).cast("I").tolist()) == "Grüße, 世界 🌍\n\tdef f():"
