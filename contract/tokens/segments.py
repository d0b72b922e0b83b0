"""The token cache of the fallback: exact, and keyed by the text between two special tokens.

A prompt is a conversation, and the next turn repeats all of the last one. To encode only what is new, the text is cut where
encoding left and right of the cut, each alone, provably gives the same tokens as encoding the whole; pieces that were seen
before are looked up. Such cuts are of two kinds.

1.  Around an added token. `tokenizers` extracts added tokens (special ones are among them) before anything else happens to
    a text: leftmost match first, the longest of those. What lies between them goes through normalizer, pre-tokenizer and
    model piece by piece; no step looks across. Cutting there by the same rule therefore changes nothing, unless

      - an added token is `normalized` while there is a normalizer (it is then looked for in the normalized text), or takes
        white space with it (`lstrip`, `rstrip`) or wants word boundaries (`single_word`): the match is another than ours;
      - a step treats the first piece of a text differently: Metaspace with `prepend_scheme: first`.

2.  In long pieces, behind a letter and before what is neither a letter nor a mark that could go with it: an ASCII letter or a
    Chinese character, then white space, a digit or punctuation. In the expressions by which all of the pre-tokenizers that
    `SPLITS` names (GPT-2's, Llama 3's, Qwen's and their kin) split words, letters stand at the end of an alternative or in
    none: whatever match has the letter in it ends with its run of letters, at the cut, and what follows opens the next match.
    None looks ahead past a letter. The expression has no memory, so the matches after the cut begin afresh.
    Canonical and compatibility normalization (NFC, NFD, NFKC, NFKD) keeps such a cut, too: these letters neither decompose
    nor compose with these neighbours, and stay letters. This bounds how long one call is, and gives growing plain
    prompts a common prefix to look up.

Where a tokenizer is of another kind than this argument covers, pieces are as long as need be: `cuts` says which.
A load-time proof (`proof`) checks the result on this vocabulary, and a property test does on generated conversations.
"""

from __future__ import annotations

import json
import re
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from threading import Lock
from typing import Any

from contract.tokens.encoder import CACHE_BYTES_MAX, CacheStats, Encoder

PIECE_CHARS_MIN = 4096
"""A long piece is cut at the first safe place after so many characters: about 1,000 tokens, 0.7 ms of `tokenizers`."""

SEARCH_CHARS_MAX = 32 * 1024
"""How far one search for a safe place goes: 0.3 ms of text without one, and then other threads get their turn."""

ENTRY_BYTES = 200
"""What a cache entry costs beside its text and its tokens: two objects and a place in the dictionary."""

SAFE_CUT = re.compile(r"(?<=[A-Za-z\u4e00-\u9fff])(?=[\t\n\r -@\[-`{-~\u3001\u3002\uff01\uff0c\uff1a\uff1b\uff1f])")

_SPACED_WORD = re.compile(r"[A-Za-z] [A-Za-z]")

SPLITS = (
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|"
        r"\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
)
"""Pre-tokenizer expressions for which the second kind of cut is proven: GPT-2, Llama 3, Qwen 2 and 3, Qwen 3.5."""


@dataclass(frozen=True)
class Cuts:
    """Where texts may be cut. special: added token -> id, None when not even around them; words: cuts of the second kind."""

    special: Mapping[str, int] | None
    words: bool


def cuts(serialized: str) -> Cuts:
    """Reads it off a tokenizer.json."""
    spec = json.loads(serialized)
    added = spec.get("added_tokens") or []
    if not _free_of_context(spec) or any(_reaches_out(token, spec.get("normalizer")) for token in added):
        return Cuts(None, words=False)
    spaced = any(_SPACED_WORD.search(token["content"]) for token in added)
    return Cuts({token["content"]: token["id"] for token in added}, words=not spaced and _splits_words(spec))


def _reaches_out(token: Mapping[str, Any], normalizer: object) -> bool:
    return bool(
        token.get("lstrip")
        or token.get("rstrip")
        or token.get("single_word")
        or (token.get("normalized") and normalizer is not None)
    )


def _steps(part: Any, inner: str) -> Iterator[Mapping[str, Any]]:
    """A component, or the components of a sequence of them."""
    if part is None:
        return
    if part.get("type") == "Sequence":
        for one in part[inner]:
            yield from _steps(one, inner)
    else:
        yield part


def _free_of_context(spec: Mapping[str, Any]) -> bool:
    """Does no step of the pre-tokenizer care where in the text a piece stands?"""
    steps = _steps(spec.get("pre_tokenizer"), "pretokenizers")
    return not any(step["type"] == "Metaspace" and step.get("prepend_scheme", "always") == "first" for step in steps)


