"""Request bodies to token ids, for one model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jinja2.exceptions import TemplateError

from contract.blocks import pack_tokens
from contract.tokens import anthropic, conversation, responses
from contract.tokens.encoder import CacheStats, Encoder
from contract.tokens.errors import NotTokenizable, PromptError, TokenizerUnavailable
from contract.tokens.source import Source
from contract.tokens.template import ChatTemplate

CHAT_PATH = "/v1/chat/completions"

UNSET = (None, "auto")
"""Values of `chat_template_kwargs` that vLLM takes for not given."""

RESERVED = frozenset({"chat_template", "tokenize", "messages"})
"""Names in `chat_template_kwargs` that the engine refuses, or follows only where its operator trusts every caller."""

_OPTIONS = frozenset({"chat_template_kwargs", "chat_template", "reasoning_effort"})

SHAPING = _OPTIONS | {
    *("tools", "documents", "add_generation_prompt", "continue_final_message", "add_special_tokens", "truncate_prompt_tokens")
}
"""Fields by which a chat differs from its messages alone."""

PLAIN: Mapping[str, Any] = {"tools": None, "documents": None, "add_generation_prompt": True}
"""What a template gets beside the messages where a request says nothing else."""

CHEAP_BODY_BYTES_MAX = 16 * 1024
"""Bodies up to this size take less than 1 ms to tokenize, chat template included, with fastokens: they need no thread."""

CHEAP_BODY_BYTES_MAX_SLOW = 4 * 1024
"""The same with `tokenizers`."""


class PromptTokenizer:
    """One model's tokenizer and chat templates.

    Every method may be called from several threads at once. What holds the GIL, and for how long: the head of
    `encoder` has the encoders; rendering is Python code and gives other threads their turn every
    `sys.getswitchinterval()`, 5 ms unless set. A process whose event loop shares the interpreter with a thread that
    tokenizes or hashes long prompts sets it to 0.1 ms: then 128,000 tokens hold no other thread for more than 1 ms.

    name: as given to `load`; fast: fastokens encodes (it was proven equal at load), else `tokenizers`.
    """

    def __init__(self, name: str, source: Source, encoder: Encoder, *, fast: bool) -> None:
        self.name = name
        self.fast = fast
        self._tokenizer = source.tokenizer
        self._special_tokens = source.special_tokens
        self._encoder = encoder
        self._encode = encoder.encode
        try:
            self._templates = {name: ChatTemplate(text) for name, text in source.templates.items()}
        except TemplateError as error:
            raise TokenizerUnavailable(f"the chat template of {name!r} cannot be compiled: {error}") from error
        self._default = self._templates.get("default")
        self._plain: dict[str, Any] = {**self._special_tokens, **PLAIN, "messages": None}
        chat, completion = self._chat_of, self._completion_of
        self._by_path: dict[str, Callable[[Mapping[str, Any]], list[bytes]]] = {
            CHAT_PATH: chat,
            "/v1/chat/completions/render": chat,
            "/v1/completions": completion,
            "/v1/completions/render": completion,
            "/v1/responses": lambda body: [self.responses(body)],
            "/v1/messages": lambda body: [self.messages(body)],
            "/v1/messages/count_tokens": lambda body: [self.messages(body)],
            "/v1/embeddings": self._embedding_of,
            "/tokenize": lambda body: chat(body) if "messages" in body else completion(body),
        }

    @property
    def stats(self) -> CacheStats:
        """The token cache: hits, misses, size."""
        return self._encoder.stats()

    def is_cheap(self, body_bytes: int) -> bool:
        """May a request body of this size be tokenized on an event loop? Larger ones belong into a thread."""
        return body_bytes <= (CHEAP_BODY_BYTES_MAX if self.fast else CHEAP_BODY_BYTES_MAX_SLOW)

    def encode(self, text: str, *, add_special_tokens: bool = True) -> bytes:
        """The text's token ids, flat little-endian uint32. add_special_tokens: what the model puts around a text (BOS).

        PromptError: half a surrogate pair in the text.
        """
        try:
            return self._encode(text, add_special_tokens)
        except UnicodeEncodeError as error:
            raise _not_unicode() from error

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of token ids, special tokens included."""
        return str(self._tokenizer.decode(list(token_ids), skip_special_tokens=False))

    def chat(self, body: Mapping[str, Any]) -> bytes:
        """The token ids of a /v1/chat/completions body. PromptError, NotTokenizable.

        Read: messages, tools, documents, add_generation_prompt, continue_final_message, chat_template_kwargs,
        reasoning_effort, add_special_tokens (off unless asked for: the template writes them).
        """
        if SHAPING.isdisjoint(body):
            return self._plain_chat(body)
        _refuse_truncation(body)
        return self.encode(self.render(body), add_special_tokens=bool(body.get("add_special_tokens", False)))

    def render(self, body: Mapping[str, Any]) -> str:
        """The text of a /v1/chat/completions body: the chat template, applied. PromptError, NotTokenizable."""
        options = _options(body)
        tools = options.pop("tools", None) or conversation.tools_of(body.get("tools"))
        documents = body.get("documents") or options.pop("documents", None)
        template = self._template(with_tools=tools is not None)
        generate, resume = bool(body.get("add_generation_prompt", True)), bool(body.get("continue_final_message"))
        if generate and resume:
            raise PromptError(
                "Cannot set both `continue_final_message` and `add_generation_prompt` to True.", "continue_final_message"
            )
        messages = conversation.messages_of(body.get("messages"), template.content_format)
        if not messages:
            raise PromptError("'messages' must have at least one message", "messages")
        return template.render(
            messages,
            tools=tools,
            documents=documents,
            add_generation_prompt=generate,
            continue_final_message=resume,
            variables={**self._special_tokens, **options},
        )

    def _plain_chat(self, body: Mapping[str, Any]) -> bytes:
        """`chat` of a body with nothing in it but messages."""
        template = self._default or self._template(with_tools=False)
        named = self._plain.copy()
        chat = named["messages"] = conversation.messages_of(body.get("messages"), template.content_format)
        if not chat:
            raise PromptError("'messages' must have at least one message", "messages")
        text = template.text(named)
        try:
            return self._encode(text, False)
        except UnicodeEncodeError as error:
            raise _not_unicode() from error

    def completion(self, prompt: object, *, add_special_tokens: bool = True, param: str = "prompt") -> list[bytes]:
        """Token ids of every prompt of a /v1/completions body: a text, texts, token ids, or lists of token ids.

        param: the field that `prompt` comes from, for the message of a PromptError.
        """
        if isinstance(prompt, str):
            return [self.encode(prompt, add_special_tokens=add_special_tokens)]
        if isinstance(prompt, list) and prompt:
            if all(isinstance(item, str) for item in prompt):
                return [self.encode(text, add_special_tokens=add_special_tokens) for text in prompt]
            if isinstance(prompt[0], list):
                return [_packed(ids, param) for ids in prompt]
            return [_packed(prompt, param)]
        raise PromptError(f"'{param}' must be a string, a list of strings, token ids, or a list of lists of token ids", param)

    def responses(self, body: Mapping[str, Any]) -> bytes:
        """The token ids of a /v1/responses body. PromptError, NotTokenizable.

        vLLM encodes the rendered chat with special tokens here, unlike a chat: a model that adds a BOS gets two.
        """
        return self.encode(self.render(responses.chat_body(body)), add_special_tokens=True)

    def messages(self, body: Mapping[str, Any]) -> bytes:
        """The token ids of a /v1/messages body (Anthropic's API). PromptError, NotTokenizable."""
        return self.chat(anthropic.chat_body(body))

    def prompts(self, path: str, body: Mapping[str, Any]) -> list[bytes]:
        """The token ids of every prompt in a request body, by the path that it was sent to. PromptError, NotTokenizable."""
        if type(body) is not dict and not isinstance(body, Mapping):
            raise PromptError("the request body must be a JSON object")
        of_path = self._by_path.get(path)
        if of_path is None:
            raise NotTokenizable(f"path {path}")
        return of_path(body)

    def usual(self, path: str, body: object) -> bytes | None:
        """`prompts` of a chat of nothing but messages that a template gets as they are, in fewer steps. None: it is another,
        or wrong in some way that `prompts` says."""
        if path != CHAT_PATH or type(body) is not dict or not SHAPING.isdisjoint(body):
            return None
        messages = body.get("messages")
        if type(messages) is not list or conversation.plain_until(messages) != len(messages):
            return None
        return self._of_plain(messages)

    def of_texts(self, messages: list[Any]) -> bytes | None:
        """`usual` of a chat's messages that have no more than a role and a content each, both strings."""
        return self._of_plain(messages) if conversation.are_plain(messages) else None

    def _of_plain(self, messages: list[dict[str, str]]) -> bytes | None:
        template = self._default
        if not messages or template is None or template.content_format != "string":
            return None
        named = self._plain.copy()
        named["messages"] = messages
        try:
            return self._encode(template.text(named), False)
        except Exception:
            return None

    def _template(self, *, with_tools: bool) -> ChatTemplate:
        template = self._templates.get("tool_use") if with_tools else None
        template = template or self._default
        if template is None:
            raise NotTokenizable("the model has no chat template")
        return template

    def _chat_of(self, body: Mapping[str, Any]) -> list[bytes]:
        return [self.chat(body)]

    def _completion_of(self, body: Mapping[str, Any]) -> list[bytes]:
        if body.get("prompt_embeds") is not None:
            raise NotTokenizable("prompt_embeds")
        _refuse_truncation(body)
        if body.get("prompt") in (None, "", []):
            raise PromptError("Either prompt or prompt_embeds must be provided and non-empty.", "prompt")
        return self.completion(body["prompt"], add_special_tokens=bool(body.get("add_special_tokens", True)))

    def _embedding_of(self, body: Mapping[str, Any]) -> list[bytes]:
        if "messages" in body:
            return [self.chat({"add_generation_prompt": False, **body})]
        _refuse_truncation(body)
        add_special_tokens = bool(body.get("add_special_tokens", True))
        return self.completion(body.get("input"), add_special_tokens=add_special_tokens, param="input")


