"""Traces that carry text: conversations and edited prompts. Lines in, rows out. Pure."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterator
from typing import Any

import msgspec

from loadgen.rows import Messages, Row
from loadgen.tables import BadLine, Lines, Pauses, decode

CHARS_PER_TOKEN = 4
"""How long a recorded answer is taken to be, in tokens."""
ANSWER_TOKENS_DEFAULT = 128
"""Where the recording has no answer."""


class _ConversationLine(msgspec.Struct):
    messages: list[dict[str, Any]]
    id: str | int = ""


def conversations(lines: Lines, *, at_once: int) -> Iterator[Row]:
    """Up to `at_once` conversations beside each other, one turn of each in turn; a finished one makes room for the next."""
    waiting = _conversations(lines)
    window: deque[Iterator[Row]] = deque()
    while True:
        while len(window) < at_once and (turns := next(waiting, None)) is not None:
            window.append(turns)
        if not window:
            return
        turns = window.popleft()
        if (row := next(turns, None)) is not None:
            window.append(turns)
            yield row


def _conversations(lines: Lines) -> Iterator[Iterator[Row]]:
    decoder = msgspec.json.Decoder(_ConversationLine)
    for number, line in lines:
        entry = decode(decoder, number, line)
        for message in entry.messages:
            if not isinstance(message.get("role"), str):
                raise BadLine(number, "a message without a role")
        yield turns_of(entry.messages, str(entry.id or number))


def turns_of(messages: list[dict[str, Any]], session: str) -> Iterator[Row]:
    """A request for each assistant message, of everything before it.

    Where nothing was answered: one for each user message, of everything up to it.
    """
    answers = [place for place, message in enumerate(messages) if message["role"] == "assistant" and place]
    for place in answers:
        yield Row(0.0, Messages(messages[:place]), answer_tokens(messages[place]), session)
    if not answers:
        for place, message in enumerate(messages, start=1):
            if message["role"] == "user":
                yield Row(0.0, Messages(messages[:place]), ANSWER_TOKENS_DEFAULT, session)


def answer_tokens(message: dict[str, Any]) -> int:
    """About how many tokens a recorded answer has, tool calls included; at least 1."""
    text = message.get("content") or ""
    size = len(text) if isinstance(text, str) else len(json.dumps(text))
    if calls := message.get("tool_calls"):
        size += len(json.dumps(calls))
    return max(1, size // CHARS_PER_TOKEN)


class _EditLine(msgspec.Struct):
    conversation_id: str
    t_ms: float
    keep: int
    add: str
    output: str | int = ""


def edits(lines: Lines, *, gap_s: float, idle_s_max: float) -> Iterator[Row]:
    """Prompts that grow by edits; conversations start `gap_s` apart, with clocks of their own."""
    decoder = msgspec.json.Decoder(_EditLine)
    prompts: dict[str, str] = {}
    clocks: dict[str, Pauses] = {}
    rows: list[Row] = []
    for number, line in lines:
        entry = decode(decoder, number, line)
        name = entry.conversation_id
        clock = clocks.setdefault(name, Pauses(len(clocks) * gap_s, idle_s_max))
        before = prompts.get(name, "")
        if entry.keep > len(before):
            raise BadLine(number, f"keeps {entry.keep} characters of a prompt that had {len(before)}")
        prompts[name] = prompt = before[: entry.keep] + entry.add
        answer = len(entry.output) // CHARS_PER_TOKEN if isinstance(entry.output, str) else entry.output
        messages = Messages([{"role": "user", "content": prompt}])
        rows.append(Row(clock.at(entry.t_ms / 1000), messages, max(1, answer), name))
    rows.sort(key=lambda row: row.at_s)
    yield from rows
