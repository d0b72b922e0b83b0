from __future__ import annotations

from array import array

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contract import tokens
from loadgen.errors import LoadError
from loadgen.rows import Blocks, runs
from loadgen.synthetic import BlockText, candidate_words, verified_words

TOKENIZER = tokens.load(tokens.BUILTIN)


def ids_of(text: str) -> list[int]:
    return list(array("I", TOKENIZER.encode(text, add_special_tokens=False)))


WORDS = verified_words(candidate_words(), lambda text: len(TOKENIZER.encode(text)) // 4)


def prompt(ids: list[int], block_tokens: int, tokens_wanted: int, text: BlockText | None = None) -> str:
    blocks = Blocks(tokens_wanted, runs(ids), block_tokens)
    return (text or BlockText(WORDS)).prompt(blocks.ids, block_tokens, tokens_wanted)


def test_most_words_are_one_token_in_the_shipped_tokenizer() -> None:
    assert len(WORDS) > 2000


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 1 << 50), min_size=1, max_size=6, unique=True),
    st.lists(st.integers(0, 1 << 50), min_size=1, max_size=6, unique=True),
    st.sampled_from([16, 64, 128, 512]),
)
def test_prompts_share_exactly_as_many_token_blocks_as_they_share_leading_ids(
    first: list[int], second: list[int], block_tokens: int
) -> None:
    second = first[: len(second) // 2] + [value for value in second if value not in first]
    equal = next((n for n, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), min(len(first), len(second)))
    one = ids_of(prompt(first, block_tokens, block_tokens * len(first)))
    other = ids_of(prompt(second, block_tokens, block_tokens * len(second)))
    assert len(one) == block_tokens * len(first)
    assert one[: equal * block_tokens] == other[: equal * block_tokens]
    end = (equal + 1) * block_tokens
    if equal < min(len(first), len(second)):
        assert one[equal * block_tokens : end] != other[equal * block_tokens : end]


@given(st.integers(1, 1400))
def test_a_prompt_has_as_many_tokens_as_asked_its_last_block_cut(wanted: int) -> None:
    whole, cut = prompt([5, 6, 9], 512, 1536), prompt([5, 6, 9], 512, wanted)
    assert len(ids_of(cut)) == wanted
    assert whole.startswith(cut)


def test_a_block_is_the_same_in_every_process_and_in_any_place() -> None:
    assert BlockText(["a", "b", "c", "d"]).block(7, 12) == "dabdcbccbbcd"
    assert prompt([1, 2], 16, 32).endswith(prompt([2], 16, 16))


def test_another_salt_gives_another_text_for_every_block() -> None:
    plain, salted = BlockText(WORDS), BlockText(WORDS, salt="round-1")
    assert all(plain.block(n, 16) != salted.block(n, 16) for n in range(1000))


def test_in_a_chat_the_prompt_stands_between_tokens_of_the_template_and_keeps_its_length() -> None:
    body = {"messages": [{"role": "user", "content": prompt([1, 2, 3], 64, 150)}]}
    empty = {"messages": [{"role": "user", "content": ""}]}
    assert len(TOKENIZER.chat(body)) // 4 == len(TOKENIZER.chat(empty)) // 4 + 150


def test_the_cache_keeps_within_its_bound() -> None:
    text = BlockText(WORDS, blocks_cached_max=10)
    first = text.block(0, 16)
    for block_id in range(1, 100):
        text.block(block_id, 16)
    assert len(text._cache) == 10
    assert text.block(0, 16) == first


def test_a_tokenizer_without_words_of_one_token_is_refused() -> None:
    with pytest.raises(LoadError, match="only 0 known words"):
        verified_words([" abc", " def"], len)


def test_a_tokenizer_that_merges_neighbouring_words_is_refused() -> None:
    with pytest.raises(LoadError, match="merge with their neighbours"):
        verified_words(candidate_words(), lambda text: 1 if text else 0)
