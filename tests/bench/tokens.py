"""Prompt to token ids and block hashes: the cost of a conversation's next turn, and what long prompts do to an event loop."""

from __future__ import annotations

import asyncio
import gc
import json
import random
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

import uvloop
from tokenizers import Tokenizer

from contract import tokens
from contract.tokens import loading
from contract.tokens.chains import ChainCache
from contract.tokens.prompt import PromptTokenizer
from contract.tokens.source import BUILTIN_FOLDER
from dataplane.__main__ import GC_OBJECTS, SWITCH_INTERVAL_S
from dataplane.metrics import Metrics
from dataplane.openai import Ask, read_json
from dataplane.preparing import READ_INLINE_BYTES_MAX
from dataplane.prompt_messages import Answer
from dataplane.prompt_process import APART_BYTES_MIN, PromptProcess
from dataplane.prompts import Prompt, Prompts
from proto import routing_pb2 as pb
from tests.bench._heartbeat import Heartbeat, Waits, cpu_clock, processor_of_its_own
from tests.waiting import until

BLOCK_TOKENS = 16
ROOT = 1
HISTORY_TOKENS = 8_000
TURN_TOKENS = 200
CHINESE_TOKENS_PER_CHAR = 0.64
"""Of a vocabulary made for it. The shipped one makes 2.4 of each, so 128,000 tokens are nearly half a million there."""
LONG_TOKENS = 128_000
REPEATS = 30
REPEATS_HELD = 10
CHAT_PATH = "/v1/chat/completions"


def run() -> None:
    """All of it; about two minutes."""
    imports()
    for fast in (True, False):
        next_turn(loading.load(tokens.BUILTIN, fast=fast))
    waits_for("its thread scheduled as any other")
    try:
        with processor_of_its_own():
            waits_for("its thread on a processor whenever it is awake, as beside an idle one (real-time priority)")
    except PermissionError:
        print("the same with real-time priority: skipped, not permitted here")


def waits_for(how: str) -> None:
    """`loop_held` with either encoder."""
    print(f"\nevent loop's longest wait, 128k tokens, ms (<= 2): median and worst of {REPEATS_HELD}; {how}")
    print(f"{'':54}{'held':>13}{'awake':>16}{'wall':>16}{'takes':>9}{'CPU':>7}")
    for fast in (True, False):
        loop_held(fast=fast)


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


def loop_held(*, fast: bool) -> None:
    """How long the data plane's loop lets a byte wait while a request of 128,000 tokens is made blocks of, 10 times each.

    The data plane's own steps and settings, both ways in turn: in its process for long prompts; and, as without that one,
    `read_json` in a thread, then `Prompts.prepare` in a thread. `_heartbeat` says what is measured. First turn: every word is
    new; next turn: the same conversation, with 200 tokens more.
    """
    before = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    gc.collect()
    gc.freeze()
    gc.set_threshold(GC_OBJECTS, 20, 100)
    try:
        for messages, make in ((200, words), (1, words), (200, chinese), (1, chinese)):
            uvloop.run(_held(fast, messages, make))
    finally:
        sys.setswitchinterval(before)
        gc.unfreeze()
    uvloop.run(_held(fast, 0, words))


