"""Chat templates render as transformers renders them, and messages reach them as vLLM's validation leaves them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types.chat import ChatCompletionMessageParam
from pydantic import BaseModel, ConfigDict
from transformers.utils.chat_template_utils import render_jinja_template

from contract.tokens import PromptError, conversation
from contract.tokens.source import BUILTIN_FOLDER
from contract.tokens.template import ChatTemplate

CHATML = (
    "{% for message in messages %}\n{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}\n{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
PARTS = (
    "{%- set turns = messages[0:] %}{% for m in turns | list %}[{{ m.role }}]"
    "{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for part in m.content %}{{ part.text | trim }}{% endfor %}{% endif %}"
    "{% if m.tool_calls is defined and m.tool_calls %}{% for call in m.tool_calls %}{{ call | tojson }}{% endfor %}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)
SANDBOX = (
    "{%- set ns = namespace(count=0, text='') %}{%- for m in messages %}"
    "{%- if m['role'] == 'tool' %}{%- continue %}{%- endif %}"
    "{%- set ns.count = ns.count + 1 %}{%- if loop.index > 4 %}{%- break %}{%- endif %}"
    "{% generation %}{{ m['content'] }}{% endgeneration %}{{ m.reasoning_content }}{{ m.thinking }}{{ m.missing }}"
    "{{ m.get('name', '?') }}{{ m.items() | list | length }}{%- endfor %}{{ ns.count }}{{ tools | tojson(indent=2) if tools }}"
    "{{ dict(a=1) }}{{ strftime_now('%Y') | length }}{{ documents }}{{ enable_thinking }}{{ bos_token }}"
)
SHIPPED = (BUILTIN_FOLDER / "chat_template.jinja").read_text()
TEMPLATES = {"chatml": CHATML, "parts": PARTS, "sandbox": SANDBOX, "shipped": SHIPPED}

texts = st.text(max_size=30)
calls = st.fixed_dictionaries(
    {
        "id": st.text(max_size=5),
        "type": st.just("function"),
        "function": st.fixed_dictionaries(
            {"name": texts, "arguments": st.sampled_from(['{"a": [1, null, "é"]}', "{}", "", "[]", "x"])}
        ),
    }
)
messages = st.lists(
    st.one_of(
        st.fixed_dictionaries({"role": st.sampled_from(["system", "user", "developer"]), "content": texts}),
        st.fixed_dictionaries(
            {
                "role": st.just("user"),
                "content": st.lists(st.fixed_dictionaries({"type": st.just("text"), "text": texts}), min_size=1),
            }
        ),
        st.fixed_dictionaries(
            {"role": st.just("assistant"), "content": texts},
            optional={"tool_calls": st.lists(calls, min_size=1, max_size=2), "reasoning": texts},
        ),
        st.fixed_dictionaries({"role": st.just("tool"), "content": texts, "tool_call_id": texts}),
    ),
    min_size=1,
    max_size=6,
)
tools = st.none() | st.just(
    [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "ä": [1.0, True]}}}]
)


def by_transformers(source: str, chat: list[dict[str, Any]], **options: Any) -> str:
    chat = [{name: value for name, value in message.items() if value is not None} for message in chat]
    return str(render_jinja_template([chat], chat_template=source, **options)[0][0])


@pytest.mark.parametrize("name", TEMPLATES)
@given(chat=messages, tools=tools, generate=st.booleans())
@settings(deadline=None, max_examples=40)
def test_a_template_renders_as_in_transformers(
    name: str, chat: list[dict[str, Any]], tools: list[dict[str, Any]] | None, generate: bool
) -> None:
    template = ChatTemplate(TEMPLATES[name])
    shaped = conversation.messages_of(chat, template.content_format)
    variables = {"bos_token": "<s>", "enable_thinking": False}
    ours = template.render(
        shaped,
        tools=tools,
        documents=None,
        add_generation_prompt=generate,
        continue_final_message=False,
        variables={**variables, "unheard_of": 1},
    )
    options = {"tools": tools, "documents": None, "add_generation_prompt": generate, **variables}
    assert ours == by_transformers(template.source, shaped, **options)


@pytest.mark.parametrize("name", ["chatml", "parts", "shipped"])
@given(final=st.text(min_size=1, max_size=30).filter(str.strip), chat=messages)
@settings(deadline=None, max_examples=40)
def test_a_final_message_is_left_open_as_in_transformers(name: str, final: str, chat: list[dict[str, Any]]) -> None:
    template = ChatTemplate(TEMPLATES[name])
    shaped = conversation.messages_of([*chat, {"role": "assistant", "content": final}], template.content_format)
    if name == "chatml":
        shaped = [message for message in shaped if isinstance(message["content"], str)]
    ours = template.render(
        shaped,
        tools=None,
        documents=None,
        add_generation_prompt=False,
        continue_final_message=True,
        variables={"bos_token": "<s>"},
    )
    assert ours == by_transformers(template.source, shaped, continue_final_message=True, bos_token="<s>")


def test_a_template_that_raises_refuses_the_conversation_in_its_own_words() -> None:
    template = ChatTemplate("{% if messages[0]['role'] != 'user' %}{{ raise_exception('users first') }}{% endif %}")
    with pytest.raises(PromptError, match="users first") as raised:
        template.render(
            [{"role": "system", "content": ""}],
            tools=None,
            documents=None,
            add_generation_prompt=True,
            continue_final_message=False,
            variables={},
        )
    assert raised.value.param == "messages"


@pytest.mark.parametrize(
    "source", ["{{ messages.__class__.__mro__ }}", "{% set ns = namespace(_x=1) %}", "{{ messages.append(1) }}"]
)
def test_a_template_cannot_reach_out_of_its_sandbox(source: str) -> None:
    with pytest.raises(PromptError):
        ChatTemplate(source + "{{ messages.__class__.__init__.__globals__ }}").render(
            [{"role": "user", "content": ""}],
            tools=None,
            documents=None,
            add_generation_prompt=True,
            continue_final_message=False,
            variables={},
        )


@pytest.mark.parametrize(
    ("source", "wanted"),
    [
        ("{% for m in messages %}{{ m['content'] }}{% endfor %}", "string"),
        ("{% for m in messages %}{% for p in m['content'] %}{{ p }}{% endfor %}{% endfor %}", "openai"),
        ("{% for m in messages %}{% for p in m.content %}{{ p }}{% endfor %}{% endfor %}", "openai"),
        ("{% set t = messages[1:] %}{% for m in t %}{% for p in m.content | list %}{{ p }}{% endfor %}{% endfor %}", "openai"),
        (
            "{% set t = messages %}{% set u = t %}{% for m in u %}{% for p in m.content %}{{ p }}{% endfor %}{% endfor %}",
            "openai",
        ),
        ("{% set messages = messages[1:] %}{% for m in messages %}{{ m.content }}{% endfor %}", "string"),
        ("{% for m in other %}{% for p in m.content %}{{ p }}{% endfor %}{% endfor %}", "string"),
        ("{% for m in messages %}{% for c in m.tool_calls %}{{ c }}{% endfor %}{% endfor %}", "string"),
        (PARTS, "openai"),
        (CHATML, "string"),
        (SHIPPED, "string"),
    ],
)
def test_the_content_format_is_read_off_the_template_as_vllm_does(source: str, wanted: str) -> None:
    assert ChatTemplate(source).content_format == wanted


class _Request(BaseModel):
    """How vLLM's request model validates messages: OpenAI's types, fields beyond them kept."""

    model_config = ConfigDict(extra="allow")
    messages: list[ChatCompletionMessageParam]


def test_tool_calls_have_the_field_order_that_validation_gives_them() -> None:
    call = {"x": 1, "type": "function", "function": {"y": 2, "name": "f", "arguments": '{"b": 1, "a": 2}'}, "id": "c1"}
    chat = [{"role": "assistant", "content": None, "tool_calls": [call]}]
    validated = next(iter(_Request.model_validate({"messages": chat}).messages[0]["tool_calls"]))  # type: ignore[typeddict-item]
    validated["function"]["arguments"] = json.loads(validated["function"]["arguments"])
    ours = conversation.messages_of(chat, "string")[0]["tool_calls"][0]
    assert json.dumps(ours) == json.dumps(validated)


def test_tools_have_the_fields_of_vllms_schema_in_its_order() -> None:
    tool = {
        "function": {"strict": True, "parameters": {"b": 1, "a": 2}, "name": "f", "unknown": 1},
        "type": "function",
        "more": 1,
    }
    function = {"name": "f", "description": None, "parameters": {"b": 1, "a": 2}, "strict": True}
    assert json.dumps(conversation.tools_of([tool])) == json.dumps([{"type": "function", "function": function}])


def test_arguments_that_are_no_object_become_an_empty_one() -> None:
    for arguments in ("", None, "not json", "[1]", "7"):
        chat = [
            {
                "role": "assistant",
                "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": arguments}}],
            }
        ]
        assert conversation.messages_of(chat, "string")[0]["tool_calls"][0]["function"]["arguments"] == {}


def test_the_callers_body_is_left_as_it_was() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    chat = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y", "tool_calls": [call]}]
    before = json.dumps(chat)
    template = ChatTemplate(SHIPPED)
    template.render(
        conversation.messages_of(chat, "string"),
        tools=None,
        documents=None,
        add_generation_prompt=False,
        continue_final_message=True,
        variables={"bos_token": ""},
    )
    assert json.dumps(chat) == before


def test_a_billing_line_at_the_start_of_a_system_message_is_dropped_as_in_vllm() -> None:
    line = "x-anthropic-billing-header: cch=1;"
    for content, kept in (
        (f"{line}\nBe brief.", "Be brief."),
        ([{"type": "text", "text": line}, {"type": "text", "text": "Be brief."}], "Be brief."),
        (f"Be brief.\n{line}", f"Be brief.\n{line}"),
    ):
        assert conversation.messages_of([{"role": "system", "content": content}], "string")[0]["content"] == kept


def test_reasoning_is_known_by_every_name() -> None:
    for field in ("reasoning", "reasoning_content"):
        message = conversation.messages_of([{"role": "assistant", "content": "x", field: "hm"}], "string")[0]
        assert (message["reasoning"], message["reasoning_content"], message["thinking"]) == ("hm", "hm", "hm")
