"""Every Redis key Headway uses, with its codec and its time to live.

    headway:1:worker:{worker}          string   WorkerRecord, msgpack     TTL, renewed with every report: the registration
    headway:1:reports                  stream   {"r": EngineReport}       bounded; 10 a second and worker
    headway:1:blocks:{worker}          stream   {"d": BlockDelta}         bounded; batches of 10-20 ms
    headway:1:snapshot:{worker}        string   SnapshotManifest          written after its chunks
    headway:1:snapshot:{worker}:{id}:{n}  string  BlockDelta (added only) one chunk of at most SNAPSHOT_CHUNK_BLOCKS blocks
    headway:1:resync:{worker}          string   "1"                       a control plane asks the agent for a new snapshot
    headway:1:outcomes                 stream   {"o": Outcome}            bounded; read by the trainer
    headway:1:model:{model_id}         string   a model bundle            written by the trainer, never changed; the newest few
    headway:1:models                   string   ModelsState, msgpack      which model serves; written after the bundles it names

The number is the version of this file's layout: processes of two versions share a Redis without reading each other.

How a reader reaches the exact block set of a worker, whatever it missed: read the manifest, read its chunks, then apply
every delta of the stream whose `sequence` is above the manifest's, in order and without a hole. The agent numbers deltas
1, 2, 3, ... within an `epoch` (one run of one agent watching one run of an engine); a delta of another epoch, or a hole,
means: start again at the manifest. A manifest older than the stream's first delta means: ask through `resync`.
"""

from __future__ import annotations

import struct
from array import array
from dataclasses import dataclass, field
from enum import IntEnum, IntFlag
from typing import Annotated

import msgspec

PREFIX = "headway:1:"

REPORTS = PREFIX + "reports"
OUTCOMES = PREFIX + "outcomes"
WORKER_PATTERN = PREFIX + "worker:*"
MODELS_STATE = PREFIX + "models"

REPORT_FIELD = b"r"
DELTA_FIELD = b"d"
OUTCOME_FIELD = b"o"

WORKER_TTL_MS = 3_000
"""A worker whose agent is silent this long leaves the candidates. The agent may publish a longer TTL in its record."""
RESYNC_TTL_MS = 5_000
REPORTS_ENTRIES_MAX = 20_000
BLOCKS_ENTRIES_MAX = 20_000
OUTCOMES_ENTRIES_MAX = 1_000_000
SNAPSHOT_CHUNK_BLOCKS = 65_536
SNAPSHOT_TTL_MS = 24 * 3_600_000


def worker_key(worker: str) -> str:
    return f"{PREFIX}worker:{worker}"


def blocks_key(worker: str) -> str:
    return f"{PREFIX}blocks:{worker}"


def snapshot_key(worker: str) -> str:
    return f"{PREFIX}snapshot:{worker}"


def snapshot_chunk_key(worker: str, snapshot_id: int, chunk: int) -> str:
    return f"{PREFIX}snapshot:{worker}:{snapshot_id}:{chunk}"


def resync_key(worker: str) -> str:
    return f"{PREFIX}resync:{worker}"


def model_key(model_id: str) -> str:
    return f"{PREFIX}model:{model_id}"


class CodecError(ValueError):
    """Bytes under one of our keys that are not what this version writes there."""


# ------------------------------------------------------------------------------------------------ registration, reports


Count = Annotated[int, msgspec.Meta(ge=0, le=2**31)]
"""Of requests, steps and the like; beyond it something else was written there."""
Tokens = Annotated[int, msgspec.Meta(ge=0, le=2**62)]
Seconds = Annotated[float, msgspec.Meta(ge=0.0, le=1e9)]
"""And no NaN, which would spread through everything that is learned."""
Share = Annotated[float, msgspec.Meta(ge=0.0, le=1e6)]
Number = Annotated[int, msgspec.Meta(ge=0)]
Name = Annotated[str, msgspec.Meta(min_length=1, max_length=1_024)]
BlockTokens = Annotated[int, msgspec.Meta(ge=1, le=2**20)]
Ranks = Annotated[int, msgspec.Meta(ge=0, le=1_024)]
StreamId = Annotated[str, msgspec.Meta(pattern=r"^\d{1,19}(-\d{1,19})?\Z")]
"""What Redis takes for one: any other would fail the read of every worker's stream."""


