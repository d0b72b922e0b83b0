"""A /v1/responses body as a chat body, as vLLM converts it (without its harmony models)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from contract.tokens.errors import NotTokenizable, PromptError, kind_of

Message = dict[str, Any]

STORED = ("previous_response_id", "previous_response", "previous_input_messages", "prompt")
"""Fields by which a request continues what only the engine holds."""


def chat_body(body: Mapping[str, Any]) -> dict[str, Any]:
    """The chat body whose prompt is that of `body`. PromptError, NotTokenizable."""
    for field in STORED:
        if body.get(field):
            raise NotTokenizable(field)
    given = body.get("input")
    if not isinstance(given, (str, list)):
        raise PromptError("'input' must be a string or a list of items", "input")
    messages: list[Message] = []
    if body.get("instructions"):
        messages.append({"role": "system", "content": body["instructions"]})
    messages += [{"role": "user", "content": given}] if isinstance(given, str) else _messages(given)
    resume = _resumes(given)
    reasoning = body.get("reasoning")
    return {
        "messages": messages,
        "tools": _tools(body.get("tools")),
        "add_generation_prompt": not resume,
        "continue_final_message": resume,
        "reasoning_effort": reasoning.get("effort") if isinstance(reasoning, Mapping) else None,
        "chat_template_kwargs": body.get("chat_template_kwargs"),
    }


def _resumes(given: str | list[Any]) -> bool:
    """Is the last item an assistant's message that was cut short?"""
    last = given[-1] if given else None
    if not isinstance(last, Mapping) or last.get("type", "message") not in ("message", "reasoning"):
        return False
    return last.get("status") in ("in_progress", "incomplete")


def _messages(items: list[Any]) -> list[Message]:
    """Items to messages: an assistant's reasoning, text and calls, each an item of its own, are one message."""
    messages: list[Message] = []
    for index, item in enumerate(items):
        if not isinstance(item, Mapping):
            raise PromptError(f"'input[{index}]' must be an object", f"input[{index}]")
        if (message := _message(item)).get("role") != "assistant" or not _merged(messages, message):
            messages.append(message)
    return messages


def _message(item: Mapping[str, Any]) -> Message:
    kind = item.get("type", "message")
    if kind == "function_call_output":
        return {"role": "tool", "content": item.get("output"), "tool_call_id": item.get("call_id")}
    if kind == "function_call":
        name = item.get("name")
        function = {
            "arguments": item.get("arguments"),
            "name": f"{item['namespace']}__{name}" if item.get("namespace") else name,
        }
        return {"role": "assistant", "tool_calls": [{"id": item.get("call_id"), "function": function, "type": "function"}]}
    if kind == "reasoning":
        if item.get("encrypted_content"):
            raise NotTokenizable("encrypted reasoning")
        return {"role": "assistant", "reasoning": _first_text(item.get("content") or item.get("summary"))}
    if kind != "message":
        raise NotTokenizable(f"input item {kind_of(kind)}")
    if item.get("role") == "assistant":
        return {"role": "assistant", "content": _first_text(item.get("content"))}
    return dict(item)


def _first_text(content: object) -> str:
    """An assistant's message counts by its first part only."""
    if isinstance(content, list) and content:
        first = content[0]
        content = first.get("text") if isinstance(first, Mapping) else first
    return content if isinstance(content, str) else ""


def _merged(messages: list[Message], message: Message) -> bool:
    """Adds an assistant's item to the assistant message before it, where that has no such field yet; says if it did."""
    last = messages[-1] if messages else {}
    if last.get("role") != "assistant":
        return False
    if "tool_calls" in message:
        last["tool_calls"] = [*(last.get("tool_calls") or ()), *message["tool_calls"]]
        return True
    field = "reasoning" if "reasoning" in message else "content"
    if last.get(field) is not None:
        return False
    last[field] = message[field]
    return True


def _tools(tools: object) -> list[Message] | None:
    """Flat function tools, and those of namespaces, in the form of the chat API; other kinds are the engine's own."""
    if not tools:
        return None
    if not isinstance(tools, list):
        raise PromptError("'tools' must be a list", "tools")
    functions: list[Message] = []
    for tool in tools:
        if not isinstance(tool, Mapping):
            raise PromptError("'tools' must be a list of objects", "tools")
        if tool.get("type") == "function":
            functions.append(dict(tool))
        elif tool.get("type") == "namespace":
            functions += _namespaced(tool)
    return [{"type": "function", "function": function} for function in functions]


def _namespaced(tool: Mapping[str, Any]) -> list[Message]:
    tools = tool.get("tools")
    inner = [one for one in tools if isinstance(one, Mapping)] if isinstance(tools, list) else []
    return [{**one, "name": f"{tool.get('name')}__{one.get('name')}"} for one in inner if one.get("type") == "function"]
