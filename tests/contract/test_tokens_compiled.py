"""A compiled chat template says what jinja2 says, word for word, or leaves it to jinja2; and it is as closed as the sandbox."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2 import TemplateError

from contract.tokens import NotTokenizable, PromptError, compiled, conversation
from contract.tokens.prompt import PLAIN
from contract.tokens.source import BUILTIN_FOLDER
from contract.tokens.template import ChatTemplate
from tests.contract.test_tokens_template import CHATML, PARTS, SANDBOX

FIXTURES = Path(__file__).parents[1] / "fixtures"
SOURCES = {
    **{path.stem: path.read_text() for path in sorted((FIXTURES / "chat_templates").glob("*.jinja"))},
    "shipped": (BUILTIN_FOLDER / "chat_template.jinja").read_text(),
    "tiny-vllm": (FIXTURES / "tokens_vllm" / "chat_template.jinja").read_text(),
    "chatml": CHATML,
    "parts": PARTS,
    "sandbox": SANDBOX,
}

texts = st.one_of(
    st.sampled_from(["", " ", "hello", " a \n", "<think>\nhm\n</think>\n\nso", "</think>", "<tool_response>x</tool_response>"]),
    st.text(max_size=20),
)
schemas = st.sampled_from(
    [
        None,
        {"type": "object", "properties": {"a": {"type": "string"}, "b": {"type": ["string", "null"]}, "c": {}}},
        {
            "type": "object",
            "properties": {"deep": {"type": "object", "properties": {"x": {"type": "number", "ä": [1.0, True]}}}},
        },
    ]
)
tools = st.none() | st.lists(
    st.fixed_dictionaries(
        {
            "type": st.just("function"),
            "function": st.fixed_dictionaries({"name": texts, "description": st.none() | texts, "parameters": schemas}),
        }
    ),
    max_size=3,
)
calls = st.fixed_dictionaries(
    {
        "id": st.sampled_from(["abcdefghi", "1", ""]),
        "type": st.just("function"),
        "function": st.fixed_dictionaries(
            {"name": texts, "arguments": st.sampled_from(['{"a": [1, null, "é"], "b": {"c": 1.5}}', "{}", "", "x"])}
        ),
    }
)
contents = texts | st.lists(st.fixed_dictionaries({"type": st.just("text"), "text": texts}), min_size=1, max_size=3)
messages = st.one_of(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["system", "user", "developer", "other"]), "content": contents}, optional={"name": texts}
    ),
    st.fixed_dictionaries(
        {"role": st.just("assistant"), "content": contents | st.none()},
        optional={"tool_calls": st.lists(calls, max_size=3), "reasoning": texts},
    ),
    st.fixed_dictionaries({"role": st.just("tool"), "content": contents, "tool_call_id": texts}),
)
alternating = st.lists(texts, min_size=1, max_size=6).map(
    lambda said: [{"role": ("user", "assistant")[at % 2], "content": text} for at, text in enumerate(said)]
)
conversations = st.lists(messages, min_size=1, max_size=6) | alternating
documents = st.none() | st.lists(st.fixed_dictionaries({}, optional={"title": texts, "text": texts}), max_size=3)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.floats(allow_nan=False, width=16) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts | st.sampled_from(["role", "type", "text"]), inner),
    max_leaves=6,
)
more = st.fixed_dictionaries(
    {"bos_token": st.just("<s>")},
    optional={
        "eos_token": st.just("</s>"),
        "enable_thinking": st.booleans() | st.none(),
        "day": json_values,
        "extra_tools": json_values,
        "built_in": json_values,
        "with_user": st.booleans(),
        "namespace": json_values,
        "loop": json_values,
    },
)


@cache
def template(name: str) -> ChatTemplate:
    return ChatTemplate(SOURCES[name])


def by_jinja(of: ChatTemplate, named: dict[str, Any]) -> str | type[Exception]:
    try:
        return of._rendered(named)
    except Exception as error:
        return type(error)


@pytest.mark.parametrize("name", SOURCES)
@given(chat=conversations, tools=tools, documents=documents, generate=st.booleans(), more=more)
@settings(deadline=None, max_examples=150)
def test_a_compiled_template_says_what_jinja2_says(
    name: str, chat: list[Any], tools: Any, documents: Any, generate: bool, more: dict[str, Any]
) -> None:
    of = template(name)
    assert of._compiled is not None
    shaped = conversation.messages_of(chat, of.content_format)
    named = {**more, "messages": shaped, "tools": tools, "documents": documents, "add_generation_prompt": generate}
    before = json.dumps(named)
    truth = by_jinja(of, named)
    try:
        assert of._compiled(named) == truth
    except AssertionError:
        raise
    except Exception:
        pass  # then jinja2 is asked
    assert json.dumps(named) == before
    if isinstance(truth, str):
        assert of.text(named) == truth
    else:
        with pytest.raises((PromptError, NotTokenizable)) as raised:
            of.text(named)
        assert isinstance(raised.value, PromptError) == issubclass(truth, TemplateError)


@pytest.mark.parametrize("name", SOURCES)
@given(messages=json_values, tools=json_values, more=more)
@settings(deadline=None, max_examples=100)
def test_so_it_does_of_any_json_whatever(name: str, messages: Any, tools: Any, more: dict[str, Any]) -> None:
    of = template(name)
    assert of._compiled is not None
    named = {**more, "messages": messages, "tools": tools, "documents": tools, "add_generation_prompt": True}
    truth = by_jinja(of, named)
    try:
        ours = of._compiled(named)
    except Exception:
        return
    assert ours == truth


ORDINARY = [
    [{"role": "user", "content": "Hello"}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}],
    [
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "<think>x</think>Hi"},
        {"role": "user", "content": "Weather?"},
    ],
]


@pytest.mark.parametrize("name", SOURCES)
def test_ordinary_chats_are_not_left_to_jinja2(name: str) -> None:
    of = template(name)
    for chat in ORDINARY:
        named = {
            **PLAIN,
            "bos_token": "<s>",
            "eos_token": "</s>",
            "messages": conversation.messages_of(chat, of.content_format),
        }
        truth = by_jinja(of, named)
        if isinstance(truth, str):
            assert of._compiled is not None
            assert of._compiled(named) == truth
        else:
            assert (name, chat[0]["role"]) == ("strict", "system")


PIECES = [
    "{% for m in messages %}{{ m.content }}{% if not loop.last %}, {% endif %}{% endfor %}",
    "{% for m in messages %}{{ loop.index }}{{ loop.revindex }}{{ loop.length }}{{ loop.previtem.role }}{% endfor %}",
    "{% for m in messages %}{% for k, v in m.items() %}{{ loop.index0 }}{{ k }}{{ v }}{% endfor %}{{ loop.first }}{% endfor %}",
    "{% for m in messages %}{{ loop.depth }}{{ loop['index'] }}{% endfor %}",
    "{% for m in messages if m.role == 'user' %}{{ loop.index }}{{ m.content }}{% else %}nobody{% endfor %}",
    "{% for m in messages %}{% if loop.index > 1 %}{% break %}{% endif %}{{ m.role }}{% else %}x{% endfor %}",
    "{% for m in messages %}{% if true %}{% continue %}{% endif %}{% else %}nothing ran to its end{% endfor %}",
    "{% for m in nobody %}{% else %}{{ nobody }}{% endfor %}{{ nobody.x is defined }}",
    "{% for c in 'abc' %}{{ c ~ loop.index0 ~ loop.last }}{% endfor %}",
    "{% for k in {'a': 1} %}{{ k }}{{ loop.index }}{% endfor %}",
    "{% set a = 1 %}{% for m in messages %}{% set a = a + 1 %}{{ a }}{% endfor %}{{ a }}",
    "{{ 1 + 2 }}{{ 'a' ~ 1 ~ none ~ nobody }}{{ 'x' + messages[0].role + ('y' + 'z') }}{{ 3 * 'ab' }}",
    "{{ 7 // 2 }}{{ 'a' + 'b' | upper }}",
    "{{ messages[0]['items'] is defined }}{{ messages[0].items is defined }}{{ messages[0].nothing }}{{ messages[5] }}",
    "{{ messages[0].content.split()[0] }}{{ messages[0].content.upper().strip('H') }}{{ messages[0].get('name', 'x') }}",
    "{{ messages[0].content.split(maxsplit=1) }}{{ messages | map(attribute='role') | join(',') }}{{ messages | length }}",
    "{{ '%s-%s' | format(1, 2) }}",
    "{{ messages[0].content | escape }}{{ '<' + messages[0].content | e + '<' }}",
    "{{ ['<'] | map('escape') | first + '<' }}",
    "{{ '{}'.format(messages) }}{{ '{0.__class__}'.format(1) }}",
    "{% set x = namespace(a=1) %}{% set x.b = 2 %}{{ x.a }}{{ x.b }}{{ x.c }}{% set x.items = 3 %}{{ x.items }}",
    "{% set messages = messages[1:] %}{{ messages | length }}{{ messages }}",
    "{% set class = 1 %}{{ class }}{{ messages[0].class }}{{ {'class': 2, 'is': 3}.class }}{{ namespace(lambda=1).lambda }}",
    "{% set ns = namespace(fi=2) %}{{ ns.ﬁ }}{{ ns.fi }}{{ messages[0].ﬁ }}",
    "{{ 1 if nobody }}{{ 'x' if messages else y }}{{ (1 if nobody) is defined }}{{ none is none }}{{ 'a' is string }}",
    "{% macro f(a, b=2) %}{{ a }}{{ b }}{{ c }}{{ varargs }}{{ kwargs }}{% endmacro %}{{ f(1) }}{{ f(1, 3, 4, x=5) }}{{ f() }}",
    "{% set c = 5 %}{% macro f() %}{{ c }}{{ later }}{% endmacro %}{% set later = 6 %}{{ f() }}",
    "{% filter upper %}{{ messages[0].content }}{% endfilter %}",
    "{% block a %}{{ messages[0].content }}{% endblock %}{{ self.a() }}",
    "{{ messages[0].content | trim }}{{ 5 | trim }}{{ messages[0].content | trim('H') }}{{ nobody | trim }}",
    "{{ joiner(',')() }}{{ cycler(1, 2).next() }}{{ range(3) | list }}{{ dict(a=1) }}{{ lipsum is defined }}",
    "{{ messages[0]['content'][1:3] }}{{ messages[-1].role }}{{ messages[0]['role'][0] }}",
    "{{ messages[nobody] }}{{ messages['x'] }}",
    "{{ raise_exception('no') if messages[0].role == 'user' }}",
    "{{ messages[0].content + 1 }}",
    "{{ messages[0].content + nobody }}",
    "{% set s %}<{{ messages[0].content }}>{% endset %}{{ s + '<' }}{{ s | length }}",
]


@pytest.mark.parametrize("source", PIECES)
def test_a_piece_of_a_template_says_what_jinja2_says(source: str) -> None:
    of = ChatTemplate(source)
    for chat in [*ORDINARY, [{"role": "user", "content": "<b> & c", "name": "n", "class": "k", "nothing": None}]]:
        named = {"messages": chat, "bos_token": "<s>"}
        truth = by_jinja(of, named)
        if of._compiled is not None:
            try:
                assert of._compiled(named) == truth
            except AssertionError:
                raise
            except Exception:
                pass
        if isinstance(truth, str):
            assert of.text(named) == truth


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages[0].content | escape }}",
        "{{ ['<'] | map('escape') | first + '<' }}",
        "{% block a %}{% endblock %}",
        "{% include 'x' %}",
        "{% filter upper %}x{% endfilter %}",
        "{{ lipsum(html=true) + '<' }}",
        "{{ messages | attr('x') }}",
        "{{ messages | no_such_filter }}",
    ],
)
def test_what_is_not_covered_is_not_compiled(source: str) -> None:
    environment = ChatTemplate("")._template.environment
    assert compiled.compiled(environment, environment.parse(source)) is None


ESCAPES = [
    "{{ messages.__class__ }}",
    "{{ messages['__class__'] }}",
    "{{ ''.__class__.__mro__ }}",
    "{{ messages[0].__init__.__globals__ }}",
    "{{ messages[0].content['__class__'] }}",
    "{{ messages[0].content.format.__globals__ }}",
    "{{ '{0.__class__.__mro__}'.format(messages) }}",
    "{{ '{x.__class__}'.format_map({'x': 1}) }}",
    "{{ namespace(a=1).__class__.__init__ }}",
    "{% set ns = namespace(a=1) %}{{ ns.a\uff3f }}{{ ns.__class\uff3f_ }}",
    "{{ raise_exception.__globals__ }}",
    "{{ strftime_now.__code__ }}",
    "{% for m in messages %}{{ loop.__class__ }}{{ loop._iterable }}{% endfor %}",
    "{% macro f() %}{% endmacro %}{{ f.__call__ }}{{ f._func }}",
    "{{ messages.append(1) }}",
    "{{ messages[0].update({'role': 'x'}) }}",
    "{{ messages[0].pop('role') }}",
    "{{ messages[0].setdefault('x', 1) }}",
    "{{ dict.__class__ }}{{ dict.fromkeys.__self__ }}",
    "{{ range(10 ** 9) | length }}",
    "{{ messages | map(attribute='__class__') | list }}",
    "{{ nobody.__class__ }}{{ (1 if nobody).__class__ }}",
]


@pytest.mark.parametrize("source", ESCAPES)
def test_what_the_sandbox_keeps_in_stays_in(source: str) -> None:
    of = ChatTemplate(source)
    chat = [{"role": "user", "content": "x"}]
    named = {"messages": chat}
    truth = by_jinja(of, named)
    if isinstance(truth, str):
        assert of.text(named) == truth
    else:
        with pytest.raises((PromptError, NotTokenizable)):
            of.text(named)
        assert of._compiled is not None
        with pytest.raises(Exception):  # noqa: B017 (of whatever kind: jinja2 is asked then)
            of._compiled(named)
    assert chat == [{"role": "user", "content": "x"}]