def _options(body: Mapping[str, Any]) -> dict[str, Any]:
    """The template's variables that the request sets."""
    if _OPTIONS.isdisjoint(body):
        return {}
    given = body.get("chat_template_kwargs") or {}
    if not isinstance(given, Mapping):
        raise PromptError("'chat_template_kwargs' must be an object", "chat_template_kwargs")
    if body.get("chat_template") or not RESERVED.isdisjoint(given):
        raise NotTokenizable("the request brings its own chat template")
    options = {name: value for name, value in given.items() if value not in UNSET}
    effort = body.get("reasoning_effort")
    if effort is not None:
        options["reasoning_effort"] = effort
        if "enable_thinking" not in given:
            options["enable_thinking"] = effort != "none"
    return options


def _refuse_truncation(body: Mapping[str, Any]) -> None:
    """Truncation depends on the engine's limits: which tokens are left, only it knows."""
    if body.get("truncate_prompt_tokens") is not None:
        raise NotTokenizable("truncate_prompt_tokens")


def _not_unicode() -> PromptError:
    return PromptError("the prompt is not valid Unicode: it has an unpaired surrogate")


def _packed(ids: object, param: str) -> bytes:
    try:
        return pack_tokens(ids)  # type: ignore[arg-type]  # whatever it is, it is checked here
    except (TypeError, OverflowError) as error:
        raise PromptError(f"'{param}' must have token ids: integers from 0 to 4294967295", param) from error
