"""Trains the shipped tokenizer: `python -m contract.tokenizers.train PROMPTS_DIR [OUT_DIR]`.

PROMPTS_DIR holds the gzip'd JSON-lines prompt sets named in SOURCES (see headway-8k/NOTICE.md for where they come from and
their licences). The result is the same to the byte for the same files: texts are read in the order of SOURCES and repeated
texts count once. CI does not run this; the tokenizer is committed, and changing it changes every recorded token id.
"""

from __future__ import annotations

import gzip
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

VOCABULARY_TOKENS = 8192
SPECIAL = ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
SPLIT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
"""Where words end: contractions, words with the space before them, up to three digits, punctuation, line ends."""

SOURCES = (
    "mt_bench",
    "vicuna_bench",
    "mt_bench_101_a",
    "arena_hard_v0.1",
    "gsm8k_test",
    "humaneval",
    "tau_bench_airline",
    "toolbench_eval",
    "agent_text_a",
)


def texts(row: dict[str, Any]) -> Iterator[str]:
    """The texts of one line: the messages' contents and tool calls, or the added text of an agent's run."""
    for message in row.get("messages", ()):
        if message.get("content"):
            yield message["content"]
        for call in message.get("tool_calls") or ():
            yield json.dumps(call["function"])
    for field in ("add", "output"):
        if row.get(field):
            yield row[field]


def corpus(folder: Path) -> Iterator[str]:
    """Every text of every source, once."""
    seen: set[str] = set()
    for name in SOURCES:
        with gzip.open(folder / f"{name}.jsonl.gz", "rt", encoding="utf-8") as lines:
            for line in lines:
                for text in texts(json.loads(line)):
                    if text not in seen:
                        seen.add(text)
                        yield text


def train(folder: Path) -> Tokenizer:
    """The tokenizer, from the prompt sets in `folder`."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_TOKENS,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus(folder), trainer)
    begin = SPECIAL[0]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A", pair=f"{begin} $A {begin} $B:1", special_tokens=[(begin, tokenizer.token_to_id(begin))]
    )
    return tokenizer


def config() -> dict[str, Any]:
    """tokenizer_config.json: which special tokens play which part."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": SPECIAL[0],
        "eos_token": SPECIAL[4],
        "pad_token": SPECIAL[1],
        "clean_up_tokenization_spaces": False,
        "model_max_length": 131072,
    }


def main() -> None:
    """Trains and writes tokenizer.json and tokenizer_config.json."""
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    out = Path(sys.argv[2]) if len(sys.argv) == 3 else Path(__file__).parent / "headway-8k"
    out.mkdir(parents=True, exist_ok=True)
    tokenizer = train(Path(sys.argv[1]))
    tokenizer.save(str(out / "tokenizer.json"), pretty=False)
    (out / "tokenizer_config.json").write_text(json.dumps(config(), indent=2) + "\n")
    print(f"{out}: {tokenizer.get_vocab_size()} tokens")


if __name__ == "__main__":
    main()
