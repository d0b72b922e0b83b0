"""KV events as vLLM puts them on the wire: `[topic, 8-byte big-endian sequence, msgpack]`.

The payload is `[unix time, [event, ...], data-parallel rank]`. Events are maps with a `type` from vLLM 0.24 on (`map`) and
arrays that begin with the type up to 0.23 (`array`, fields as in 0.22-0.23). Hashes are the low 64 bits of the engine's own
hash. Pure: bytes in, bytes out. `publisher` owns the sockets.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from emulator.block_pool import Cleared, Event, Removed, Stored

FORMATS = ("map", "array")
TOPIC = "kv-events"
BUFFER_STEPS = 10_000
"""Batches kept for replay."""
END_SEQUENCE = (-1).to_bytes(8, "big", signed=True)
"""Sequence of the message that ends a replay."""

_MEDIUM = "GPU"
_GROUP = 0
_KIND = "full_attention"

_encoder = msgspec.msgpack.Encoder()


class EventEncoder:
    """Engine events to payload bytes. loras: adapters in the order of their ids, 1 and up; others are numbered as they come."""

    def __init__(self, *, block_size: int, format: str = "map", loras: Sequence[str] = (), rank: int = 0) -> None:
        """ValueError: not one of FORMATS."""
        if format not in FORMATS:
            raise ValueError(f"KV event format {format!r} is not one of {', '.join(FORMATS)}")
        self._block_size = block_size
        self._maps = format == "map"
        self._lora_ids = {name: number for number, name in enumerate(loras, start=1)}
        self._rank = rank

    def encode(self, events: Sequence[Event], unix_s: float) -> bytes:
        """The payload of one batch."""
        convert = self._map if self._maps else self._array
        return _encoder.encode([unix_s, [convert(event) for event in events], self._rank])

    def _map(self, event: Event) -> dict[str, Any]:
        if isinstance(event, Stored):
            fields = {
                "type": "BlockStored",
                "block_hashes": event.hashes,
                "parent_block_hash": event.parent,
                "token_ids": array("I", event.token_ids).tolist(),
                "block_size": self._block_size,
                "lora_id": self._lora_id(event.origin.lora),
                "medium": _MEDIUM,
                "lora_name": event.origin.lora or None,
                "extra_keys": extra_keys(event),
                "group_idx": _GROUP,
                "kv_cache_spec_kind": _KIND,
            }
            if event.origin.session:
                fields["session_id"] = event.origin.session
            return fields
        if isinstance(event, Removed):
            return {"type": "BlockRemoved", "block_hashes": [event.hash], "medium": _MEDIUM, "group_idx": _GROUP}
        assert isinstance(event, Cleared)
        return {"type": "AllBlocksCleared"}

    def _lora_id(self, name: str) -> int | None:
        return self._lora_ids.setdefault(name, len(self._lora_ids) + 1) if name else None

    def _array(self, event: Event) -> list[Any]:
        fields = self._map(event)
        if isinstance(event, Stored):
            # Sessions came after arrays; the sliding window is a place that arrays cannot leave out.
            fields.pop("session_id", None)
            fields["kv_cache_spec_sliding_window"] = None
        return list(fields.values())


def extra_keys(event: Stored) -> list[list[str] | None]:
    """Per block what else is hashed: the adapter's name on every block, the salt on the first of a sequence."""
    lora, cache_salt, _ = event.origin
    adapter = [lora] if lora else []
    rest = adapter or None
    keys: list[list[str] | None] = [rest] * len(event.hashes)
    if event.parent is None and cache_salt:
        keys[0] = [*adapter, cache_salt]
    return keys


class ReplayBuffer:
    """Numbered batches, the newest `capacity` of them; the sequence starts at 0 with the engine."""

    def __init__(self, capacity: int = BUFFER_STEPS) -> None:
        self._batches: deque[tuple[int, bytes]] = deque(maxlen=capacity)
        self._next = 0

    @property
    def next_sequence(self) -> int:
        return self._next

    def append(self, payload: bytes) -> int:
        """Number a batch and keep it. Returns its sequence."""
        sequence = self._next
        self._batches.append((sequence, payload))
        self._next += 1
        return sequence

    def since(self, start: int) -> Iterator[tuple[int, bytes]]:
        """Kept batches from `start` on; what is older than the buffer is silently missing."""
        return ((sequence, payload) for sequence, payload in self._batches if sequence >= start)


def frames(topic: bytes, sequence: int, payload: bytes) -> list[bytes]:
    """One PUB message."""
    return [topic, sequence.to_bytes(8, "big"), payload]
