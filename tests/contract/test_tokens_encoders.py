"""Faster ways to the same tokens: fastokens, the cache between special tokens, and the proof that admits them."""

from __future__ import annotations

import json
import subprocess
import sys
from array import array
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from contract import tokens
from contract.tokens import loading, proof, segments
from contract.tokens.encoder import CacheStats, Encoder, Fast, Reference
from contract.tokens.source import BUILTIN_FOLDER, read

SERIALIZED = (BUILTIN_FOLDER / "tokenizer.json").read_text()
VLLM_SERIALIZED = (Path(__file__).parents[1] / "fixtures" / "tokens_vllm" / "tokenizer.json").read_text()
SPECIAL = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]

TRUTH = Reference(Tokenizer.from_str(SERIALIZED))
FAST = Fast(SERIALIZED)
SEGMENTED = segments.Segmented(TRUTH, segments.cuts(SERIALIZED))
VLLM_TRUTH = Reference(Tokenizer.from_str(VLLM_SERIALIZED))
VLLM_SEGMENTED = segments.Segmented(VLLM_TRUTH, segments.cuts(VLLM_SERIALIZED))
VLLM_FAST = Fast(VLLM_SERIALIZED)

words = st.one_of(
    st.sampled_from(
        [*SPECIAL, "<|", "|>", "<|eot_id", " ", "  ", "\n", "\n\n", "\t", "'s", "'LL", "don't", "12345", "é", "e\u0301"]
    ),
    st.sampled_from(
        ["the quick brown fox", "def f(x):\n    return x", "世界", "👩‍👩‍👧", "foo bar", "a b", "x = [1, 2]", "\r\n", "\u00a0"]
    ),
    st.sampled_from(
        ["世界，您好。", "好！", "ﬁ,", "がﾞ、", "各\u0301，", "a\u0301.", "é;", "I'LL", "a1b2", "x'sy", "word_word", "。\n\n"]
    ),
    st.text(max_size=8),
)
prompts = st.lists(words, max_size=30).map("".join)


@given(text=prompts, add=st.booleans())
@settings(deadline=None, max_examples=400)
def test_every_encoder_gives_the_tokens_of_tokenizers(text: str, add: bool) -> None:
    truth = TRUTH.encode(text, add)
    assert FAST.encode(text, add) == truth
    assert SEGMENTED.encode(text, add) == truth
    vllm = VLLM_TRUTH.encode(text, add)
    assert VLLM_SEGMENTED.encode(text, add) == vllm
    assert VLLM_FAST.encode(text, add) == vllm


def cut_short(serialized: str, every: int = 3) -> segments.Segmented:
    """A segmented encoder that cuts long pieces after a few letters instead of thousands."""
    reference = Reference(Tokenizer.from_str(serialized))
    return segments.Segmented(reference, segments.cuts(serialized), cache_bytes_max=0, piece_chars_min=every)


def test_cutting_between_words_changes_no_token() -> None:
    for serialized in (SERIALIZED, VLLM_SERIALIZED):
        eager = cut_short(serialized)
        truth = Reference(Tokenizer.from_str(serialized))
        assert eager._words
        for text in [*proof.TEXTS, *proof.texts([" the", "'s", "\n", "  x", "a b", "don't", "é"], SPECIAL, 7)]:
            assert eager.encode(text, False) == truth.encode(text, False), repr(text)


@given(text=prompts)
@settings(deadline=None, max_examples=300)
def test_any_safe_cut_leaves_the_tokens_as_they_are(text: str) -> None:
    cut = segments.SAFE_CUT.search(text)
    if cut and not any(token[:8] in text for token in SPECIAL):
        left, right = text[: cut.start()], text[cut.start() :]
        assert TRUTH.encode(left, False) + TRUTH.encode(right, False) == TRUTH.encode(text, False)
        assert VLLM_TRUTH.encode(left, False) + VLLM_TRUTH.encode(right, False) == VLLM_TRUTH.encode(text, False)


