"""Is one encoder equal to another on this vocabulary? A few hundred texts say so when a tokenizer is loaded.

The texts are chosen where tokenizers differ: the vocabulary's own tokens alone and in random order, special tokens inside
other text, white-space runs, digits, contractions in both cases, scripts, combining marks, emoji sequences, control characters,
code. One difference, or one exception, and the encoder is not used.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

from contract.tokens.encoder import Encoder

SAMPLES = 256
"""How many random texts are made of the vocabulary's tokens."""

WORDS_PER_SAMPLE_MAX = 12

TEXTS = (
    "",
    " ",
    "\n",
    "  \n\n \t\r\n x",
    "a" * 300,
    " " * 70 + "x" + "\t" * 9,
    "0123456789 12 345 6789 3.14159 1,000,000 2026-11-21T00:00:00Z",
    "I'm you're HE'S they'LL we've 'tis don't'd",
    "def f(x):\n    return x if x > 0 else -x  # |x|\n\n\nclass A(B, metaclass=C):\n\tpass\n",
    '{"name": "get_weather", "arguments": {"city": "Zürich", "days": [1, 2, 3]}}\n',
    "Grüße aus Köln, naïve café Ångström ﬁ ﬂ ½ ²",
    "e\u0301 a\u030a n\u0303 \u1e9b\u0323 \u0041\u030a\u0301 \u1112\u1161\u11ab",
    "世界您好。日本語のテキスト、カタカナ。한국어 문장입니다.",
    "Привет, мир! Γειά σου Κόσμε. שלום עולם مرحبا بالعالم नमस्ते दुनिया สวัสดีชาวโลก",
    "👩‍👩‍👧‍👦 🇨🇭 👍🏽 🏳️‍🌈 ❤️ 🤷🏿‍♀️ \U0001f9ff",
    "\u200b\u200d\ufeff\u00a0\u2003\u3000\u2028\u2029\u0085x\u00ad",
    "\x00\x01\x1b[0m\x7f\x80\x9f",
    "https://example.org/a/b?c=%20d&e=f#g  user@example.org  C:\\dir\\file.txt",
    "!!!???...---___***###   $$$%%%^^^&&&   ((()))[[[]]]{{{}}}<<<>>>",
    "𝒜𝓁𝓅𝒽𝒶 ① ⅷ ℵ ∑∫√ ≠≤≥ →⇒ ░▒▓ ⠓⠑",
    "word" + "\n" * 5 + " word" + " \n" * 5 + "word\r\n\r\n",
    "▁word Ġword ĊĠ <0x0A> <unk> </s> [CLS]",
)


def equal(one: Encoder, other: Encoder, vocabulary: Sequence[str], special: Sequence[str], *, seed: int = 0) -> bool:
    """Do both encode every text alike? vocabulary: tokens as texts; special: added tokens."""
    try:
        return all(
            one.encode(text, add) == other.encode(text, add)
            for text in texts(vocabulary, special, seed)
            for add in (False, True)
        )
    except Exception:  # an encoder that fails on a text cannot stand in for one that does not
        return False


def texts(vocabulary: Sequence[str], special: Sequence[str], seed: int) -> Iterator[str]:
    """The texts of the proof; the same for the same arguments."""
    rng = random.Random(seed)
    yield from TEXTS
    for token in special:
        yield from (token, f"a{token}b", f" {token} \n{token}{token}  x", token[:-1], token + token[1:], f"{token}\u0301")
    yield " ".join(TEXTS)
    yield "".join(token + text for token, text in zip([*special, *TEXTS], TEXTS, strict=False))
    words = [*vocabulary, *TEXTS]
    joints = ["", " ", "\n", *special]
    for _ in range(SAMPLES):
        chosen = rng.choices(words, k=rng.randint(1, WORDS_PER_SAMPLE_MAX))
        yield "".join(word + rng.choice(joints) for word in chosen)
