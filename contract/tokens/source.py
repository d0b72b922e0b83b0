"""Where a model's tokenizer comes from: the shipped one, a directory, or a hub."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from contract.tokens.errors import TokenizerUnavailable

BUILTIN = "headway-8k"
"""Name of the shipped tokenizer; always loadable, offline too."""

BUILTIN_FOLDER = Path(__file__).parents[1] / "tokenizers" / BUILTIN


@dataclass(frozen=True)
class Source:
    """A tokenizer and what its model's chats look like.

    serialized: the tokenizer as tokenizer.json; templates: name -> chat template ('default', 'tool_use');
    special_tokens: 'bos_token' and so on -> text, as chat templates name them.
    """

    tokenizer: Tokenizer
    serialized: str
    templates: Mapping[str, str]
    special_tokens: Mapping[str, str]

    def chat_template(self, *, with_tools: bool) -> str | None:
        """The chat template for a conversation, None when the model has none."""
        if with_tools and "tool_use" in self.templates:
            return self.templates["tool_use"]
        return self.templates.get("default")


def read(spec: str) -> Source:
    """The source that `spec` names: BUILTIN, a directory, or a name on the hub. TokenizerUnavailable."""
    if spec == BUILTIN:
        return from_folder(BUILTIN_FOLDER)
    folder = Path(spec).expanduser()
    if (folder / "tokenizer.json").is_file():
        return from_folder(folder)
    return from_hub(spec)


def from_folder(folder: Path) -> Source:
    """The source in a directory with tokenizer.json, tokenizer_config.json and perhaps chat_template.jinja."""
    try:
        serialized = (folder / "tokenizer.json").read_text("utf-8")
        tokenizer = Tokenizer.from_str(serialized)
        path = folder / "tokenizer_config.json"
        config = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    except Exception as error:  # `tokenizers` raises bare Exception for a file that it does not understand
        raise TokenizerUnavailable(f"tokenizer in {folder} cannot be read: {error}") from error
    return Source(_bare(tokenizer), serialized, _templates(folder, config), _special_tokens(config))


def from_hub(name: str) -> Source:
    """The source of a hub name (or a directory without tokenizer.json), by transformers. It respects HF_HUB_OFFLINE."""
    from transformers import AutoTokenizer

    try:
        loaded = AutoTokenizer.from_pretrained(name)
        backend = loaded.backend_tokenizer
    except Exception as error:  # whatever goes wrong in there, there is no tokenizer
        raise TokenizerUnavailable(
            f"{name!r} is no directory with tokenizer.json, and transformers cannot load it: {error}"
        ) from error
    templates = loaded.chat_template or {}
    templates = {"default": templates} if isinstance(templates, str) else dict(templates)
    serialized = backend.to_str()
    return Source(_bare(Tokenizer.from_str(serialized)), serialized, templates, loaded.special_tokens_map)


def _bare(tokenizer: Tokenizer) -> Tokenizer:
    """Without the truncation and padding that a tokenizer.json may bring: engines switch them off."""
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _templates(folder: Path, config: Mapping[str, Any]) -> dict[str, str]:
    found: dict[str, str] = {}
    configured = config.get("chat_template")
    if isinstance(configured, str):
        found["default"] = configured
    elif isinstance(configured, list):
        found.update({entry["name"]: entry["template"] for entry in configured})
    path = folder / "chat_template.jinja"
    if path.is_file():
        found["default"] = path.read_text("utf-8")
    return found


def _special_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    """bos_token and so on, in either of the forms that tokenizer_config.json knows."""
    names = [name for name in config if name.endswith("_token")]
    values = {name: config[name]["content"] if isinstance(config[name], dict) else config[name] for name in names}
    return {name: value for name, value in values.items() if isinstance(value, str)}
