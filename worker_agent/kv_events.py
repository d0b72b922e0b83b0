"""One KV-event payload to typed events.

A payload is msgpack: `[ts, [event, ...], data_parallel_rank]`. Up to vLLM 0.23 an event is an array with its type first, from
0.24 on a map with a `type`. Fields only ever came at the end (arrays) or by name (maps): what is not known here is ignored.
Hashes are integers, or bytes where the engine is told so; both are opaque keys.

msgspec cannot decode a union of arrays and maps, so there is a decoder for each generation; a payload is tried with the one
that fitted last time. An event of an unknown type is dropped, a known one that does not parse makes the payload malformed.

Nearly all stores say nothing but tokens: no adapter, no extra keys, the GPU, the one KV group. Each generation has a plain
decoder whose types admit only those, so that whoever gets a plain event has nothing left to ask of it. Fields stand in the
order of the wire: msgspec looks for a key where it expects the next.
"""

from __future__ import annotations

from typing import Any, Generic, Literal, NamedTuple, TypeVar, cast, get_args

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


class _StoredMap(msgspec.Struct, tag="BlockStored", tag_field="type", gc=False, kw_only=True):
    block_hashes: list[EngineHash]
    parent_block_hash: EngineHash | None = None
    token_ids: list[int]
    block_size: int
    lora_id: int | None = None
    medium: str | None = None
    lora_name: str | None = None
    extra_keys: list[Any] | None = None
    group_idx: int | None = None
    kv_cache_spec_kind: str | None = None


_FullAttention = Literal["full_attention", "mla_attention", "sink_full_attention"]


class _PlainArray(msgspec.Struct, array_like=True, tag="BlockStored", gc=False):
    block_hashes: tuple[EngineHash, ...]
    parent_block_hash: EngineHash | None
    token_ids: tuple[int, ...]
    block_size: int
    lora_id: None = None
    medium: Literal["GPU"] | None = None
    lora_name: None = None
    extra_keys: tuple[None, ...] | None = None
    group_idx: Literal[0] | None = None
    kv_cache_spec_kind: _FullAttention | None = None


class _PlainMap(msgspec.Struct, tag="BlockStored", tag_field="type", gc=False, kw_only=True):
    block_hashes: tuple[EngineHash, ...]
    parent_block_hash: EngineHash | None = None
    token_ids: tuple[int, ...]
    block_size: int
    lora_id: None = None
    medium: Literal["GPU"] | None = None
    lora_name: None = None
    extra_keys: tuple[None, ...] | None = None
    group_idx: Literal[0] | None = None
    kv_cache_spec_kind: _FullAttention | None = None


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


PlainStored = _PlainArray | _PlainMap
BlockStored = _StoredArray | _StoredMap | PlainStored
BlockRemoved = _RemovedArray | _RemovedMap
AllBlocksCleared = _ClearedArray | _ClearedMap
PLAIN = (_PlainArray, _PlainMap)
STORED = (_StoredArray, _StoredMap, *PLAIN)
REMOVED = (_RemovedArray, _RemovedMap)
CLEARED = (_ClearedArray, _ClearedMap)
FULL_ATTENTION = frozenset(get_args(_FullAttention))
"""Kinds of KV group whose blocks cover the whole prefix; other groups (sliding window, mamba) are ignored."""
_KNOWN = ("BlockStored", "BlockRemoved", "AllBlocksCleared")

_ArrayEvent = _StoredArray | _RemovedArray | _ClearedArray
_MapEvent = _StoredMap | _RemovedMap | _ClearedMap
_PlainArrayEvent = _PlainArray | _RemovedArray | _ClearedArray
_PlainMapEvent = _PlainMap | _RemovedMap | _ClearedMap
Event = _ArrayEvent | _MapEvent | PlainStored
E = TypeVar("E")


class _BatchOf(msgspec.Struct, Generic[E], array_like=True, gc=False):
    ts: float
    events: list[E]
    rank: int | None = None


Batch = _BatchOf[_ArrayEvent] | _BatchOf[_MapEvent] | _BatchOf[_PlainArrayEvent] | _BatchOf[_PlainMapEvent]
"""`ts`: Unix time of the engine step; `events`: in the order in which they happened; `rank`: None in old vLLM."""


class _Wire(NamedTuple):
    """The decoders of a generation."""

    plain: msgspec.msgpack.Decoder[Any]
    whole: msgspec.msgpack.Decoder[Any]
    event: msgspec.msgpack.Decoder[Any]


_ARRAYS = _Wire(
    msgspec.msgpack.Decoder(_BatchOf[_PlainArrayEvent]),
    msgspec.msgpack.Decoder(_BatchOf[_ArrayEvent]),
    msgspec.msgpack.Decoder(_ArrayEvent),
)
_MAPS = _Wire(
    msgspec.msgpack.Decoder(_BatchOf[_PlainMapEvent]),
    msgspec.msgpack.Decoder(_BatchOf[_MapEvent]),
    msgspec.msgpack.Decoder(_MapEvent),
)
_RAW_BATCH = msgspec.msgpack.Decoder(_BatchOf[msgspec.Raw])
NOT_PLAIN_PAYLOADS = 15
"""After a payload that is not plain so many are not tried as such: where adapters are many, a sixteenth is decoded twice."""


class Decoder:
    """Remembers what its engine speaks; `unknown_events` counts those of types not known here."""

    def __init__(self) -> None:
        self._usual, self._other = _MAPS, _ARRAYS
        self._not_plain = 0  # payloads that are not to be tried as plain
        self.unknown_events = 0

    def decode(self, payload: bytes) -> Batch:
        """MalformedPayload: not msgpack, not a batch, or an event of a known type with fields of the wrong kind."""
        try:
            if not self._not_plain:
                return cast("Batch", self._usual.plain.decode(payload))
            self._not_plain -= 1
        except msgspec.ValidationError:
            self._not_plain = NOT_PLAIN_PAYLOADS
        except _BROKEN as error:
            raise MalformedPayload("not msgpack", str(error)) from error
        try:
            return cast("Batch", self._usual.whole.decode(payload))
        except msgspec.ValidationError:
            pass
        except _BROKEN as error:
            raise MalformedPayload("not msgpack", str(error)) from error
        try:
            batch: Batch = self._other.whole.decode(payload)
        except msgspec.ValidationError:
            return self._decode_one_by_one(payload)
        except _BROKEN as error:
            raise MalformedPayload("not msgpack", str(error)) from error
        self._usual, self._other = self._other, self._usual
        self._not_plain = 0
        return batch

    def _decode_one_by_one(self, payload: bytes) -> Batch:
        try:
            raw = _RAW_BATCH.decode(payload)
        except msgspec.ValidationError as error:
            raise MalformedPayload("not a batch", str(error)) from error
        except _BROKEN as error:
            raise MalformedPayload("not msgpack", str(error)) from error
        events = [event for item in raw.events if (event := self._decode_event(bytes(item))) is not None]
        return cast("Batch", _BatchOf(ts=raw.ts, events=events, rank=raw.rank))  # consumers take either generation

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
            return cast("Event", (_MAPS if is_map else _ARRAYS).event.decode(data))
        except _BROKEN as error:
            raise MalformedPayload(f"bad {tag}", str(error)) from error


def _plain(data: bytes) -> Any:
    try:
        return msgspec.msgpack.decode(data)
    except (*_BROKEN, TypeError) as error:  # TypeError: a map whose key is no key in Python
        raise MalformedPayload("not an event", str(error)) from error
