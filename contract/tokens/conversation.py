"""A /v1/chat/completions body to what the chat template is given, as vLLM prepares it.

vLLM validates messages and tools with pydantic before it renders them, which fixes the order of their fields and fills in
nulls; a template that writes `tool | tojson` shows both. So the shapes here are those that come out of that validation.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from contract.tokens.errors import NotTokenizable, PromptError, kind_of

TEXT_PARTS = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal", "thinking": "thinking"}
"""Content parts that are text, and the field that holds it."""

BILLING_HEADER = "x-anthropic-billing-header"
"""A system text of one coding client that differs with every request; vLLM drops it, for the prefix cache's sake."""


BILLING_BEGINS, BILLING_ENDS = "x-", "x."
"""Texts between the two begin as that line does."""


def messages_of(messages: object, content_format: str) -> list[dict[str, Any]]:
    """The template's messages. content_format: 'string' or 'openai'. PromptError, NotTokenizable."""
    if type(messages) is not list:
        raise PromptError("'messages' must be a list of messages", "messages")
    plain = plain_until(messages) if content_format == "string" else 0
    if plain and plain == len(messages):
        return messages
    return [
        message if index < plain else _message(message, f"messages[{index}]", content_format)
        for index, message in enumerate(messages)
    ]


def plain_until(messages: list[Any]) -> int:
    """How many from the first on are already what a template that wants texts gets: a role without rules, and a text."""
    plain = 0
    for message in messages:
        if type(message) is not dict or len(message) != 2:
            break
        role, content = message.get("role"), message.get("content")
        if type(content) is not str:
            break
        if role == "system":
            if BILLING_BEGINS <= content < BILLING_ENDS:
                break
        elif role != "user" and role != "assistant":
            break
        plain += 1
    return plain


def are_plain(messages: list[dict[str, str]]) -> bool:
    """The same of all messages of a list, where each is known to have no more than a role and a content, both texts."""
    for message in messages:
        if len(message) != 2:
            return False
        role = message["role"]
        if role == "system":
            if BILLING_BEGINS <= message["content"] < BILLING_ENDS:
                return False
        elif role != "user" and role != "assistant":
            return False
    return True


def _message(message: object, param: str, content_format: str) -> dict[str, Any]:
    """One message, with the fields that vLLM keeps, and without null ones, which transformers drops before it renders."""
    if not isinstance(message, Mapping):
        raise PromptError(f"'{param}' must be an object", param)
    role = message.get("role")
    if not isinstance(role, str):
        raise PromptError(f"'{param}.role' must be a string", f"{param}.role")
    content = _without_billing(message.get("content")) if role == "system" else message.get("content")
    result: dict[str, Any] = {"role": role, "content": _content(content, f"{param}.content", content_format)}
    if role == "assistant":
        _add_calls(result, message.get("tool_calls"), f"{param}.tool_calls")
        _add_reasoning(result, message)
    elif role == "tool":
        _add_result(result, message)
    elif role == "developer" and message.get("tools") is not None:
        result["tools"] = message["tools"]
    for field in ("name", "task"):
        if isinstance(message.get(field), str):
            result[field] = message[field]
    return result


def _without_billing(content: object) -> object:
    """A system message's content without the billing line, if it has one at its start."""
    if isinstance(content, str) and content.startswith(BILLING_HEADER):
        return content.partition("\n")[2]
    if not isinstance(content, list):
        return content
    parts = [_without_billing(part) if isinstance(part, str) else _part_without_billing(part) for part in content]
    return [part for part, before in zip(parts, content, strict=True) if part is before or part]


def _part_without_billing(part: object) -> object:
    if not isinstance(part, Mapping) or part.get("type") != "text" or not isinstance(part.get("text"), str):
        return part
    text = _without_billing(part["text"])
    return part if text is part["text"] else text and {**part, "text": text}