class ModelCard(msgspec.Struct, array_like=True, frozen=True):
    """One served name. An adapter's `base` is the base model's name; a base model's is its own."""

    name: str
    base: str
    root: str  # path or hub name as the engine says it
    max_model_len: int


class WorkerRecord(msgspec.Struct, array_like=True, frozen=True, kw_only=True):
    """Who a worker is: what changes only when its engine or its agent restarts."""

    worker: Name
    url: Name  # base URL of the engine, no trailing slash
    epoch: Number  # this run of the agent on this run of the engine; deltas carry it
    models: tuple[ModelCard, ...]
    block_size: BlockTokens  # tokens a KV block, as the engine says
    cache_blocks: Tokens  # KV capacity in blocks
    sends_kv_events: bool
    tokenizer: str = ""  # path or hub name; "" where the agent cannot know
    engine_version: str = ""
    accelerator: str = ""  # GPU kind, as configured or found by the agent
    data_parallel_size: Count = 1
    ttl_ms: Count = WORKER_TTL_MS
    max_num_seqs: Count = 0  # 0: not known
    named_ranks: Ranks = 0  # ranks 0 to this less one that X-data-parallel-rank may name; 0: one alone, or not known


class EngineState(IntEnum):
    READY = 0
    UNREACHABLE = 1  # no connection, or a time-out, on /metrics and /health
    UNHEALTHY = 2  # /health says so
    SLEEPING = 3
    LEAVING = 4  # the agent de-registers its worker


