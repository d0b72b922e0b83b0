"""A model's chat template, compiled once and rendered as the engine renders it.

The environment is the one that `transformers` gives to chat templates, and so are the rules for `continue_final_message`; tests
compare the two over many templates. It is rebuilt here because importing it from there costs 0.43 s
of CPU and 35 MB in every process (huggingface_hub and its HTTP clients come along), and because `transformers` copies every
message twice before it renders: 87 us for a conversation of 20 turns and 8,000 tokens, where jinja2 alone takes 40 and the
compiled template (`compiled`) 6.

Rendering holds the GIL but is Python code: other threads get their turn every `sys.getswitchinterval()`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

import jinja2.ext
import jinja2.meta
import jinja2.nodes
import jinja2.parser
import jinja2.runtime
import jinja2.utils
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from contract.tokens.compiled import compiled
from contract.tokens.content_format import detect
from contract.tokens.errors import NotTokenizable, PromptError

RESUME_TAG = "CONTINUE_FINAL_MESSAGE_TAG "
"""Stands at the end of the message to continue while the template renders; what follows it is cut off."""

_DICT_ATTRIBUTES = frozenset(dir(dict))
_JSON = json.JSONEncoder(ensure_ascii=False)


class ChatTemplate:
    """A compiled template. TemplateError: a bad source.

    content_format: 'string' or 'openai', how it wants a message's content; variables: the names that it reads.
    """

    def __init__(self, source: str) -> None:
        environment = _environment()
        tree = environment.parse(source)
        self.source = source
        self.content_format = detect(tree)
        self.variables = frozenset(jinja2.meta.find_undeclared_variables(tree))
        self._template = environment.from_string(source)
        self._globals = dict(self._template.globals)
        self._compiled = compiled(environment, tree)

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: object,
        documents: object,
        add_generation_prompt: bool,
        continue_final_message: bool,
        variables: Mapping[str, Any],
    ) -> str:
        """The prompt's text.

        variables: special tokens and the request's own; those that the template does not name are dropped.
        PromptError: the template refuses the conversation. NotTokenizable: it fails on it.
        """
        names = self.variables
        named = {name: value for name, value in variables.items() if name in names}
        chat = list(messages)
        final = _tag_final(chat) if continue_final_message else ""
        named["messages"] = chat
        named["tools"] = tools
        named["documents"] = documents
        named["add_generation_prompt"] = add_generation_prompt
        text = self.text(named)
        return _cut(text, final) if continue_final_message else text

    def text(self, named: Mapping[str, Any]) -> str:
        """`render` without a message to continue. named: all that the template may read, `messages` and so on."""
        if self._compiled is not None:
            try:
                return self._compiled(named)
            except Exception:  # whatever it is, jinja2 says it better
                pass
        try:
            return self._rendered(named)
        except TemplateError as error:
            raise PromptError(f"the chat template refuses this conversation: {error}", "messages") from error
        except Exception as error:
            raise NotTokenizable(f"the chat template failed: {type(error).__name__}") from error

    def _rendered(self, named: Mapping[str, Any]) -> str:
        """`jinja2.Template.render` without its copy of the globals through a ChainMap, which took longer than all the rest."""
        template = self._template
        context = jinja2.runtime.new_context(
            template.environment, template.name, template.blocks, {**self._globals, **named}, shared=True
        )
        return template.environment.concat(template.root_render_func(context))


def _tag_final(chat: list[Mapping[str, Any]]) -> str:
    """Appends RESUME_TAG to the last text of the last message, in a copy, and returns that text."""
    content = chat[-1].get("content") if chat else None
    if isinstance(content, str):
        chat[-1] = {**chat[-1], "content": content + RESUME_TAG}
        return content
    if isinstance(content, list) and content:
        text = str(content[-1]["text"])
        chat[-1] = {**chat[-1], "content": [*content[:-1], {**content[-1], "text": text + RESUME_TAG}]}
        return text
    raise PromptError("continue_final_message is set but the final message has no content to continue", "messages")


def _cut(text: str, final: str) -> str:
    """The text up to RESUME_TAG. A template that trims content trims the tag's space: then trailing white space goes, too."""
    tag = text.rfind(RESUME_TAG.strip())
    if tag < 0 or final.strip() not in text:
        raise PromptError("continue_final_message is set but the chat template drops the final message", "messages")
    return text[:tag] if text.startswith(RESUME_TAG, tag) else text[:tag].rstrip()


class _Generation(jinja2.ext.Extension):
    """{% generation %} ... {% endgeneration %}: marks an assistant's text for training; renders what is inside."""

    tags = {"generation"}  # noqa: RUF012 (declared so by jinja2)

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Namespace(jinja2.utils.Namespace):
    """jinja2's namespace without underscore attributes, which could reach Python's internals."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, *rest = args  # so that `namespace(self=...)` works, as in jinja2
        attributes = dict(*rest, **kwargs)
        for name in attributes:
            _check_name(name)
        jinja2.utils.Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"chat templates cannot store underscore-prefixed attributes on a namespace, but got {name!r}")


class _Dict:
    """`dict` for templates: it can be called, and has no attributes to climb up on."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        """dict.fromkeys."""
        return dict.fromkeys(*args)


class _Environment(ImmutableSandboxedEnvironment):
    """jinja2's sandbox with a short way for `message.role`: it looks for an attribute first, and a dict has few."""

    def getattr(self, obj: Any, attribute: str) -> Any:
        if type(obj) is dict and attribute not in _DICT_ATTRIBUTES:
            value = obj.get(attribute, self)
            return self.undefined(obj=obj, name=attribute) if value is self else value
        return super().getattr(obj, attribute)


def _environment() -> ImmutableSandboxedEnvironment:
    environment = _Environment(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols])
    environment.filters["tojson"] = _to_json
    environment.globals.update(raise_exception=_raise, strftime_now=_strftime_now, dict=_Dict(), namespace=_Namespace)
    return environment


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: Any = None, sort_keys: bool = False
) -> str:
    if not ensure_ascii and indent is None and separators is None and not sort_keys:
        return _JSON.encode(value)  # what `dumps` does with an encoder of its own, made each time
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise(message: str) -> NoReturn:
    raise TemplateError(message)


def _strftime_now(form: str) -> str:
    """Today, as the engine's own clock would say it: the one thing here that depends on the time."""
    return datetime.now().strftime(form)  # noqa: DTZ005 (local time, as the engine's template has it)
