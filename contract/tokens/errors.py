"""What can go wrong between a request body and its token ids."""

from __future__ import annotations


class TokenizerUnavailable(Exception):
    """No tokenizer can be had for a model. The message is for an operator: it says what was tried."""


class PromptError(ValueError):
    """The caller's mistake in a request body.

    message: in the words of the OpenAI API; param: the JSON field that is wrong, None when it is the body as a whole.
    """

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param


_KINDS = frozenset(
    (
        "audio_embeds",
        "audio_url",
        "computer_call_output",
        "document",
        "file",
        "file_search_call",
        "image",
        "image_embeds",
        "image_generation_call",
        "image_pil",
        "image_url",
        "input_audio",
        "input_file",
        "input_image",
        "item_reference",
        "mcp_call",
        "prompt_embeds",
        "redacted_thinking",
        "search_result",
        "server_tool_use",
        "tool_addition",
        "tool_removal",
        "video_url",
        "web_search_call",
        "web_search_tool_result",
    )
)


def kind_of(kind: object) -> str:
    """A `type` that a caller gave, as it may stand in a log: one of the APIs' own, or that it is none."""
    return kind if isinstance(kind, str) and kind in _KINDS else "of another kind"


class NotTokenizable(Exception):
    """A well-formed prompt whose tokens only the engine can know: images, audio, embeddings, a stored response.

    The router sends such a request without prefix credit. `reason` is a short word of ours, never a caller's, for metrics and
    logs.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(f"the prompt's tokens cannot be known outside the engine: {reason}")
        self.reason = reason
