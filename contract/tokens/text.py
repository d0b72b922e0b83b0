"""The fallback where no tokenizer can be had: a prompt as stable text, for `contract.blocks.text_chain`.

Two requests with a common prompt prefix have a common prefix here, and requests that differ in anything that shapes the prompt
differ here: what stays the same over a conversation comes first, each message is a line of its own, and what only touches the
end of a prompt comes last.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

FIRST = (
    "chat_template",
    "chat_template_kwargs",
    "reasoning_effort",
    "reasoning",
    "output_config",
    "add_special_tokens",
    "truncate_prompt_tokens",
    "documents",
    "tools",
    "previous_response_id",
    "instructions",
    "system",
)
"""Fields that stay the same over a conversation."""

GROWING = ("messages", "input", "prompt")
"""Fields that grow at their end, turn by turn."""

LAST = ("add_generation_prompt", "continue_final_message")
"""Fields that shape only the end of the prompt."""

SHAPES = {
    "/v1/chat/completions": "chat",
    "/v1/chat/completions/render": "chat",
    "/v1/completions": "completion",
    "/v1/completions/render": "completion",
}
"""Paths whose prompts are the same for the same body."""


def text_of(path: str, body: Mapping[str, Any]) -> bytes:
    """Every field of the body that shapes its prompt, as UTF-8 text. path: where the body was sent, without host and query."""
    lines = [SHAPES.get(path, path)]
    for field in (*FIRST, *GROWING, *LAST):
        value = body.get(field)
        if value is not None:
            lines.append(field)
            lines += _lines(value) if field in GROWING else (_line(value),)
    return "\n".join(lines).encode("utf-8", "surrogatepass")


def _lines(value: object) -> Iterator[str]:
    """A list's items a line each, but token ids in one; a text as it is."""
    if isinstance(value, list) and not (value and isinstance(value[0], int)):
        yield from map(_line, value)
    else:
        yield _line(value)


def _line(value: object) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, list) and value and isinstance(value[0], int):
        return " ".join(map(str, value))
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=repr)
