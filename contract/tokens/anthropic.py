"""A /v1/messages body (Anthropic's API) as a chat body, as vLLM converts it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from contract.tokens.conversation import BILLING_HEADER
from contract.tokens.errors import NotTokenizable, PromptError, kind_of

Message = dict[str, Any]


def chat_body(body: Mapping[str, Any]) -> dict[str, Any]:
    """The chat body whose prompt is that of `body`. PromptError, NotTokenizable."""
    given = body.get("messages")
    if not isinstance(given, list):
        raise PromptError("'messages' must be a list of messages", "messages")
    system = _system(body.get("system"))
    messages: list[Message] = [{"role": "system", "content": system}] if system else []
    for index, message in enumerate(given):
        messages += _messages(message, f"messages[{index}]")
    config = body.get("output_config")
    return {
        "messages": messages,
        "tools": _tools(body.get("tools")),
        "reasoning_effort": config.get("effort") if isinstance(config, Mapping) else None,
        "chat_template_kwargs": body.get("chat_template_kwargs"),
    }


def _system(system: object) -> str:
    if system is None or isinstance(system, str):
        return system or ""
    if not isinstance(system, list):
        raise PromptError("'system' must be a string or a list of text blocks", "system")
    texts = [block.get("text") for block in system if isinstance(block, Mapping) and block.get("type") == "text"]
    return "".join(text for text in texts if isinstance(text, str) and not text.startswith(BILLING_HEADER))


def _messages(message: object, param: str) -> list[Message]:
    """One message as the chat API has it; tool results become messages of their own, before it."""
    if not isinstance(message, Mapping):
        raise PromptError(f"'{param}' must be an object", param)
    role, content = message.get("role"), message.get("content")
    if role == "system":
        raise NotTokenizable("system message in between")  # where it goes depends on the engine's version and template
    if isinstance(content, str):
        return [{"role": role, "content": content}]
    if not isinstance(content, list):
        raise PromptError(f"'{param}.content' must be a string or a list of blocks", f"{param}.content")
    results: list[Message] = []
    texts: list[Message] = []
    calls: list[Message] = []
    thoughts: list[str] = []
    for block in content:
        _sort(block, role, results, texts, calls, thoughts)
    own: Message = {"role": role}
    if thoughts:
        own["reasoning"] = "".join(thoughts)
    if calls:
        own["tool_calls"] = calls
    if texts:
        own["content"] = texts[0]["text"] if len(texts) == 1 else texts
    return results if role == "user" and not texts else [*results, own]


def _sort(
    block: object, role: object, results: list[Message], texts: list[Message], calls: list[Message], thoughts: list[str]
) -> None:
    """Puts a content block where it belongs."""
    kind = block.get("type") if isinstance(block, Mapping) else None
    if not isinstance(block, Mapping) or kind in (None, "image", "tool_addition", "tool_removal"):
        raise NotTokenizable(f"content block {kind_of(kind)}")
    if kind == "text" and block.get("text"):
        texts.append({"type": "text", "text": block["text"]})
    elif kind == "thinking" and isinstance(block.get("thinking"), str):
        thoughts.append(block["thinking"])
    elif kind == "tool_use":
        function = {"arguments": json.dumps(block.get("input") or {}), "name": block.get("name") or ""}
        calls.append({"id": block.get("id"), "function": function, "type": "function"})
    elif kind == "tool_result" and role == "user":
        results.append(
            {"role": "tool", "tool_call_id": block.get("tool_use_id") or "", "content": _result(block.get("content"))}
        )
    elif kind == "tool_result":
        texts.append({"type": "text", "text": f"Tool result: {block.get('content') or ''}"})


def _result(content: object) -> str:
    if not isinstance(content, list):
        return content if isinstance(content, str) else ""
    items = [item for item in content if isinstance(item, Mapping)]
    if any(item.get("type") != "text" for item in items):
        raise NotTokenizable("tool result that is not text")
    return "\n".join(str(item.get("text", "")) for item in items)


def _tools(tools: object) -> list[Message] | None:
    if tools is None:
        return None
    if not isinstance(tools, list) or not all(isinstance(tool, Mapping) for tool in tools):
        raise PromptError("'tools' must be a list of tools", "tools")
    return [{"type": "function", "function": {**tool, "parameters": tool.get("input_schema")}} for tool in tools]
