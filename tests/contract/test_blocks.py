"""Block hashes: equal prefixes, and only these, have equal hashes."""

from __future__ import annotations

from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract import blocks

token_lists = st.lists(st.integers(0, 200_000), max_size=80)


@given(token_lists, st.integers(1, 20))
def test_only_full_blocks_are_hashed(tokens: list[int], block_size: int) -> None:
    assert len(blocks.chain(blocks.pack_tokens(tokens), block_size, 1)) == len(tokens) // block_size


@given(token_lists, token_lists, st.integers(1, 8))
def test_hashes_are_equal_just_as_far_as_the_prompts_are(left: list[int], right: list[int], block_size: int) -> None:
    root = blocks.root_hash("model")
    pairs = zip(
        blocks.chain(blocks.pack_tokens(left), block_size, root),
        blocks.chain(blocks.pack_tokens(right), block_size, root),
        strict=False,
    )
    for position, (ours, theirs) in enumerate(pairs, start=1):
        assert (ours == theirs) == (left[: position * block_size] == right[: position * block_size])


@given(token_lists, st.integers(1, 8), st.integers(0, 10))
def test_a_chain_can_be_continued(tokens: list[int], block_size: int, cut: int) -> None:
    packed = blocks.pack_tokens(tokens)
    whole = blocks.chain(packed, block_size, blocks.root_hash("m"))
    head = blocks.chain(packed[: 4 * block_size * cut], block_size, blocks.root_hash("m"))
    tail = blocks.chain(packed[4 * block_size * cut :], block_size, head[-1] if head else blocks.root_hash("m"))
    assert head + tail == whole


@given(token_lists.filter(lambda tokens: len(tokens) >= 4))
def test_extending_by_one_block_is_what_the_chain_does(tokens: list[int]) -> None:
    packed = blocks.pack_tokens(tokens[:4])
    assert blocks.chain(packed, 4, 9)[0] == blocks.extend(9, packed)
    assert blocks.extend(9, packed, b"image-1") != blocks.extend(9, packed)


def test_what_changes_kv_values_changes_the_root() -> None:
    roots = {
        blocks.root_hash("m"),
        blocks.root_hash("n"),
        blocks.root_hash("m", lora="a"),
        blocks.root_hash("m", cache_salt="a"),
        blocks.text_root_hash("m"),
    }
    assert len(roots) == 5


def test_a_golden_vector_holds_across_machines_and_versions() -> None:
    packed = blocks.pack_tokens([(i * 7919 + 13) % 152_064 for i in range(300)])
    chained = blocks.chain(packed, 128, blocks.root_hash("golden"))
    assert list(chained) == [GOLDEN[0], GOLDEN[1]]
    assert blocks.unpack_hashes(chained.tobytes()) == chained


GOLDEN = (11009831129499989171, 1544075304544214757)


def test_text_chunks_are_counted_in_bytes() -> None:
    assert len(blocks.text_chain(b"x" * 64 * 3 + b"y", 16, blocks.text_root_hash("m"))) == 3


def test_a_torn_packing_is_refused() -> None:
    with pytest.raises(ValueError):
        blocks.unpack_hashes(b"1234567")
    assert blocks.unpack_hashes(b"") == array("Q")
