"""One KV-event payload to typed events.

A payload is msgpack: `[ts, [event, ...], data_parallel_rank]`. Up to vLLM 0.23 an event is an array with its type first, from
0.24 on a map with a `type`. Fields only ever came at the end (arrays) or by name (maps): what is not known here is ignored.
Hashes are integers, or bytes where the engine is told so; both are opaque keys.

msgspec cannot decode a union of arrays and maps, so there is a decoder for each generation; a payload is tried with the one
that fitted last time. An event of an unknown type is dropped, a known one that does not parse makes the payload malformed.
"""

from __future__ import annotations

from typing import Any

import msgspec

EngineHash = int | bytes

_BROKEN = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What msgspec raises on bytes that are not (whole, valid) msgpack."""


class MalformedPayload(ValueError):
    """A payload that is not a batch of KV events. `kind` is for counting: a few words, the same for the same defect."""

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(f"{kind}: {detail}")
        self.kind = kind


class _StoredArray(msgspec.Struct, array_like=True, tag="BlockStored", gc=False):
    block_hashes: list[EngineHash]
    parent_block_hash: EngineHash | None
    token_ids: list[int]
    block_size: int
    lora_id: int | None = None
    medium: str | None = None
    lora_name: str | None = None
    extra_keys: list[Any] | None = None
    group_idx: int | None = None
    kv_cache_spec_kind: str | None = None


class _StoredMap(msgspec.Struct, tag="BlockStored", tag_field="type", gc=False):
    block_hashes: list[EngineHash]
    token_ids: list[int]
    block_size: int
    parent_block_hash: EngineHash | None = None
    lora_id: int | None = None
    medium: str | None = None
    lora_name: str | None = None
    extra_keys: list[Any] | None = None
    group_idx: int | None = None
    kv_cache_spec_kind: str | None = None


class _RemovedArray(msgspec.Struct, array_like=True, tag="BlockRemoved", gc=False):
    block_hashes: list[EngineHash]
    medium: str | None = None
    group_idx: int | None = None


class _RemovedMap(msgspec.Struct, tag="BlockRemoved", tag_field="type", gc=False):
    block_hashes: list[EngineHash]
    medium: str | None = None
    group_idx: int | None = None


class _ClearedArray(msgspec.Struct, array_like=True, tag="AllBlocksCleared", gc=False):
    pass


class _ClearedMap(msgspec.Struct, tag="AllBlocksCleared", tag_field="type", gc=False):
    pass


BlockStored = _StoredArray | _StoredMap
BlockRemoved = _RemovedArray | _RemovedMap
AllBlocksCleared = _ClearedArray | _ClearedMap
STORED = (_StoredArray, _StoredMap)
REMOVED = (_RemovedArray, _RemovedMap)
CLEARED = (_ClearedArray, _ClearedMap)
_KNOWN = ("BlockStored", "BlockRemoved", "AllBlocksCleared")

_ArrayEvent = _StoredArray | _RemovedArray | _ClearedArray
_MapEvent = _StoredMap | _RemovedMap | _ClearedMap
Event = _ArrayEvent | _MapEvent


class _ArrayBatch(msgspec.Struct, array_like=True, gc=False):
    ts: float
    events: list[_ArrayEvent]
    rank: int | None = None


class _MapBatch(msgspec.Struct, array_like=True, gc=False):
    ts: float
    events: list[_MapEvent]
    rank: int | None = None


class _RawBatch(msgspec.Struct, array_like=True, gc=False):
    ts: float
    events: list[msgspec.Raw]
    rank: int | None = None


Batch = _ArrayBatch | _MapBatch
"""`ts`: Unix time of the engine step; `events`: in the order in which they happened; `rank`: None in old vLLM."""

_ARRAY_BATCH: msgspec.msgpack.Decoder[_ArrayBatch] = msgspec.msgpack.Decoder(_ArrayBatch)
_MAP_BATCH: msgspec.msgpack.Decoder[_MapBatch] = msgspec.msgpack.Decoder(_MapBatch)
_RAW_BATCH = msgspec.msgpack.Decoder(_RawBatch)
_ARRAY_EVENT: msgspec.msgpack.Decoder[_ArrayEvent] = msgspec.msgpack.Decoder(_ArrayEvent)
_MAP_EVENT: msgspec.msgpack.Decoder[_MapEvent] = msgspec.msgpack.Decoder(_MapEvent)


class Decoder:
    """Remembers which wire generation its engine speaks; `unknown_events` counts those of types not known here."""

    def __init__(self) -> None:
        self._maps_first = True
        self.unknown_events = 0

    def decode(self, payload: bytes) -> Batch:
        """MalformedPayload: not msgpack, not a batch, or an event of a known type with fields of the wrong kind."""
        try:
            return _MAP_BATCH.decode(payload) if self._maps_first else _ARRAY_BATCH.decode(payload)
        except msgspec.ValidationError:
            pass
        except _BROKEN as error:
            raise MalformedPayload("not msgpack", str(error)) from error
        try:
            batch: Batch = _ARRAY_BATCH.decode(payload) if self._maps_first else _MAP_BATCH.decode(payload)
        except msgspec.ValidationError:
            return self._decode_one_by_one(payload)
        except _BROKEN as error:
            raise MalformedPayload("not msgpack", str(error)) from error
        self._maps_first = not self._maps_first
        return batch

    def _decode_one_by_one(self, payload: bytes) -> Batch:
        try:
            raw = _RAW_BATCH.decode(payload)
        except msgspec.ValidationError as error:
            raise MalformedPayload("not a batch", str(error)) from error
        except _BROKEN as error:
            raise MalformedPayload("not msgpack", str(error)) from error
        batch = _MapBatch(ts=raw.ts, events=[], rank=raw.rank)
        for item in raw.events:
            event = self._decode_event(bytes(item))
            if event is not None:
                batch.events.append(event)  # type: ignore[arg-type]  # consumers take either generation
        return batch

    def _decode_event(self, data: bytes) -> Event | None:
        plain = _plain(data)
        is_map = isinstance(plain, dict)
        tag = plain.get("type") if is_map else plain[0] if isinstance(plain, list) and plain else None
        if not isinstance(tag, str):
            raise MalformedPayload("event without a type", repr(plain)[:80])
        if tag not in _KNOWN:
            self.unknown_events += 1
            return None
        try:
            return _MAP_EVENT.decode(data) if is_map else _ARRAY_EVENT.decode(data)
        except _BROKEN as error:
            raise MalformedPayload(f"bad {tag}", str(error)) from error


def _plain(data: bytes) -> Any:
    try:
        return msgspec.msgpack.decode(data)
    except (*_BROKEN, TypeError) as error:  # TypeError: a map whose key is no key in Python
        raise MalformedPayload("not an event", str(error)) from error