NORMALIZERS = [None, *({"type": kind} for kind in ("NFC", "NFD", "NFKC", "NFKD"))]
SPLITTERS = [{"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}] + [
    {
        "type": "Sequence",
        "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": split}, "behavior": "Isolated", "invert": False},
            {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
        ],
    }
    for split in segments.SPLITS
]


@cache
def eager(normalizer: int, splitter: int) -> tuple[Reference, segments.Segmented]:
    """The shipped vocabulary under another way to normalize and to split words; every possible cut is made."""
    serialized = changed(normalizer=NORMALIZERS[normalizer], pre_tokenizer=SPLITTERS[splitter])
    truth = Reference(Tokenizer.from_str(serialized))
    allowed = segments.cuts(serialized)
    assert allowed.words
    return truth, segments.Segmented(truth, allowed, cache_bytes_max=0)


@pytest.mark.parametrize("normalizer", range(len(NORMALIZERS)))
@pytest.mark.parametrize("splitter", range(len(SPLITTERS)))
@given(text=prompts)
@settings(deadline=None, max_examples=60)
def test_sliced_texts_have_the_tokens_of_the_whole_under_every_split_and_normalization(
    normalizer: int, splitter: int, text: str
) -> None:
    truth, sliced = eager(normalizer, splitter)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(segments, "PIECE_CHARS_MIN", 1)
        assert sliced.encode(text, False) == truth.encode(text, False)


class _Measuring:
    """An encoder that keeps how long its texts were."""

    def __init__(self) -> None:
        self.chars: list[int] = []

    def encode(self, text: str, add_special_tokens: bool) -> bytes:
        self.chars.append(len(text))
        return TRUTH.encode(text, add_special_tokens)

    def stats(self) -> CacheStats:
        return CacheStats(0, 0, 0, 0)


@pytest.mark.parametrize(
    ("text", "between_chars"),
    [
        ("word after word ", 5),
        ("def f(x):\n\treturn [x, 'y']\n", 20),
        ("您好，世界。我们去看一看吧！", 8),
        ("QUJD+0ab/" * 3, 9),
    ],
)
def test_no_call_gets_more_than_a_slice_of_a_long_text(text: str, between_chars: int) -> None:
    """between_chars: how far it is at most from one place where it may be cut to the next."""
    measuring = _Measuring()
    sliced = segments.Segmented(measuring, segments.cuts(SERIALIZED), cache_bytes_max=0)
    long = text * (500_000 // len(text))
    measuring.chars.clear()
    ids = sliced.encode(long, False)
    assert ids == TRUTH.encode(long, False)
    assert sum(measuring.chars) == len(long)
    assert max(measuring.chars) <= segments.PIECE_CHARS_MIN + between_chars


turns = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant"]), "content": prompts}), min_size=1, max_size=8
)
tool = {
    "type": "function",
    "function": {"name": "look_up", "parameters": {"type": "object", "properties": {"q": {"type": "string"}}}},
}


@given(chat=turns, tools=st.sampled_from([None, [tool]]))
@settings(deadline=None, max_examples=60)
def test_a_growing_conversation_costs_only_what_is_new_and_has_the_tokens_of_the_whole(
    chat: list[dict[str, Any]], tools: list[dict[str, Any]] | None
) -> None:
    for tokenizer in (CACHED, SLOW):
        for length in range(1, len(chat) + 1):
            body = {"messages": chat[:length], "tools": tools}
            assert tokenizer.chat(body) == TRUTH.encode(tokenizer.render(body), False)


CACHED = tokens.load(tokens.BUILTIN)
SLOW = loading.load(tokens.BUILTIN, fast=False)


def test_the_next_turn_looks_its_history_up() -> None:
    for fast in (True, False):
        tokenizer = loading.load(tokens.BUILTIN, fast=fast)
        chat = [{"role": "user", "content": f"turn {turn} with its own words"} for turn in range(20)]
        tokenizer.chat({"messages": chat[:-1]})
        before = tokenizer.stats
        tokenizer.chat({"messages": chat})
        after = tokenizer.stats
        assert after.misses - before.misses <= 2
        assert after.hits - before.hits >= 19


