"""Prompt to token ids and block hashes: the cost of a conversation's next turn, and what long prompts do to an event loop."""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from tokenizers import Tokenizer

from contract import tokens
from contract.tokens import loading
from contract.tokens.chains import ChainCache
from contract.tokens.prompt import PromptTokenizer
from contract.tokens.source import BUILTIN_FOLDER

BLOCK_TOKENS = 16
ROOT = 1
HISTORY_TOKENS = 8_000
TURN_TOKENS = 200
LONG_TOKENS = 128_000
REPEATS = 30
TICK_S = 0.0005


def run() -> None:
    """All of it; about half a minute."""
    imports()
    for fast in (True, False):
        next_turn(loading.load(tokens.BUILTIN, fast=fast))
    for fast in (True, False):
        for interval_s in (0.005, 0.0005):
            loop_held(loading.load(tokens.BUILTIN, fast=fast), interval_s)


def imports() -> None:
    """CPU of a process that only imports the package, and of one that loads the shipped tokenizer and renders a chat."""
    start = "import time; from contract import tokens; "
    chat = "tokens.load(tokens.BUILTIN).chat({'messages': [{'role': 'user', 'content': 'x'}]}); "
    for what, code in (("import contract.tokens", start), ("  and load, prove, first chat", start + chat)):
        out = subprocess.run(
            [sys.executable, "-c", code + "print(time.process_time())"], capture_output=True, text=True, check=True
        )
        print(f"{what:34}{float(out.stdout) * 1e3:8.0f} ms of CPU, the interpreter's own start included")


def next_turn(tokenizer: PromptTokenizer) -> None:
    """A turn of 200 tokens on a history of 8,000 in 20 messages: template, tokens and block hashes, each turn once.

    Against `tokenizers` on the same rendered text (its encode().ids). Every measured turn is new; medians.
    """
    rng = random.Random(1)
    whole = Tokenizer.from_file(str(BUILTIN_FOLDER / "tokenizer.json"))
    chains = ChainCache()
    ours, reference = [], []
    for _ in range(REPEATS):
        chat = conversation(rng, HISTORY_TOKENS, messages=20)
        tokens_and_hashes(tokenizer, chains, chat)
        chat = [
            *chat,
            {"role": "assistant", "content": words(rng, TURN_TOKENS // 2)},
            {"role": "user", "content": words(rng, 100)},
        ]
        ours.append(timed(lambda chat=chat: tokens_and_hashes(tokenizer, chains, chat)))  # type: ignore[misc]
        text = tokenizer.render({"messages": chat})
        reference.append(timed(lambda text=text: whole.encode(text, add_special_tokens=False).ids))  # type: ignore[misc]
    mine, theirs = median(ours), median(reference)
    name = "fastokens" if tokenizer.fast else "tokenizers + segment cache"
    print(f"next turn, {name}: {mine * 1e6:.0f} us; `tokenizers` on the whole: {theirs * 1e6:.0f} us: {mine / theirs:.2%}")


def loop_held(tokenizer: PromptTokenizer, interval_s: float) -> None:
    """The longest gap between the ticks of an event loop while a thread tokenizes and hashes 128,000 new tokens, 10 times.

    Held by the thread: what the thread computed within one gap, at most. Where other processes want the processors, a gap
    is longer, and no fault of it.
    """
    before = sys.getswitchinterval()
    sys.setswitchinterval(interval_s)
    try:
        gaps, held = asyncio.run(_ticks(tokenizer))
    finally:
        sys.setswitchinterval(before)
    name = "fastokens" if tokenizer.fast else "tokenizers"
    print(
        f"128k tokens in a thread, {name}, switch interval {interval_s * 1e3:.1f} ms: loop held by it "
        f"{median(held) * 1e3:.2f} ms (<= 2 ms; median of 10 maxima), worst {max(held) * 1e3:.2f}; "
        f"by wall, others included, {median(gaps) * 1e3:.2f} and {max(gaps) * 1e3:.2f}"
    )


async def _ticks(tokenizer: PromptTokenizer) -> tuple[list[float], list[float]]:
    """(gaps, what the thread computed in them), the longest of each prompt."""
    rng = random.Random(2)
    loop = asyncio.get_running_loop()
    chains = ChainCache()
    clocks: list[int] = []

    def work(chat: list[dict[str, str]]) -> None:
        clocks.append(time.pthread_getcpuclockid(threading.get_ident()))
        tokens_and_hashes(tokenizer, chains, chat)

    gaps, held = [], []
    for _ in range(10):
        chat = conversation(rng, LONG_TOKENS, messages=200)
        clocks.clear()
        gap, computed = await _longest_gap(loop.run_in_executor(None, work, chat), clocks)
        gaps.append(gap)
        held.append(computed)
    return gaps, held


async def _longest_gap(work: asyncio.Future[Any], clocks: list[int]) -> tuple[float, float]:
    longest = most = 0.0
    last, computed = time.perf_counter(), 0.0
    while not work.done():
        await asyncio.sleep(TICK_S)
        now, before = time.perf_counter(), computed
        if clocks:
            computed = time.clock_gettime(clocks[0])
            most = max(most, min(now - last, computed - before)) if before else most
        longest, last = max(longest, now - last), now
    return longest - TICK_S, most - TICK_S


def tokens_and_hashes(tokenizer: PromptTokenizer, chains: ChainCache, chat: list[dict[str, str]]) -> int:
    """What the data plane does with a chat; the number of blocks."""
    hashes = chains.chain(tokenizer.chat({"messages": chat}), BLOCK_TOKENS, ROOT)
    return len(hashes.tobytes()) // 8


def conversation(rng: random.Random, length_tokens: int, messages: int) -> list[dict[str, str]]:
    """A chat of about so many tokens."""
    roles = ("user", "assistant")
    return [{"role": roles[turn % 2], "content": words(rng, length_tokens // messages)} for turn in range(messages)]


def words(rng: random.Random, length_tokens: int) -> str:
    """Text of about so many tokens of the shipped vocabulary."""
    return "".join(rng.choices(VOCABULARY, k=length_tokens))


def timed(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


VOCABULARY = [
    word
    for word in Tokenizer.from_file(str(BUILTIN_FOLDER / "tokenizer.json")).decode_batch([[id_] for id_ in range(300, 8192)])
    if word.strip().isalpha() and word.startswith(" ")
]
