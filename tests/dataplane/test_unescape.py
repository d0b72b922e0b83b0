"""Bodies with their escapes undone are the same JSON, and are undone in slices."""

from __future__ import annotations

import json
import random
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataplane import unescape

PARTS = "\u4e16\u754c|\\u4e16|\\\\u4e16|\\|\n|\u00e9|\U0001f600|\U0001f469\u200d\U0001f469|u4e16|\x00|\x7f|\u0100|text |/"
texts = st.lists(st.sampled_from([*PARTS.split("|"), '"']) | st.text(max_size=4), max_size=12).map("".join)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
ESCAPES = rb"\u4e16|\u4E16|\\u4e16|\\\u4e16|\ud83d|\ude00|\ud83d\ude00|\u0022|\u005c|\u4e|\uzzzz|\U0001f600|\n|\|u4e16|"
OTHERS = b'"| |a|{|}|:|[|]|,|1|\x00|\xc3\xa9'
fragments = st.lists(st.sampled_from([*ESCAPES.split(b"|"), *OTHERS.split(b"|")]), max_size=20).map(b"".join)


def read(body: bytes) -> Any:
    """What a JSON reader makes of it; None: nothing."""
    try:
        return (msgspec.json.decode(body),)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


@pytest.mark.parametrize("slice_bytes", [6, 7, 13, 64])
@given(value=values, ascii_only=st.booleans())
@settings(deadline=None, max_examples=80)
def test_it_is_the_same_json(slice_bytes: int, value: Any, ascii_only: bool) -> None:
    body = json.dumps(value, ensure_ascii=ascii_only).encode("utf-8", "replace")
    assert read(unescape.unescaped(body, slice_bytes=slice_bytes)) == read(body)


@pytest.mark.parametrize("slice_bytes", [6, 7, 13, 64])
@given(fragment=fragments, quoted=st.booleans())
@settings(deadline=None, max_examples=150)
def test_what_is_no_json_stays_none(slice_bytes: int, fragment: bytes, quoted: bool) -> None:
    body = b'{"a": "' + fragment + b'"}' if quoted else fragment
    assert read(unescape.unescaped(body, slice_bytes=slice_bytes)) == read(body)


def test_a_long_text_is_undone_in_bounded_slices() -> None:
    rng = random.Random(1)
    body = json.dumps(
        {"messages": ["".join(chr(rng.randrange(0x4E00, 0x9000)) for _ in range(200_000)), "x" * 300_000]}
    ).encode()
    assert unescape.unescaped(body) == json.dumps(json.loads(body), ensure_ascii=False).encode()
    sizes = [len(piece) for piece in unescape.slices(body, unescape.SLICE_BYTES)]
    assert sum(sizes) == len(body)
    assert max(sizes) <= 2 * unescape.SLICE_BYTES
