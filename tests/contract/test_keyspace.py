"""Codecs: what one process writes, the other reads; anything else is a CodecError."""

from __future__ import annotations

from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract import keyspace as k

hashes = st.lists(st.integers(0, 2**64 - 1), max_size=40).map(lambda values: array("Q", values))
deltas = st.builds(
    k.BlockDelta,
    epoch=st.integers(0, 2**64 - 1),
    sequence=st.integers(0, 2**64 - 1),
    at=st.floats(0, 2e9),
    added=hashes,
    removed=hashes,
    rank=st.integers(0, 2**16 - 1),
    tier=st.sampled_from(k.Tier),
    flags=st.sampled_from([k.DeltaFlag.NONE, k.DeltaFlag.CLEAR, k.DeltaFlag.SNAPSHOT]),
)


@given(deltas)
def test_a_delta_survives_the_wire(delta: k.BlockDelta) -> None:
    assert k.decode_delta(k.encode_delta(delta)) == delta


@given(deltas, st.data())
def test_a_cut_delta_is_refused(delta: k.BlockDelta, data: st.DataObject) -> None:
    packed = k.encode_delta(delta)
    with pytest.raises(k.CodecError):
        k.decode_delta(packed[: data.draw(st.integers(0, len(packed) - 1))])


def test_a_delta_of_another_version_is_refused() -> None:
    packed = bytearray(k.encode_delta(k.BlockDelta(1, 2, 3.0)))
    packed[0] = 99
    with pytest.raises(k.CodecError, match="version 99"):
        k.decode_delta(bytes(packed))


def test_records_survive_the_wire() -> None:
    record = k.WorkerRecord(
        worker="w1",
        url="http://127.0.0.1:9001",
        epoch=7,
        models=(k.ModelCard("llama", "llama", "meta/llama", 8192), k.ModelCard("sql", "llama", "/adapters/sql", 8192)),
        block_size=16,
        cache_blocks=924,
        sends_kv_events=True,
    )
    report = k.EngineReport(worker="w1", epoch=7, sequence=3, state=k.EngineState.READY, scrape_age_s=0.01, running=4)
    manifest = k.SnapshotManifest(epoch=7, sequence=12, snapshot_id=1, chunks=2, blocks=70_000, stream_id="5-0")
    assert k.decode_worker(k.encode_worker(record)) == record
    assert k.decode_report(k.encode_report(report)) == report
    assert k.decode_manifest(k.encode_manifest(manifest)) == manifest


@pytest.mark.parametrize("decode", [k.decode_worker, k.decode_report, k.decode_manifest, k.decode_delta])
def test_garbage_is_a_codec_error(decode: object) -> None:
    with pytest.raises(k.CodecError):
        decode(b"\x93garbage")  # type: ignore[operator]