def test_the_cache_stays_within_its_bound() -> None:
    small = segments.Segmented(TRUTH, segments.cuts(SERIALIZED), cache_bytes_max=20_000)
    fast = Fast(SERIALIZED, cache_bytes_max=20_000)
    for number in range(2_000):
        text = f"<|eot_id|>number {number}" * 3
        assert small.encode(text, False) == fast.encode(text, False)
        assert small.stats().size_bytes <= 20_000
    assert fast.stats().size_bytes <= fast.stats().size_bytes_max == 20_000
    huge = "word " * 50_000
    assert small.encode(huge, False) == TRUTH.encode(huge, False)
    assert small.stats().size_bytes <= 20_000


def changed(**fields: Any) -> str:
    return json.dumps({**json.loads(SERIALIZED), **fields})


def with_first_added_token(**flags: Any) -> str:
    added = json.loads(SERIALIZED)["added_tokens"]
    return changed(added_tokens=[{**added[0], **flags}, *added[1:]])


METASPACE = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": True}
LOWERCASE = {"type": "Lowercase"}


@pytest.mark.parametrize(
    ("serialized", "around_special", "between_words"),
    [
        (SERIALIZED, True, True),
        (VLLM_SERIALIZED, True, True),
        (changed(normalizer={"type": "NFC"}), True, True),
        (changed(normalizer=LOWERCASE), True, False),
        (changed(pre_tokenizer=METASPACE), False, False),
        (changed(pre_tokenizer={**METASPACE, "prepend_scheme": "always"}), True, False),
        (changed(pre_tokenizer={"type": "Whitespace"}), True, False),
        (with_first_added_token(lstrip=True), False, False),
        (with_first_added_token(rstrip=True), False, False),
        (with_first_added_token(single_word=True), False, False),
        (with_first_added_token(normalized=True), True, True),
        (with_first_added_token(content="<two words>"), True, False),
    ],
)
def test_a_tokenizer_is_cut_only_where_the_argument_holds(serialized: str, around_special: bool, between_words: bool) -> None:
    allowed = segments.cuts(serialized)
    assert (allowed.special is not None, allowed.words) == (around_special, between_words)


def test_a_normalized_added_token_under_a_normalizer_forbids_every_cut() -> None:
    spec = json.loads(with_first_added_token(normalized=True))
    assert segments.cuts(json.dumps({**spec, "normalizer": LOWERCASE})).special is None


@pytest.mark.parametrize(
    "serialized",
    [
        changed(pre_tokenizer=METASPACE),
        changed(normalizer=LOWERCASE),
        with_first_added_token(rstrip=True, lstrip=True),
        changed(normalizer={"type": "Sequence", "normalizers": [{"type": "NFKC"}, {"type": "Prepend", "prepend": "x"}]}),
    ],
)
@given(text=prompts, add=st.booleans())
@settings(deadline=None, max_examples=60)
def test_tokenizers_of_other_kinds_keep_their_tokens(serialized: str, text: str, add: bool) -> None:
    truth, segmented = both(serialized)
    assert segmented.encode(text, add) == truth.encode(text, add)


@cache
def both(serialized: str) -> tuple[Reference, segments.Segmented]:
    truth = Reference(Tokenizer.from_str(serialized))
    return truth, segments.Segmented(truth, segments.cuts(serialized))


class _Wrong:
    """An encoder that is right but for texts with a given string in them."""

    def __init__(self, where: str, error: Exception | None = None) -> None:
        self._where, self._error = where, error

    def encode(self, text: str, add_special_tokens: bool) -> bytes:
        if self._where in text and self._error:
            raise self._error
        ids = TRUTH.encode(text, add_special_tokens)
        return ids + array("I", [1]).tobytes() if self._where in text else ids

    def stats(self) -> CacheStats:
        return CacheStats(0, 0, 0, 0)


def wrong_encoders() -> Iterator[Encoder]:
    yield from (_Wrong(where) for where in ("\u0301", "👍", "<|eot_id|>x", "  \n", "'LL", "\ufeff", "한국"))
    yield _Wrong("\x00", ValueError("no zeros"))