def _splits_words(spec: Mapping[str, Any]) -> bool:
    """Is it a byte-level BPE that splits words by one of SPLITS?"""
    if any(step["type"] not in ("NFC", "NFD", "NFKC", "NFKD") for step in _steps(spec.get("normalizer"), "normalizers")):
        return False
    steps = list(_steps(spec.get("pre_tokenizer"), "pretokenizers"))
    if spec["model"].get("type") != "BPE" or spec["model"].get("dropout") or not steps or steps[-1]["type"] != "ByteLevel":
        return False
    if steps[-1].get("add_prefix_space") or len(steps) > 2:
        return False
    if len(steps) == 1:
        return bool(steps[0].get("use_regex", True))  # the expression is then GPT-2's
    split = steps[0]
    return bool(
        split["type"] == "Split"
        and split.get("behavior") == "Isolated"
        and not split.get("invert")
        and split["pattern"].get("Regex") in SPLITS
        and not steps[-1].get("use_regex", True)
    )


class Segmented:
    """An encoder that remembers pieces. Exact under the argument above; its memory is bounded by `cache_bytes_max`."""

    def __init__(
        self,
        whole: Encoder,
        allowed: Cuts,
        cache_bytes_max: int = CACHE_BYTES_MAX,
        *,
        piece_chars_min: int = PIECE_CHARS_MIN,
        search_chars_max: int = SEARCH_CHARS_MAX,
    ) -> None:
        self._whole = whole
        self._piece_chars_min = piece_chars_min
        self._search_chars_max = search_chars_max
        self._special = {token: id_.to_bytes(4, "little") for token, id_ in (allowed.special or {}).items()}
        self._words = allowed.words
        self._splitter = _splitter(self._special)
        self._frame = _frame(whole) if allowed.special is not None else None
        self._cache: OrderedDict[str, bytes] = OrderedDict()
        self._lock = Lock()
        self._size_bytes_max = cache_bytes_max
        self._size_bytes = self._hits = self._misses = 0

    def encode(self, text: str, add_special_tokens: bool) -> bytes:
        """Flat little-endian uint32 token ids."""
        if self._frame is None:
            return self._whole.encode(text, add_special_tokens)
        parts = [self._frame[0]] if add_special_tokens else []
        for piece in self._splitter.split(text) if self._splitter else (text,):
            if (special := self._special.get(piece)) is not None:
                parts.append(special)
            elif len(piece) > self._piece_chars_min and self._words:
                parts += self._encode_piece(piece)
            elif piece:
                parts.append(self._cached(piece))
        if add_special_tokens:
            parts.append(self._frame[1])
        return b"".join(parts)

    def stats(self) -> CacheStats:
        """The state of the cache. Of look-ups in several threads at once one may be left out."""
        return CacheStats(self._hits, self._misses, self._size_bytes, self._size_bytes_max)

    def _encode_piece(self, piece: str) -> Iterator[bytes]:
        start = searched = 0
        while (searched := max(searched, start + self._piece_chars_min)) < len(piece):
            window_end = searched + self._search_chars_max
            cut = SAFE_CUT.search(piece, searched, window_end)
            if cut is None:
                searched = window_end
                continue
            yield self._cached(piece[start : cut.start()])
            start = cut.start()
        yield self._cached(piece[start:])

    def _cached(self, piece: str) -> bytes:
        try:  # each of the two is one step under the GIL; between them another thread may have dropped the piece
            self._cache.move_to_end(piece)
            ids = self._cache[piece]
        except KeyError:
            self._misses += 1
        else:
            self._hits += 1
            return ids
        ids = self._whole.encode(piece, False)
        self._keep(piece, ids)
        return ids

    def _keep(self, piece: str, ids: bytes) -> None:
        size = _size_bytes(piece, ids)
        if size > self._size_bytes_max:
            return
        with self._lock:
            if piece in self._cache:  # another thread was faster
                return
            self._cache[piece] = ids
            self._size_bytes += size
            while self._size_bytes > self._size_bytes_max:
                self._size_bytes -= _size_bytes(*self._cache.popitem(last=False))


def _size_bytes(piece: str, ids: bytes) -> int:
    return ENTRY_BYTES + len(ids) + len(piece) * (1 if piece.isascii() else 4)


def _splitter(special: Mapping[str, bytes]) -> re.Pattern[str] | None:
    """Leftmost, then longest: alternatives are tried in order, so the longest come first."""
    if not special:
        return None
    return re.compile("(" + "|".join(re.escape(token) for token in sorted(special, key=len, reverse=True)) + ")")


def _frame(whole: Encoder) -> tuple[bytes, bytes] | None:
    """What the post-processor puts before and after a text (BOS, EOS); None when it does something else."""
    bare, framed = whole.encode("a", False), whole.encode("a", True)
    at = framed.find(bare)
    before, after = framed[:at], framed[at + len(bare) :]
    for text in ("", "b c"):
        if at < 0 or whole.encode(text, True) != before + whole.encode(text, False) + after:
            return None
    return before, after
