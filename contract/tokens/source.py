"""Where a model's tokenizer comes from: the shipped one, a directory, or a hub.

The engine loads with transformers' AutoTokenizer, which for some tokenizer classes changes what tokenizer.json says (tokens
added, BOS and EOS, prefix spaces). Where it provably changes nothing, the file is read as it is, which spares 0.6 s of imports;
else AutoTokenizer loads it here, too.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from contract.tokens.errors import TokenizerUnavailable

BUILTIN = "headway-8k"
"""Name of the shipped tokenizer; always loadable, offline too."""

BUILTIN_FOLDER = Path(__file__).parents[1] / "tokenizers" / BUILTIN

PLAIN_CLASSES = (None, "PreTrainedTokenizerFast", "TokenizersBackend")
"""Tokenizer classes that take tokenizer.json as it is."""

CHANGING = ("add_bos_token", "add_eos_token", "add_prefix_space", "auto_map")
"""Settings in tokenizer_config.json by which even a plain class changes it."""

_importing = threading.Lock()
"""Threads that import transformers at once fail: what it loads lazily is not there yet for the second of them."""


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


def read(spec: str) -> Source:
    """The source that `spec` names: BUILTIN, a directory, or a name on the hub. TokenizerUnavailable."""
    folder = BUILTIN_FOLDER if spec == BUILTIN else Path(spec).expanduser()
    if not (folder / "tokenizer.json").is_file():
        return _by_transformers(spec)
    try:
        serialized = (folder / "tokenizer.json").read_text("utf-8")
        config = _json(folder / "tokenizer_config.json")
        if not _is_plain(json.loads(serialized), config):
            return _by_transformers(str(folder))
        tokenizer = _bare(Tokenizer.from_str(serialized))
    except TokenizerUnavailable:
        raise
    except Exception as error:  # `tokenizers` raises bare Exception for a file that it does not understand
        raise TokenizerUnavailable(f"the tokenizer in {folder} cannot be read: {error}") from error
    return Source(tokenizer, serialized, _templates(folder, config), _special_tokens(config))


def _by_transformers(name: str) -> Source:
    """The source of a directory or a hub name, as the engine loads it. It keeps to HF_HUB_OFFLINE and the hub's cache."""
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # such as that there is no PyTorch: nobody needs it here
    try:
        with _importing:
            from transformers import AutoTokenizer
        loaded = AutoTokenizer.from_pretrained(name)
        serialized = loaded.backend_tokenizer.to_str()
        tokenizer = _bare(Tokenizer.from_str(serialized))
    except Exception as error:  # whatever goes wrong in there, there is no tokenizer
        tried = f"{name!r} is no directory with a plain tokenizer.json, and transformers cannot load it"
        raise TokenizerUnavailable(f"{tried}: {type(error).__name__}: {error}") from error
    templates = loaded.chat_template or {}
    return Source(
        tokenizer,
        serialized,
        {"default": templates} if isinstance(templates, str) else dict(templates),
        {name: str(token) for name, token in loaded.special_tokens_map.items() if isinstance(token, str)},
    )


def _json(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text("utf-8"))) if path.is_file() else {}


def _is_plain(spec: Mapping[str, Any], config: Mapping[str, Any]) -> bool:
    """Would AutoTokenizer leave this tokenizer.json as it is?"""
    if config.get("tokenizer_class") not in PLAIN_CLASSES or any(config.get(name) for name in CHANGING):
        return False
    added = {token["id"]: token for token in spec.get("added_tokens") or []}
    listed = config.get("added_tokens_decoder") or {}
    if any(added.get(int(id_), {}) | token != added.get(int(id_)) for id_, token in listed.items()):
        return False
    return set(_special_tokens(config).values()) <= {token["content"] for token in added.values()}


def _bare(tokenizer: Tokenizer) -> Tokenizer:
    """Without the truncation and padding that a tokenizer.json may bring: engines switch them off."""
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _templates(folder: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """Chat templates from all the places that they are kept in; a file wins over the configuration."""
    found: dict[str, str] = {}
    configured = config.get("chat_template")
    if isinstance(configured, list):
        found.update({entry["name"]: entry["template"] for entry in configured})
    elif isinstance(configured or (configured := _json(folder / "chat_template.json").get("chat_template")), str):
        found["default"] = str(configured)
    for path in sorted((folder / "additional_chat_templates").glob("*.jinja")):
        found[path.stem] = path.read_text("utf-8")
    if (folder / "chat_template.jinja").is_file():
        found["default"] = (folder / "chat_template.jinja").read_text("utf-8")
    return found


def _special_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    """bos_token and so on, in either of the forms that tokenizer_config.json knows."""
    names = [name for name in config if name.endswith("_token")]
    values = {name: config[name]["content"] if isinstance(config[name], dict) else config[name] for name in names}
    return {name: value for name, value in values.items() if isinstance(value, str)}