@pytest.mark.parametrize("wrong", list(wrong_encoders()), ids=lambda wrong: repr(wrong._where))
def test_the_proof_finds_an_encoder_that_differs(wrong: Encoder) -> None:
    vocabulary = ["the", " of", "\n", "x"]
    assert proof.equal(TRUTH, TRUTH, vocabulary, SPECIAL)
    assert not proof.equal(wrong, TRUTH, vocabulary, SPECIAL)


def test_a_kind_that_fastokens_does_not_know_falls_back_and_says_so(tmp_path: Path) -> None:
    model = {"type": "WordLevel", "vocab": {"a": 0, "b": 1, "[UNK]": 2}, "unk_token": "[UNK]"}
    spec = changed(model=model, pre_tokenizer={"type": "Whitespace"}, decoder=None, post_processor=None, added_tokens=[])
    (tmp_path / "tokenizer.json").write_text(spec)
    tokenizer = tokens.load(str(tmp_path))
    assert not tokenizer.fast
    assert memoryview(tokenizer.encode("a b c")).cast("I").tolist() == [0, 1, 2]


def test_truncation_and_padding_in_the_file_are_switched_off(tmp_path: Path) -> None:
    cut = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    pad = {
        "strategy": {"Fixed": 64},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 1,
        "pad_type_id": 0,
        "pad_token": "x",
    }
    (tmp_path / "tokenizer.json").write_text(changed(truncation=cut, padding=pad))
    text = "a longer text than four tokens"
    for fast in (True, False):
        assert loading.load(str(tmp_path), fast=fast).encode(text) == TRUTH.encode(text, True)


def test_the_shipped_tokenizer_is_what_auto_tokenizer_loads() -> None:
    from transformers import AutoTokenizer

    loaded = AutoTokenizer.from_pretrained(str(BUILTIN_FOLDER))
    source = read(tokens.BUILTIN)
    assert json.loads(loaded.backend_tokenizer.to_str()) == json.loads(source.serialized)
    assert loaded.special_tokens_map == dict(source.special_tokens)
    body = {"messages": [{"role": "user", "content": "Hello"}]}
    text = loaded.apply_chat_template(body["messages"], tokenize=False, add_generation_prompt=True)
    assert CACHED.render(body) == text
    assert memoryview(CACHED.chat(body)).cast("I").tolist() == loaded.encode(text, add_special_tokens=False)


AT_ONCE = """
import sys, threading
from concurrent.futures import ThreadPoolExecutor
from contract.tokens.source import read
together = threading.Barrier(4)
def one(folder):
    together.wait()
    return read(folder).special_tokens["bos_token"]
with ThreadPoolExecutor(4) as pool:
    print(*pool.map(one, [sys.argv[1]] * 4))
"""


def test_threads_may_load_at_once(tmp_path: Path) -> None:
    """As a data plane does whose fleet has several models. In a process of its own: the first ones import transformers."""
    (tmp_path / "tokenizer.json").write_text(SERIALIZED)
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|begin_of_text|>", "add_bos_token": True}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    done = subprocess.run(
        [sys.executable, "-c", AT_ONCE, str(tmp_path)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout.split() == ["<|begin_of_text|>"] * 4, done.stderr[-2000:]


def test_a_tokenizer_that_auto_tokenizer_changes_is_loaded_by_it(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(SERIALIZED)
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|begin_of_text|>", "eos_token": "<|not_there_yet|>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = tokens.load(str(tmp_path))
    assert memoryview(tokenizer.encode("<|not_there_yet|>", add_special_tokens=False)).cast("I").tolist() == [8192]


def test_long_texts_with_few_safe_places_are_encoded_whole() -> None:
    fresh = segments.Segmented(TRUTH, segments.cuts(SERIALIZED), piece_chars_min=10, search_chars_max=7)
    for text in ("x_y;" * 40 + "a b" + "1 2" * 30, "", "a b", "word " * 30, "a " * 25 + "b", "()" * 50):
        assert fresh.encode(text, False) == TRUTH.encode(text, False)