async def _held(fast: bool, messages: int, make: Callable[[random.Random, int], str]) -> None:
    """messages: how many the prompt is in; 0: there is none, to show what the method itself finds."""
    rng = random.Random(2)
    clocks: list[int] = []
    executor = ThreadPoolExecutor(1, initializer=lambda: clocks.append(time.pthread_getcpuclockid(threading.get_ident())))
    prompts = Prompts(lambda spec: loading.load(spec, fast=fast), {})
    model = pb.ModelView(name="m", tokenizer=tokens.BUILTIN, block_sizes=[BLOCK_TOKENS])
    prompts.see([model], 0.0)
    await until(lambda: prompts.status([model])["m"] == "ready", "a thread has loaded the tokenizer")
    plan = prompts.plan("m", model)
    loop = asyncio.get_running_loop()
    process = PromptProcess(Metrics(), command=(sys.executable, "-c", WORKER.format(fast=fast)))
    process.see(prompts.seen([model]), "m")
    await until(lambda: process.ready, "the process has loaded it, too")

    async def by_thread(body: bytes) -> Prompt:
        ask = await loop.run_in_executor(executor, read_json, body, CHAT_PATH)
        assert isinstance(ask, Ask)
        return await loop.run_in_executor(executor, prompts.prepare, CHAT_PATH, ask, body, plan)

    async def by_process(body: bytes) -> Prompt | None:
        answered: asyncio.Future[Answer] = loop.create_future()
        process.submit(CHAT_PATH, body, answered.set_result)
        return (await answered).prompt

    ways: dict[str, Callable[[bytes], Awaitable[Prompt | None]]] = {"process": by_process, "thread": by_thread}
    found: dict[tuple[str, str], list[tuple[Waits, float, float]]] = {
        (turn, way): [] for turn in ("first", "next") for way in ways
    }
    assert process.pid is not None
    elsewhere = cpu_clock(process.pid)
    with Heartbeat(clocks) as heartbeat:
        for _ in range(REPEATS_HELD):
            for way, prepare in ways.items():
                chat = conversation(rng, LONG_TOKENS, messages, make) if messages else []
                for turn in ("first", "next"):
                    if turn == "next":
                        chat = [*chat, {"role": "user", "content": make(rng, TURN_TOKENS)}]
                    body = json.dumps({"model": "m", "messages": chat}).encode()
                    await asyncio.sleep(0.05)  # the loop at rest, before what is measured
                    heartbeat.stretch()
                    cpu_s, began = time.process_time() + time.clock_gettime(elsewhere), loop.time()
                    if messages:
                        assert len(body) > READ_INLINE_BYTES_MAX > APART_BYTES_MIN
                        prompt = await prepare(body)
                        assert prompt is not None
                        assert prompt.kind == "tokens"
                    else:
                        await asyncio.sleep(0.05)  # in the place of a prompt: nothing
                    took = loop.time() - began, time.process_time() + time.clock_gettime(elsewhere) - cpu_s
                    found[turn, way].append((heartbeat.stretch(), *took))
    await process.stop()
    executor.shutdown()
    name = "fastokens" if fast else "tokenizers"
    for (turn, way), seen in found.items():
        kind = "Chinese" if make is chinese else "English"
        what = f"{kind}, {messages} message{'s' * (messages > 1)}, {name}, {turn} turn" if messages else f"nothing, {turn}"
        waits = [each[0] for each in seen]
        print(
            f"{what:46}{way:8}{_spread(w.held_s for w in waits)}{_spread(w.awake_s for w in waits)}"
            f"{_spread(w.wall_s for w in waits)}"
            f"{median([each[1] for each in seen]) * 1e3:9.1f}{median([each[2] for each in seen]) * 1e3:7.1f}"
        )


def _spread(seconds: Iterable[float]) -> str:
    values = sorted(seconds)
    return f"{values[len(values) // 2] * 1e3:9.2f} {values[-1] * 1e3:6.2f}"


def tokens_and_hashes(tokenizer: PromptTokenizer, chains: ChainCache, chat: list[dict[str, str]]) -> int:
    """What the data plane does with a chat; the number of blocks."""
    hashes = chains.chain(tokenizer.chat({"messages": chat}), BLOCK_TOKENS, ROOT)
    return len(hashes.tobytes()) // 8


def conversation(
    rng: random.Random, length_tokens: int, messages: int, make: Callable[[random.Random, int], str] | None = None
) -> list[dict[str, str]]:
    """A chat of about so many tokens. make: its texts, `words` unless given."""
    roles = ("user", "assistant")
    return [{"role": roles[turn % 2], "content": (make or words)(rng, length_tokens // messages)} for turn in range(messages)]


def words(rng: random.Random, length_tokens: int) -> str:
    """Text of about so many tokens of the shipped vocabulary."""
    return "".join(rng.choices(VOCABULARY, k=length_tokens))


def chinese(rng: random.Random, length_tokens: int) -> str:
    """The same without a space in it, and in JSON six bytes a character."""
    chars = [chr(rng.randrange(0x4E00, 0x9000)) for _ in range(int(length_tokens / CHINESE_TOKENS_PER_CHAR))]
    chars[::12] = "\uff0c" * len(chars[::12])
    return "".join(chars)


def timed(call: Callable[[], object]) -> float:
    """CPU seconds, of all threads."""
    began = time.process_time()
    call()
    return time.process_time() - began


def median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


WORKER = """
from contract.tokens.loading import load
from dataplane.prompt_worker import main
main(lambda spec: load(spec, fast={fast}))
"""

VOCABULARY = [
    word
    for word in Tokenizer.from_file(str(BUILTIN_FOLDER / "tokenizer.json")).decode_batch([[id_] for id_ in range(300, 8192)])
    if word.strip().isalpha() and word.startswith(" ")
]
