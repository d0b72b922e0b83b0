"""The fallback where no tokenizer can be had: a prompt as stable text, for `contract.blocks.text_chain`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

FIRST = ("chat_template", "chat_template_kwargs", "reasoning_effort", "documents", "tools", "instructions", "system")
"""Fields that stay the same over a conversation, before those that grow."""
LAST = ("messages", "input", "prompt")


def text_of(path: str, body: Mapping[str, Any]) -> bytes:
    """Every field of the body that affects the prompt, as UTF-8 text in an order that keeps common prefixes common."""
    lines = [path]
    for field in (*FIRST, *LAST):
        value = body.get(field)
        if value is None:
            continue
        items = value if field == "messages" and isinstance(value, list) else [value]
        lines += [
            item if isinstance(item, str) else json.dumps(item, ensure_ascii=False, separators=(",", ":")) for item in items
        ]
    return "\n".join(lines).encode("utf-8", "surrogatepass")
