"""A call's prompts as token ids, and the limits they must keep. Pure."""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from typing import Any

from contract.tokens import NotTokenizable, PromptError
from emulator import calls, errors
from emulator.texts import Texts


def tokenize(path: str, body: Mapping[str, Any], texts: Texts) -> list[bytes]:
    """Flat uint32 token ids of every prompt. ApiError 400: a prompt that this model cannot read."""
    try:
        return _tokenize(path, body, texts)
    except PromptError as error:
        raise errors.invalid(error.message, error.param) from None
    except UnicodeEncodeError:
        raise errors.invalid("The prompt holds a lone surrogate, which is no text.") from None
    except NotTokenizable as error:
        raise errors.invalid(f"This model does not support this kind of input: {error.reason}") from None


def _tokenize(path: str, body: Mapping[str, Any], texts: Texts) -> list[bytes]:
    try:
        return texts.tokenizer.prompts(path, body)
    except NotTokenizable:
        if path not in (calls.RESPONSES, calls.MESSAGES):
            raise
        return texts.tokenizer.prompts(calls.CHAT, {"messages": as_chat(path, body)})


def as_chat(path: str, body: Mapping[str, Any]) -> list[Any]:
    """The messages that a /v1/responses or /v1/messages body means."""
    system = body.get("instructions") if path == calls.RESPONSES else body.get("system")
    given = body.get("input") if path == calls.RESPONSES else body.get("messages")
    if isinstance(system, list):
        system = "".join(str(part.get("text", "")) for part in system if isinstance(part, dict))
    messages = [{"role": "system", "content": system}] if system else []
    if isinstance(given, str):
        return [*messages, {"role": "user", "content": given}]
    if not isinstance(given, list):
        raise errors.unprocessable("list_type", "body.input", "Input should be a valid list", given)
    return [*messages, *(_message(item) for item in given)]


def _message(item: Any) -> Any:
    if not isinstance(item, dict) or not isinstance(item.get("content"), list):
        return item
    text = "".join(str(part.get("text", "")) for part in item["content"] if isinstance(part, dict))
    return {"role": item.get("role", "user"), "content": text}


def check(prompts: Sequence[bytes], *, max_model_len: int, vocab_size: int, max_tokens: int | None) -> None:
    """ApiError 400: empty, too long (with the asked-for output), or a token that does not exist."""
    if max_tokens is not None and max_tokens > max_model_len:
        message = (
            f"max_tokens={max_tokens} cannot be greater than max_model_len={max_model_len}. Please request fewer output tokens."
        )
        raise errors.invalid(message, "max_tokens", max_tokens)
    for prompt in prompts:
        _check_one(prompt, max_model_len, vocab_size, max_tokens)


def _check_one(prompt: bytes, max_model_len: int, vocab_size: int, max_tokens: int | None) -> None:
    count = len(prompt) // 4
    if count == 0:
        raise errors.invalid("Either prompt or prompt_embeds must be provided and non-empty.", "prompt")
    if count > max_model_len or (count == max_model_len and max_tokens is None):
        # The engine stops counting one token above the limit.
        raise errors.too_long(max_model_len, min(count, max_model_len + 1))
    if max_tokens is not None and count + max_tokens > max_model_len:
        raise errors.too_long(max_model_len, count, max_tokens)
    ids = array("I")
    ids.frombytes(prompt)
    highest = max(ids)
    if highest >= vocab_size:
        raise errors.ApiError(400, "BadRequestError", f"Token id {highest} is out of vocabulary")
