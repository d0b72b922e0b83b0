"""What besides its tokens tells a block apart: LoRA adapter, `cache_salt`, multimodal content.

`extra_keys` of a BlockStored has, per block, None or a list. Two forms exist:

    untagged  ["sql", ["image-id", 3], "tenant-b"]     LoRA name, (multimodal id, offset), salt: told apart by their kind
    tagged    [["lora", "sql", path], ["mm", "image-id", 3], ["cache_salt", "tenant-b"]]

The salt comes with the first block of a prompt only. LoRA name and salt go into the root of the chain, where the caller's side
puts them too; anything else becomes bytes that are hashed with its block.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from contract import blocks
from worker_agent.kv_events import BlockStored

_PACK = msgspec.msgpack.Encoder()


def lora_of(event: BlockStored) -> str:
    """The adapter's name, "" for the base model. Engines before 0.14 say only a number: then a name that no caller uses."""
    if event.lora_name is not None:
        return event.lora_name
    return f"#{event.lora_id}" if event.lora_id is not None else ""


def first_block_salt(extra_keys: Sequence[Any], lora: str) -> str:
    """The `cache_salt` of a prompt's first block, "" for none."""
    if not extra_keys or not extra_keys[0]:
        return ""
    return _split(extra_keys[0], lora, may_have_salt=True)[0]


def block_extras(extra_keys: Sequence[Any], lora: str, *, first: bool) -> list[bytes]:
    """Per block the bytes that are hashed with it, b"" for none. first: the list begins with a prompt's first block."""
    return [
        _split(keys, lora, may_have_salt=first and position == 0)[1] if keys else b""
        for position, keys in enumerate(extra_keys)
    ]


def chain_with_extras(tokens: bytes, block_size: int, parent: int, extras: list[bytes]) -> list[int]:
    """Block hashes of flat uint32 tokens after `parent`; extras: as `block_extras`, those missing at the end are none."""
    step = 4 * block_size
    hashes: list[int] = []
    for position, start in enumerate(range(0, len(tokens), step)):
        extra = extras[position] if position < len(extras) else b""
        parent = blocks.extend(parent, tokens[start : start + step], extra)
        hashes.append(parent)
    return hashes


def _split(keys: list[Any], lora: str, *, may_have_salt: bool) -> tuple[str, bytes]:
    """(salt, everything that is neither LoRA nor salt) of one block."""
    salt, lora_seen = "", False
    rest: list[Any] = []
    for key in keys:
        if isinstance(key, str):
            if lora and key == lora and not lora_seen:
                lora_seen = True
            elif may_have_salt and not salt:
                salt = key
            else:
                rest.append(key)
        elif _is_tagged(key, "lora"):
            lora_seen = True
        elif _is_tagged(key, "cache_salt"):
            salt = str(key[1])
        elif _is_tagged(key, "mm") and len(key) == 3:
            rest.append(list(key[1:]))
        else:
            rest.append(key)
    return salt, _PACK.encode(rest) if rest else b""


def _is_tagged(key: Any, tag: str) -> bool:
    # An untagged (multimodal id, offset) has a number second; a tag is followed by text.
    return isinstance(key, list | tuple) and len(key) >= 2 and key[0] == tag and isinstance(key[1], str)