def _content(content: object, param: str, content_format: str) -> str | list[dict[str, Any]]:
    if isinstance(content, str):
        return content if content_format == "string" else [{"type": "text", "text": content}]
    if content is None:
        content = []
    if not isinstance(content, list):
        raise PromptError(f"'{param}' must be a string or a list of content parts", param)
    texts = [text for index, part in enumerate(content) if (text := _text(part, f"{param}[{index}]")) is not None]
    if content_format == "string":
        return "\n".join(text for text in texts if text)
    return [{"type": "text", "text": text} for text in texts]


def _text(part: object, param: str) -> str | None:
    """The text of a content part, None for an empty one. NotTokenizable: an image, a sound, anything that is not text."""
    if isinstance(part, str):
        return part
    if not isinstance(part, Mapping):
        raise PromptError(f"'{param}' must be an object with a type", param)
    kind = part.get("type")
    field = TEXT_PARTS.get(kind) if isinstance(kind, str) else None
    if field is None:
        raise NotTokenizable(f"content part {kind_of(kind)}")
    text = part.get(field)
    if text is not None and not isinstance(text, str):
        raise PromptError(f"'{param}.{field}' must be a string", f"{param}.{field}")
    return text


def _add_reasoning(result: dict[str, Any], message: Mapping[str, Any]) -> None:
    """Reasoning, under all the names that templates know it by."""
    reasoning = message.get("reasoning")
    if reasoning is None:
        reasoning = message.get("reasoning_content")
    if reasoning is not None:
        result.update(reasoning=reasoning, reasoning_content=reasoning, thinking=reasoning)


def _add_result(result: dict[str, Any], message: Mapping[str, Any]) -> None:
    """A tool's result is one string, whatever the template wants elsewhere."""
    if message.get("tool_call_id") is not None:
        result["tool_call_id"] = message["tool_call_id"]
    if isinstance(result["content"], list):
        result["content"] = "\n".join(part["text"] for part in result["content"])


def _add_calls(result: dict[str, Any], calls: object, param: str) -> None:
    """Tool calls with their arguments parsed: templates want a mapping. An empty list is as good as none."""
    if not calls:
        return
    if not isinstance(calls, list):
        raise PromptError(f"'{param}' must be a list", param)
    result["tool_calls"] = [_call(call, f"{param}[{index}]") for index, call in enumerate(calls)]


def _call(call: object, param: str) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(call, Mapping) or not isinstance(function, Mapping) or call.get("type", "function") != "function":
        raise PromptError(f"'{param}' must be a function call", param)
    shaped = {**_first(function, ("arguments", "name")), "arguments": _arguments(function.get("arguments"))}
    return {**_first(call, ("id", "function", "type")), "function": shaped}


def _first(mapping: Mapping[str, Any], fields: tuple[str, ...]) -> dict[str, Any]:
    """A copy with these fields first, in this order, as validation leaves it."""
    return {**{field: mapping[field] for field in fields if field in mapping}, **mapping}


def _arguments(arguments: object) -> object:
    if isinstance(arguments, str) and arguments:
        try:
            arguments = json.loads(arguments)
        except ValueError:
            return {}
    return arguments if isinstance(arguments, dict) else {}


def tools_of(tools: object) -> list[dict[str, Any]] | None:
    """The template's tools, None for none: every function with the fields of vLLM's schema, in its order."""
    if tools is None:
        return None
    if not isinstance(tools, list):
        raise PromptError("'tools' must be a list", "tools")
    return [_tool(tool, f"tools[{index}]") for index, tool in enumerate(tools)]


def _tool(tool: object, param: str) -> dict[str, Any]:
    function = tool.get("function") if isinstance(tool, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise PromptError(f"'{param}' must be a function with a name", param)
    shaped = {field: function.get(field) for field in ("name", "description", "parameters")}
    shaped.update({field: function[field] for field in ("strict", "defer_loading") if function.get(field) is not None})
    return {"type": "function", "function": shaped}
