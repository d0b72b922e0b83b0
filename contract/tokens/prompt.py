"""Request bodies to token ids, for one model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from contract.blocks import pack_tokens
from contract.tokens import conversation, template
from contract.tokens.encoder import Encoder
from contract.tokens.errors import NotTokenizable, PromptError
from contract.tokens.source import Source


class PromptTokenizer:
    """One model's tokenizer and chat template. Every method may be called from several threads at once."""

    def __init__(self, name: str, source: Source, encoder: Encoder, *, fast: bool) -> None:
        self.name = name
        self.fast = fast
        self._source = source
        self._encoder = encoder

    def encode(self, text: str, *, add_special_tokens: bool = True) -> bytes:
        """The text's token ids, flat little-endian uint32. add_special_tokens: what the model puts around a text (BOS)."""
        return self._encoder.encode(text, add_special_tokens)

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of token ids, special tokens included."""
        return str(self._source.tokenizer.decode(list(token_ids), skip_special_tokens=False))

    def chat(self, body: Mapping[str, Any]) -> bytes:
        """The token ids of a /v1/chat/completions body. PromptError, NotTokenizable."""
        return self.encode(self.render(body), add_special_tokens=bool(body.get("add_special_tokens", False)))

    def render(self, body: Mapping[str, Any]) -> str:
        """The text of a /v1/chat/completions body: the chat template, applied. PromptError, NotTokenizable."""
        tools = conversation.tools_of(body.get("tools"))
        source = self._source.chat_template(with_tools=tools is not None)
        if source is None:
            raise NotTokenizable("no chat template")
        options = dict(body.get("chat_template_kwargs") or {})
        if body.get("chat_template") or "chat_template" in options or "tokenize" in options:
            raise NotTokenizable("chat template of the request")
        effort = body.get("reasoning_effort")
        if effort is not None:
            options.setdefault("enable_thinking", effort != "none")
            options["reasoning_effort"] = effort
        generate, resume = body.get("add_generation_prompt", True), body.get("continue_final_message", False)
        if generate and resume:
            raise PromptError(
                "Cannot set both `continue_final_message` and `add_generation_prompt` to True.", "continue_final_message"
            )
        return template.render(
            source,
            conversation.messages_of(body.get("messages"), template.content_format(source)),
            tools=tools,
            documents=body.get("documents"),
            add_generation_prompt=bool(generate),
            continue_final_message=bool(resume),
            variables={**self._source.special_tokens, **options},
        )

    def completion(self, prompt: object, *, add_special_tokens: bool = True) -> list[bytes]:
        """Token ids of every prompt of a /v1/completions body: a text, texts, token ids, or lists of token ids."""
        if isinstance(prompt, str):
            return [self.encode(prompt, add_special_tokens=add_special_tokens)]
        if isinstance(prompt, list) and prompt:
            if all(isinstance(item, str) for item in prompt):
                return [self.encode(text, add_special_tokens=add_special_tokens) for text in prompt]
            if isinstance(prompt[0], list):
                return [_packed(ids) for ids in prompt]
            return [_packed(prompt)]
        raise PromptError("'prompt' must be a string, a list of strings, token ids, or a list of lists of token ids", "prompt")

    def prompts(self, path: str, body: Mapping[str, Any]) -> list[bytes]:
        """The token ids of every prompt in a request body, by the path that it is for. PromptError, NotTokenizable."""
        if path in ("/v1/chat/completions", "/v1/chat/completions/render") or (path == "/tokenize" and "messages" in body):
            return [self.chat(body)]
        if path in ("/v1/completions", "/v1/completions/render", "/tokenize"):
            return self.completion(body.get("prompt"), add_special_tokens=bool(body.get("add_special_tokens", True)))
        if path == "/v1/embeddings":
            return self.completion(body.get("input"), add_special_tokens=bool(body.get("add_special_tokens", True)))
        raise NotTokenizable(f"path {path}")


def _packed(ids: object) -> bytes:
    try:
        return pack_tokens(ids)  # type: ignore[arg-type]
    except (TypeError, OverflowError) as error:
        raise PromptError("token ids must be integers from 0 to 4294967295", "prompt") from error
