"""Payloads of every vLLM release since 0.11, and bytes that are none."""

from __future__ import annotations

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.worker_agent.conftest import FIXTURES, payloads
from worker_agent.kv_events import CLEARED, REMOVED, STORED, Decoder, MalformedPayload

VERSIONS = [json.loads(line) for line in (FIXTURES / "kv_events" / "by_version.jsonl").read_text().splitlines()]
pack = msgspec.msgpack.encode


@pytest.mark.parametrize("row", VERSIONS, ids=lambda row: f"{row['vllm']}-{row['event']}")
def test_every_release_is_understood(row: dict[str, str]) -> None:
    batch = Decoder().decode(bytes.fromhex(row["payload"]))
    (event,) = batch.events
    assert batch.ts == 1795211000.25
    if row["event"].startswith("BlockStored"):
        assert isinstance(event, STORED)
        assert list(event.token_ids) == list(range(300, 316))
        assert event.block_size == 16
        assert event.medium == "GPU"
        assert isinstance(event.block_hashes[0], bytes if row["event"].endswith("bytes") else int)
    elif row["event"] == "BlockRemoved":
        assert isinstance(event, REMOVED)
        assert event.medium == "GPU"
    else:
        assert isinstance(event, CLEARED)


@pytest.mark.parametrize("name", ["v032_block32", "v032_block32_bytes", "v028_block16", "v032_dp2_rank1"])
def test_captured_payloads_decode(name: str) -> None:
    decoder = Decoder()
    assert all(decoder.decode(payload).events for _, payload in payloads(name))
    assert decoder.unknown_events == 0


def test_one_decoder_takes_both_generations_in_turn() -> None:
    decoder = Decoder()
    array = pack([1.0, [["BlockRemoved", [1], "GPU"]], 0])
    mapped = pack([1.0, [{"type": "BlockRemoved", "block_hashes": [1]}]])
    for payload in (array, mapped, mapped, array):
        (event,) = decoder.decode(payload).events
        assert isinstance(event, REMOVED)
        assert event.block_hashes == [1]


def test_what_later_releases_add_is_ignored() -> None:
    decoder = Decoder()
    batch = decoder.decode(
        pack([1.0, [{"type": "BlockRemoved", "block_hashes": [1], "why": {}}, {"type": "BlockMoved", "x": 1}], 0, "more"])
    )
    assert len(batch.events) == 1
    assert decoder.unknown_events == 1
    batch = decoder.decode(pack([1.0, [["BlockRemoved", [1], "GPU", 0, "new", 7], ["AllBlocksCleared", 1]]]))
    assert len(batch.events) == 2


@pytest.mark.parametrize(
    ("payload", "kind"),
    [
        (b"", "not msgpack"),
        (b"\xc1", "not msgpack"),
        (pack([1.0]), "not a batch"),
        (pack({"ts": 1}), "not a batch"),
        (pack([1.0, [7]]), "event without a type"),
        (pack([1.0, [{"type": "BlockStored", "block_hashes": "x"}]]), "bad BlockStored"),
        (pack([1.0, [["BlockRemoved"]]]), "bad BlockRemoved"),
    ],
)
def test_what_is_no_batch_is_refused_by_kind(payload: bytes, kind: str) -> None:
    with pytest.raises(MalformedPayload) as caught:
        Decoder().decode(payload)
    assert caught.value.kind == kind


@given(st.binary(max_size=200))
def test_any_bytes_decode_or_are_refused(noise: bytes) -> None:
    with_header = pack([1.0])[:-1] + noise
    for payload in (noise, with_header, b"\x92\xcb" + noise):
        try:
            Decoder().decode(payload)
        except MalformedPayload:
            pass


@given(st.data())
def test_a_flipped_byte_in_a_real_payload_is_never_another_error(data: st.DataObject) -> None:
    real = bytearray(payloads("v032_block32")[0][1])
    at = data.draw(st.integers(0, len(real) - 1))
    real[at] ^= data.draw(st.integers(1, 255))
    try:
        Decoder().decode(bytes(real))
    except MalformedPayload:
        pass
