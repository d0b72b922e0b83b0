"""Multi-turn chats with and without tools through a proxy, each next turn sent the moment its answer is there."""

from __future__ import annotations

import asyncio
import random
import re
import time
from dataclasses import dataclass
from functools import cache
from typing import Any

import aiohttp
from tokenizers import Tokenizer

from tests.vllm.engines import TOKENIZER

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": f"Looks up the {name.replace('_', ' ')} of a place.",
            "parameters": {"type": "object", "properties": {"place": {"type": "string"}}, "required": ["place"]},
        },
    }
    for name in ("weather", "population", "train_times")
]


@dataclass(frozen=True, slots=True)
class Result:
    """One request: what was predicted and what the engine found, in tokens. Times: Unix seconds."""

    body: dict[str, Any]
    sent_at: float
    predicted: int
    cached: int
    prompt_tokens: int
    worker: str
    decision_id: int
    """0: the data plane placed it by itself, since the control plane did not answer in time; nothing was predicted."""


@cache
def whole_words() -> list[int]:
    """Tokens that read back as themselves whatever stands before and after them: a space and letters. And the end."""
    tokenizer = Tokenizer.from_file(str(TOKENIZER / "tokenizer.json"))
    words = []
    for number in range(tokenizer.get_vocab_size()):
        text = tokenizer.decode([number])
        if re.fullmatch(" [a-z]{2,}", text) and tokenizer.encode(text, add_special_tokens=False).ids == [number]:
            words.append(number)
    return [*words, tokenizer.token_to_id("<|im_end|>")]


class Chat:
    """One conversation that grows by what the engine answered. free: it may write whatever its weights say."""

    def __init__(self, number: int, rng: random.Random, *, free: bool) -> None:
        self._rng = rng
        self._free = free
        self._tools = TOOLS if number % 3 == 0 else None
        subject = rng.choice(["rivers", "bridges", "ferries", "night trains"])
        self.messages: list[dict[str, Any]] = [
            {"role": "system", "content": f"You answer questions about {subject}. " + "Be brief and exact. " * rng.randrange(8)}
        ]
        self.turns = rng.randrange(3, 9)

    def body(self, model: str) -> dict[str, Any]:
        words = " ".join(self._rng.choice(["old", "new", "long", "short", "north", "south", "blue"]) for _ in range(20))
        self.messages.append({"role": "user", "content": f"And which one is {words}?"})
        body: dict[str, Any] = {"model": model, "messages": [*self.messages], "max_tokens": self._rng.randrange(4, 24)}
        if self._tools:
            body["tools"] = self._tools
        if not self._free:
            body["allowed_token_ids"] = whole_words()
        return body

    def answered(self, message: dict[str, Any]) -> None:
        self.messages.append({"role": "assistant", "content": message.get("content") or "..."})


async def converse(url: str, requests: int, seed: int, at_once: int, *, free: bool = True) -> list[Result]:
    """At least so many requests, in `at_once` conversations at a time."""
    rng = random.Random(seed)
    results: list[Result] = []
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=120)) as session:
        async with session.get(url + "/v1/models") as reply:
            model = next(card["id"] for card in (await reply.json())["data"] if card["id"] != "sql")

        async def caller(number: int) -> None:
            conversation = 0
            while len(results) < requests:
                conversation += 1
                chat = Chat(number * 1000 + conversation, rng, free=free)
                for _ in range(chat.turns):
                    body, sent_at = chat.body(model), time.time()
                    async with session.post(url + "/v1/chat/completions", json=body) as reply:
                        answer = await reply.json()
                        assert reply.status == 200, answer
                    results.append(_result(body, sent_at, answer["usage"], reply.headers))
                    chat.answered(answer["choices"][0]["message"])

        await asyncio.gather(*(caller(number) for number in range(at_once)))
    return results


def _result(body: dict[str, Any], sent_at: float, usage: dict[str, Any], headers: Any) -> Result:
    return Result(
        body,
        sent_at,
        predicted=int(headers["x-headway-matched-tokens"]),
        cached=(usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0,
        prompt_tokens=usage["prompt_tokens"],
        worker=headers["x-headway-worker"],
        decision_id=int(headers.get("x-headway-decision", "0"), 16),
    )
