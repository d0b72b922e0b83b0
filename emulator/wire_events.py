"""The bytes of `/v1/responses` and `/v1/messages`: streams with `event:` lines and without [DONE]. Text only. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from emulator.wire import Choice, Head, Totals, dumps


def named_event(name: str, data: bytes) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (name.encode(), data)


class MessagesStyle:
    """/v1/messages (Anthropic's)."""

    def __init__(self, head: Head) -> None:
        self._head = head

    def opening(self, choices: Sequence[Choice], totals: Totals) -> list[bytes]:
        """The message and its only block."""
        message: dict[str, Any] = {
            "id": self._head.id,
            "type": "message",
            "role": "assistant",
            "content": [],
            "model": self._head.model,
            "stop_reason": None,
            "stop_sequence": None,
            "usage": {"input_tokens": totals.prompt_tokens, "output_tokens": 0},
        }
        block = {"type": "content_block_start", "content_block": {"type": "text", "text": ""}, "index": 0}
        return [_event({"type": "message_start", "message": message}), _event(block)]

    def delta(self, choice: Choice, text: bytes, totals: Totals) -> bytes:
        """One token."""
        data = b'{"type":"content_block_delta","delta":{"type":"text_delta","text":%b},"index":0}' % text
        return named_event("content_block_delta", data)

    def last(self, choice: Choice, text: bytes, totals: Totals, *, is_final: bool) -> bytes:
        """The last token (none where the text ended before)."""
        return b"" if text == b'""' else self.delta(choice, text, totals)

    def closing(self, choices: Sequence[Choice], totals: Totals) -> list[bytes]:
        """End of block, reason and usage, end of message."""
        delta = {"stop_reason": _anthropic_reason(choices[0]), "stop_sequence": _stop_sequence(choices[0])}
        return [
            _event({"type": "content_block_stop", "index": 0}),
            _event({"type": "message_delta", "delta": delta, "usage": _anthropic_usage(totals)}),
            _event({"type": "message_stop"}),
        ]

    def body(self, choices: Sequence[Choice], totals: Totals) -> bytes:
        """The whole message."""
        return dumps(
            {
                "id": self._head.id,
                "type": "message",
                "role": "assistant",
                "content": [{"type": "text", "text": choices[0].text}],
                "model": self._head.model,
                "stop_reason": _anthropic_reason(choices[0]),
                "usage": _anthropic_usage(totals),
            }
        )


def _event(data: Mapping[str, Any]) -> bytes:
    return named_event(str(data["type"]), dumps(data))


def _anthropic_reason(choice: Choice) -> str | None:
    if choice.finish == "stop":
        return "stop_sequence" if choice.stop_reason is not None else "end_turn"
    return "max_tokens" if choice.finish == "length" else choice.finish


def _stop_sequence(choice: Choice) -> str | None:
    return choice.stop_reason if isinstance(choice.stop_reason, str) else None


def _anthropic_usage(totals: Totals) -> dict[str, int]:
    return {
        "input_tokens": totals.prompt_tokens - totals.cached_tokens,
        "output_tokens": totals.completion_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": totals.cached_tokens,
    }


class ResponsesStyle:
    """/v1/responses."""

    def __init__(self, head: Head, body: Mapping[str, Any], item_id: str) -> None:
        self._head = head
        self._asked = body
        self._item_id = item_id
        self._sequence = 0

    def opening(self, choices: Sequence[Choice], totals: Totals) -> list[bytes]:
        """The response, its only item, its only part."""
        item = {**self._item("", "in_progress"), "content": []}
        part: dict[str, Any] = {"annotations": [], "text": "", "type": "output_text", "logprobs": []}
        return [
            self._event("response.created", {"response": self._response("in_progress", None, None)}),
            self._event("response.in_progress", {"response": self._response("in_progress", None, None)}),
            self._event("response.output_item.added", {"item": item, "output_index": 0}),
            self._event("response.content_part.added", {**self._place(), "part": part}),
        ]

    def delta(self, choice: Choice, text: bytes, totals: Totals) -> bytes:
        """One token."""
        data = b'{"content_index":0,"delta":%b,"item_id":%b,"logprobs":[],"output_index":0,"sequence_number":%d,"type":%b}' % (
            text,
            dumps(self._item_id),
            self._sequence,
            b'"response.output_text.delta"',
        )
        self._sequence += 1
        return named_event("response.output_text.delta", data)

    def last(self, choice: Choice, text: bytes, totals: Totals, *, is_final: bool) -> bytes:
        """The last token (none where the text ended before)."""
        return b"" if text == b'""' else self.delta(choice, text, totals)

    def closing(self, choices: Sequence[Choice], totals: Totals) -> list[bytes]:
        """Text, part, item and response are done."""
        text = choices[0].text
        part: dict[str, Any] = {"annotations": [], "text": text, "type": "output_text", "logprobs": None}
        status = "completed" if choices[0].finish == "stop" else "incomplete"
        return [
            self._event("response.output_text.done", {**self._place(), "logprobs": [], "text": text}),
            self._event("response.content_part.done", {**self._place(), "part": part}),
            self._event("response.output_item.done", {"item": self._item(text, "completed"), "output_index": 0}),
            self._event("response.completed", {"response": self._response(status, choices[0], totals)}),
        ]

    def body(self, choices: Sequence[Choice], totals: Totals) -> bytes:
        """The whole response."""
        status = "completed" if choices[0].finish == "stop" else "incomplete"
        return dumps(self._response(status, choices[0], totals))

    def _event(self, name: str, data: dict[str, Any]) -> bytes:
        data |= {"sequence_number": self._sequence, "type": name}
        self._sequence += 1
        return named_event(name, dumps(dict(sorted(data.items()))))

    def _place(self) -> dict[str, Any]:
        return {"content_index": 0, "item_id": self._item_id, "output_index": 0}

    def _item(self, text: str, status: str) -> dict[str, Any]:
        part: dict[str, Any] = {"annotations": [], "text": text, "type": "output_text", "logprobs": None}
        return {
            "id": self._item_id,
            "content": [part],
            "role": "assistant",
            "status": status,
            "type": "message",
            "phase": None,
        }

    def _response(self, status: str, choice: Choice | None, totals: Totals | None) -> dict[str, Any]:
        asked = self._asked
        reason = {"length": "max_output_tokens"}.get(choice.finish or "") if choice else None
        return {
            "id": self._head.id,
            "created_at": self._head.created,
            "incomplete_details": {"reason": reason} if reason else None,
            "instructions": asked.get("instructions"),
            "metadata": asked.get("metadata"),
            "model": self._head.model,
            "object": "response",
            "output": [self._item(choice.text, "completed")] if choice else [],
            "parallel_tool_calls": True,
            "temperature": float(asked.get("temperature") or 0.0),
            "tool_choice": "none",
            "tools": asked.get("tools") or [],
            "top_p": float(asked.get("top_p") or 1.0),
            "background": False,
            "max_output_tokens": asked.get("max_output_tokens"),
            "max_tool_calls": None,
            "previous_response_id": None,
            "prompt": None,
            "reasoning": None,
            "service_tier": "auto",
            "status": status,
            "text": None,
            "top_logprobs": None,
            "truncation": "disabled",
            "usage": _responses_usage(totals) if totals else None,
            "user": asked.get("user"),
            **({"metrics": {**totals.timings, "speculative_decoding": None}} if totals else {}),
            "presence_penalty": float(asked.get("presence_penalty") or 0.0),
            "frequency_penalty": float(asked.get("frequency_penalty") or 0.0),
            "kv_transfer_params": None,
            "ec_transfer_params": None,
            "input_messages": None,
            "output_messages": None,
        }


def _responses_usage(totals: Totals) -> dict[str, Any]:
    cached = {"cached_tokens": totals.cached_tokens, "cache_write_tokens": 0}
    output: dict[str, Any] = {"reasoning_tokens": 0, "tool_output_tokens": 0}
    return {
        "input_tokens": totals.prompt_tokens,
        "input_tokens_details": {**cached, "input_tokens_per_turn": [], "cached_tokens_per_turn": []},
        "output_tokens": totals.completion_tokens,
        "output_tokens_details": {**output, "output_tokens_per_turn": [], "tool_output_tokens_per_turn": []},
        "total_tokens": totals.prompt_tokens + totals.completion_tokens,
    }