class RankFigures(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """What the engine says of one data-parallel rank now; as in EngineReport."""

    running: Count = 0
    waiting: Count = 0
    kv_usage: Share = 0.0
    generation_tokens: Tokens = 0
    prompt_tokens: Tokens = 0


class EngineReport(msgspec.Struct, array_like=True, frozen=True, kw_only=True):
    """What the engine says of itself now. Summed over its data-parallel ranks (kv_usage: their maximum)."""

    worker: str
    epoch: int
    sequence: int  # of reports, within the epoch
    state: int  # EngineState
    scrape_age_s: Seconds  # age of the figures when the report was sent
    running: Count = 0
    waiting: Count = 0
    kv_usage: Share = 0.0  # 0..1
    generation_tokens: Tokens = 0  # counters since the engine's start: progress
    prompt_tokens: Tokens = 0
    prefix_query_tokens: int = 0
    prefix_hit_tokens: int = 0
    preemptions: int = 0
    delta_sequence: int = 0  # of the last BlockDelta sent: a reader that has less is behind
    blocks_exact: bool = True  # false: the agent itself missed events and is not yet repaired
    ranks: tuple[RankFigures, ...] = ()  # each rank by itself, in their order; empty where there is one alone


_PACK = msgspec.msgpack.Encoder()
_WORKER = msgspec.msgpack.Decoder(WorkerRecord)
_REPORT = msgspec.msgpack.Decoder(EngineReport)


def encode_worker(record: WorkerRecord) -> bytes:
    return _PACK.encode(record)


def decode_worker(data: bytes) -> WorkerRecord:
    """CodecError: not a WorkerRecord."""
    try:
        return _WORKER.decode(data)
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise CodecError(f"worker record: {error}") from error


def encode_report(report: EngineReport) -> bytes:
    return _PACK.encode(report)


def decode_report(data: bytes) -> EngineReport:
    """CodecError: not an EngineReport."""
    try:
        return _REPORT.decode(data)
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise CodecError(f"engine report: {error}") from error


# ---------------------------------------------------------------------------------------------------------------- blocks


class Tier(IntEnum):
    """Where a block lies. Only GPU blocks are free to reuse; the others cost a copy."""

    GPU = 0
    CPU = 1
    DISK = 2


class DeltaFlag(IntFlag):
    NONE = 0
    CLEAR = 1  # forget every block of this worker (rank and tier) before adding
    SNAPSHOT = 2  # a chunk of a snapshot, not of the stream


_HEADER = struct.Struct("<BBBBHHQQdII")
_VERSION = 1


@dataclass(frozen=True, slots=True)
class BlockDelta:
    """Blocks that appeared and disappeared at one worker, on one rank and tier, since the delta before.

    `added` and `removed` are disjoint (the agent nets out a batch), so their order does not matter.
    """

    epoch: int
    sequence: int
    at: float  # Unix time of the oldest event in it, as the engine stamped it
    added: array[int] = field(default_factory=lambda: array("Q"))  # block hashes
    removed: array[int] = field(default_factory=lambda: array("Q"))
    rank: int = 0
    tier: Tier = Tier.GPU
    flags: DeltaFlag = DeltaFlag.NONE


def encode_delta(delta: BlockDelta) -> bytes:
    """A 40-byte header, then 8 bytes a block."""
    header = _HEADER.pack(
        _VERSION,
        delta.flags,
        delta.tier,
        0,
        delta.rank,
        0,
        delta.epoch,
        delta.sequence,
        delta.at,
        len(delta.added),
        len(delta.removed),
    )
    return b"".join((header, delta.added.tobytes(), delta.removed.tobytes()))


def decode_delta(data: bytes) -> BlockDelta:
    """CodecError: another version, or not as long as its header says."""
    if len(data) < _HEADER.size:
        raise CodecError(f"block delta of {len(data)} bytes, its header alone has {_HEADER.size}")
    version, flags, tier, _, rank, _, epoch, sequence, at, adds, removes = _HEADER.unpack_from(data)
    if version != _VERSION:
        raise CodecError(f"block delta of version {version}, this build reads {_VERSION}")
    if len(data) != _HEADER.size + 8 * (adds + removes):
        raise CodecError(f"block delta of {len(data)} bytes, its header says {_HEADER.size + 8 * (adds + removes)}")
    added, removed = array("Q"), array("Q")
    middle = _HEADER.size + 8 * adds
    added.frombytes(data[_HEADER.size : middle])
    removed.frombytes(data[middle:])
    try:
        return BlockDelta(epoch, sequence, at, added, removed, rank, Tier(tier), DeltaFlag(flags))
    except ValueError as error:
        raise CodecError(f"block delta: {error}") from error


class SnapshotManifest(msgspec.Struct, array_like=True, frozen=True, kw_only=True):
    """All blocks of a worker as of delta `sequence`; its chunks are complete when this is written."""

    epoch: Number
    sequence: Number
    snapshot_id: Number
    chunks: Count
    blocks: Tokens
    stream_id: StreamId  # of the last entry in the blocks stream that it covers; "0" where none


_MANIFEST = msgspec.msgpack.Decoder(SnapshotManifest)


def encode_manifest(manifest: SnapshotManifest) -> bytes:
    return _PACK.encode(manifest)


def decode_manifest(data: bytes) -> SnapshotManifest:
    """CodecError: not a SnapshotManifest."""
    try:
        return _MANIFEST.decode(data)
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise CodecError(f"snapshot manifest: {error}") from error


# ---------------------------------------------------------------------------------------------------------------- models


class ModelsState(msgspec.Struct, array_like=True, frozen=True, kw_only=True):
    """Which models are in use; empty names: none. `sequence` grows with every change and never goes back."""

    sequence: int
    serving: str = ""
    previous: str = ""  # what a rollback returns to
    shadow: str = ""  # scored beside the serving one, decides nothing
    changed_at: float = 0.0  # Unix time


_MODELS = msgspec.msgpack.Decoder(ModelsState)


def encode_models(state: ModelsState) -> bytes:
    return _PACK.encode(state)


def decode_models(data: bytes) -> ModelsState:
    """CodecError: not a ModelsState."""
    try:
        return _MODELS.decode(data)
    except (msgspec.DecodeError, ValueError) as error:
        raise CodecError(f"models state: {error}") from error
