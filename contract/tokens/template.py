"""Chat templates: compiled once, rendered as the engine renders them, and the content format that they want.

Rendering is transformers' own (`render_jinja_template`), imported with the first chat: it costs 0.4 s of CPU, which the
processes that never render need not pay. It holds the GIL, but is Python code, so that other threads get their turns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, cast

from contract.tokens.content_format import detect
from contract.tokens.errors import PromptError

TEMPLATES_CACHED_MAX = 32
"""How many templates keep their analysis: requests may bring their own."""


@lru_cache(TEMPLATES_CACHED_MAX)
def _variables(source: str) -> frozenset[str]:
    from transformers.utils.chat_template_utils import _get_template_variables

    return cast(frozenset[str], _get_template_variables(source))


@lru_cache(TEMPLATES_CACHED_MAX)
def content_format(source: str) -> str:
    """'openai' when the template walks over a message's content parts, else 'string'. As vLLM's detection."""
    from transformers.utils.chat_template_utils import _compile_jinja_template

    return detect(_compile_jinja_template(source).environment.parse(source))


def render(
    source: str,
    messages: Sequence[Mapping[str, Any]],
    *,
    tools: Sequence[Mapping[str, Any]] | None,
    documents: Sequence[Mapping[str, Any]] | None,
    add_generation_prompt: bool,
    continue_final_message: bool,
    variables: Mapping[str, Any],
) -> str:
    """The prompt's text. variables: special tokens and `chat_template_kwargs`, those the template does not name are dropped.

    PromptError: the template refuses the conversation (its own `raise_exception`, or a mistake in it).
    """
    from transformers.utils.chat_template_utils import render_jinja_template

    try:
        known = _variables(source)
        rendered, _ = cast(Any, render_jinja_template)(  # its annotations are narrower, and wrong about what it returns
            [messages],
            tools=tools,
            documents=documents,
            chat_template=source,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            **{name: value for name, value in variables.items() if name in known},
        )
    except Exception as error:  # a template is a program of its author's: whatever it raises is about this conversation
        raise PromptError(f"the chat template cannot render this conversation: {error}", "messages") from error
    return cast(str, rendered[0])
