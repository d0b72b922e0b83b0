"""/v1/responses and /v1/messages bodies become the chats that vLLM makes of them."""

from __future__ import annotations

from typing import Any

import pytest

from contract.tokens import NotTokenizable, PromptError, anthropic, responses

FUNCTION = {"name": "f", "description": "d", "parameters": {"type": "object"}}


def test_responses_items_of_one_assistant_turn_are_one_message() -> None:
    items = [
        {"role": "user", "content": [{"type": "input_text", "text": "hi"}]},
        {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "hm"}], "summary": []},
        {
            "type": "message",
            "role": "assistant",
            "content": [{"type": "output_text", "text": "let me see"}],
            "status": "completed",
        },
        {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"},
        {"type": "function_call", "call_id": "c2", "name": "g", "arguments": "{}", "namespace": "n"},
        {"type": "function_call_output", "call_id": "c1", "output": "ok"},
        {"type": "message", "role": "assistant", "content": "done"},
    ]
    body = responses.chat_body({"input": items, "instructions": "Be brief.", "reasoning": {"effort": "low"}})
    calls = [
        {"id": "c1", "function": {"arguments": "{}", "name": "f"}, "type": "function"},
        {"id": "c2", "function": {"arguments": "{}", "name": "n__g"}, "type": "function"},
    ]
    assert body["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "input_text", "text": "hi"}]},
        {"role": "assistant", "reasoning": "hm", "content": "let me see", "tool_calls": calls},
        {"role": "tool", "content": "ok", "tool_call_id": "c1"},
        {"role": "assistant", "content": "done"},
    ]
    assert body["reasoning_effort"] == "low"
    assert body["add_generation_prompt"]


def test_a_second_text_of_an_assistant_begins_a_new_message() -> None:
    items = [{"role": "assistant", "content": "one"}, {"role": "assistant", "content": "two"}]
    assert [message["content"] for message in responses.chat_body({"input": items})["messages"]] == ["one", "two"]


def test_a_responses_item_cut_short_is_continued() -> None:
    items = [
        {"role": "user", "content": "hi"},
        {"type": "message", "role": "assistant", "content": "we", "status": "incomplete"},
    ]
    body = responses.chat_body({"input": items})
    assert (body["add_generation_prompt"], body["continue_final_message"]) == (False, True)


def test_responses_tools_are_function_tools_and_those_of_namespaces() -> None:
    given = [
        {"type": "function", **FUNCTION, "strict": True},
        {"type": "web_search"},
        {"type": "namespace", "name": "n", "tools": [{"type": "function", **FUNCTION}, {"type": "custom"}]},
    ]
    tools = responses.chat_body({"input": "x", "tools": given})["tools"]
    assert [tool["function"]["name"] for tool in tools] == ["f", "n__f"]
    assert responses.chat_body({"input": "x", "tools": []})["tools"] is None


def test_encrypted_reasoning_cannot_be_known() -> None:
    with pytest.raises(NotTokenizable):
        responses.chat_body({"input": [{"type": "reasoning", "encrypted_content": "x"}]})


def test_an_anthropic_conversation_with_tools_becomes_a_chat() -> None:
    body: dict[str, Any] = {
        "system": [{"type": "text", "text": "x-anthropic-billing-header: 1"}, {"type": "text", "text": "Be brief."}],
        "messages": [
            {"role": "user", "content": "hi"},
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "hm", "signature": "s"},
                    {"type": "text", "text": "let me see"},
                    {"type": "tool_use", "id": "t1", "name": "f", "input": {"a": 1}},
                ],
            },
            {
                "role": "user",
                "content": [
                    {
                        "type": "tool_result",
                        "tool_use_id": "t1",
                        "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}],
                    },
                    {"type": "text", "text": "and?"},
                    {"type": "text", "text": "more"},
                ],
            },
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t2", "content": "c"}]},
        ],
        "tools": [{"name": "f", "description": "d", "input_schema": {"type": "object"}}],
        "output_config": {"effort": "high"},
    }
    call = {"id": "t1", "function": {"arguments": '{"a": 1}', "name": "f"}, "type": "function"}
    chat = anthropic.chat_body(body)
    assert chat["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "hi"},
        {"role": "assistant", "reasoning": "hm", "tool_calls": [call], "content": "let me see"},
        {"role": "tool", "tool_call_id": "t1", "content": "a\nb"},
        {"role": "user", "content": [{"type": "text", "text": "and?"}, {"type": "text", "text": "more"}]},
        {"role": "tool", "tool_call_id": "t2", "content": "c"},
    ]
    assert chat["tools"][0]["function"]["parameters"] == {"type": "object"}
    assert chat["reasoning_effort"] == "high"


@pytest.mark.parametrize("body", [{"messages": [], "system": 3}, {"messages": [], "tools": 3}, {"messages": ["x"]}])
def test_an_anthropic_body_with_wrong_types_is_refused(body: dict[str, Any]) -> None:
    with pytest.raises(PromptError):
        anthropic.chat_body(body)
