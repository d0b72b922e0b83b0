"""Rows and times to request bodies. Pure.

Lengths shrink with the blocks: at scale 0.25 a 512-token block is 128 tokens of text and a 6,758-token prompt 1,690, so the
sharing stays what it was while smaller caches and slower engines can carry it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import msgspec

from loadgen.rows import Blocks, Messages, Row
from loadgen.synthetic import BlockText

ENDPOINTS = ("chat", "completions")
PATHS = {"chat": "/v1/chat/completions", "completions": "/v1/completions"}


@dataclass(frozen=True, slots=True)
class Shape:
    """What all requests of a run have in common."""

    model: str
    endpoint: str = "chat"
    scale: float = 1.0
    """of block and prompt lengths; recorded messages stay as they are"""
    output_scale: float = 1.0
    output_tokens_max: int = 1 << 30
    ignore_eos: bool = True
    """the engine writes exactly `max_tokens`: equal work in every run"""
    salt: str = ""
    """another one gives other prompts throughout, with the same sharing: a run that finds no cache of the run before"""
    request_id_prefix: str = "replay"


@dataclass(frozen=True, slots=True)
class TimedRequest:
    """body: the JSON to post; input_tokens: as the trace says, scaled, 0 where it does not say."""

    index: int
    at_s: float
    path: str
    body: bytes
    input_tokens: int
    output_tokens: int
    request_id: str
    session: str = ""


def scaled_block_tokens(blocks: Blocks, scale: float) -> int:
    """Tokens of text for a full block; at least 1."""
    return max(1, round(blocks.block_tokens * scale))


def scaled_tokens(blocks: Blocks, scale: float) -> int:
    """Prompt length: every full block whole, the last one in proportion."""
    step = scaled_block_tokens(blocks, scale)
    full = (blocks.tokens - 1) // blocks.block_tokens
    last = round((blocks.tokens - full * blocks.block_tokens) * step / blocks.block_tokens)
    return full * step + max(1, min(step, last))


def output_tokens(row: Row, shape: Shape) -> int:
    return min(shape.output_tokens_max, max(1, round(row.output_tokens * shape.output_scale)))


def input_tokens(row: Row, shape: Shape) -> int:
    """0: recorded messages, whose length is the tokenizer's to say."""
    return scaled_tokens(row.prompt, shape.scale) if isinstance(row.prompt, Blocks) else 0


def requests(rows: Iterable[Row], times: Iterator[float], shape: Shape, text: BlockText) -> Iterator[TimedRequest]:
    """One request a row, due at the next of `times`; ends with whichever ends first. Bodies are built when asked for."""
    encode = msgspec.json.Encoder().encode
    for index, (row, at_s) in enumerate(zip(rows, times, strict=False)):
        answer = output_tokens(row, shape)
        yield TimedRequest(
            index=index,
            at_s=at_s,
            path=PATHS[shape.endpoint],
            body=encode(_body(row, shape, text, answer)),
            input_tokens=input_tokens(row, shape),
            output_tokens=answer,
            request_id=f"{shape.request_id_prefix}-{index}",
            session=row.session,
        )


def _body(row: Row, shape: Shape, text: BlockText, answer: int) -> dict[str, Any]:
    body: dict[str, Any] = {"model": shape.model}
    if shape.endpoint == "chat":
        body["messages"] = _messages(row, shape, text)
    else:
        body["prompt"] = _prompt(row, shape, text)
    body |= {"max_tokens": answer, "temperature": 0, "stream": True, "stream_options": {"include_usage": True}}
    if shape.ignore_eos:
        body["ignore_eos"] = True
    return body


def _text(blocks: Blocks, shape: Shape, text: BlockText) -> str:
    return text.prompt(blocks.ids, scaled_block_tokens(blocks, shape.scale), scaled_tokens(blocks, shape.scale))


def _messages(row: Row, shape: Shape, text: BlockText) -> list[dict[str, Any]]:
    if isinstance(row.prompt, Blocks):
        return [{"role": "user", "content": _text(row.prompt, shape, text)}]
    return _salted(row.prompt, shape.salt)


def _prompt(row: Row, shape: Shape, text: BlockText) -> str:
    """Recorded messages as one text: completions endpoints know no roles."""
    if isinstance(row.prompt, Blocks):
        return _text(row.prompt, shape, text)
    return (
        "\n\n".join(f"{message['role']}: {_plain(message)}" for message in _salted(row.prompt, shape.salt)) + "\n\nassistant:"
    )


def _plain(message: dict[str, Any]) -> str:
    content = message.get("content")
    if isinstance(content, str):
        return content
    return msgspec.json.encode(content if content is not None else message.get("tool_calls")).decode()


def _salted(prompt: Messages, salt: str) -> list[dict[str, Any]]:
    """The salt stands at the very beginning, so that nothing is shared with a run of another salt."""
    if not salt or not prompt.items:
        return prompt.items
    first = prompt.items[0]
    return [{**first, "content": f"[{salt}] {_plain(first)}"}, *prompt.items[1:]]
