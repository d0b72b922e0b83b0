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


class NotTokenizable(Exception):
    """A well-formed prompt whose tokens only the engine can know: images, audio, embeddings, a stored response.

    The router sends such a request without prefix credit. `reason` is a short word for metrics and logs.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(f"the prompt's tokens cannot be known outside the engine: {reason}")
        self.reason = reason
