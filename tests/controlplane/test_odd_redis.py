"""Keys of other versions, of other programs, or made to hurt: one worker's cost that worker, and ingest reads on."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest
import redis

from contract import keyspace
from contract.keyspace import CodecError, EngineReport, SnapshotManifest, WorkerRecord
from controlplane.index_state import IndexState
from tests.controlplane.parts import record, report
from tests.controlplane.test_ingest import plane_on
from tests.fakes.agent import FakeAgent


@pytest.mark.parametrize(
    "fields",
    [
        {"block_size": 0},
        {"block_size": -16},
        {"block_size": 1 << 40},
        {"cache_blocks": -1},
        {"named_ranks": 1 << 31},
        {"ttl_ms": -1},
        {"worker": ""},
        {"worker": "w" * 5_000},
        {"url": ""},
        {"epoch": -1},
    ],
    ids=lambda fields: "".join(f"{name} {str(value)[:20]}" for name, value in fields.items()),
)
def test_records_that_would_hurt_are_none(fields: dict[str, object]) -> None:
    data = keyspace.encode_worker(msgspec.structs.replace(record(), **fields))
    with pytest.raises(CodecError, match="worker record"):
        keyspace.decode_worker(data)


@pytest.mark.parametrize(
    "fields",
    [{"running": -1}, {"waiting": 1 << 40}, {"kv_usage": float("nan")}, {"scrape_age_s": -1.0}, {"scrape_age_s": float("inf")}],
    ids=lambda fields: "".join(f"{name} {str(value)[:20]}" for name, value in fields.items()),
)
def test_reports_that_would_hurt_are_none(fields: dict[str, object]) -> None:
    with pytest.raises(CodecError, match="engine report"):
        keyspace.decode_report(keyspace.encode_report(msgspec.structs.replace(report(), **fields)))


@pytest.mark.parametrize("stream_id", ["", "x", "-1", "1-", "1-2-3", "9" * 25, "$", "1\n"])
def test_a_manifest_must_name_an_entry_of_a_stream(stream_id: str) -> None:
    made = SnapshotManifest(epoch=1, sequence=1, snapshot_id=1, chunks=0, blocks=0, stream_id=stream_id)
    with pytest.raises(CodecError, match="manifest"):
        keyspace.decode_manifest(keyspace.encode_manifest(made))


Odd = Callable[[redis.Redis, str], object]

ODD: dict[str, Odd] = {
    "stream is text": lambda client, worker: client.set(keyspace.blocks_key(worker), "text"),
    "stream is a list": lambda client, worker: (
        client.delete(keyspace.blocks_key(worker)),
        client.rpush(keyspace.blocks_key(worker), "a", "b"),
    ),
    "entries without the field": lambda client, worker: client.xadd(keyspace.blocks_key(worker), {"x": b"1"}),
    "an entry of another version": lambda client, worker: client.xadd(
        keyspace.blocks_key(worker), {keyspace.DELTA_FIELD: b"\x07" * 80}
    ),
    "snapshot is a list": lambda client, worker: (
        client.delete(keyspace.snapshot_key(worker)),
        client.rpush(keyspace.snapshot_key(worker), "a"),
        client.xadd(keyspace.blocks_key(worker), {keyspace.DELTA_FIELD: b""}),
    ),
    "record is a hash": lambda client, worker: (
        client.delete(keyspace.worker_key(worker)),
        client.hset(keyspace.worker_key(worker), "a", "b"),
    ),
    "record of another program": lambda client, worker: client.set(keyspace.worker_key(worker), b"\xff\x00hello"),
    "a report of another version": lambda client, worker: client.xadd(keyspace.REPORTS, {keyspace.REPORT_FIELD: b"\x81\x01"}),
    "a report without the field": lambda client, worker: client.xadd(keyspace.REPORTS, {"x": b"1"}),
    "a report with a number beyond": lambda client, worker: client.xadd(
        keyspace.REPORTS, {keyspace.REPORT_FIELD: keyspace.encode_report(report(worker, running=1 << 60))}
    ),
}


@pytest.mark.parametrize("odd", list(ODD.values()), ids=list(ODD))
async def test_the_other_workers_stay_exact_and_follow_on(redis_url: str, odd: Odd) -> None:
    well, ill = FakeAgent(redis_url, "well"), FakeAgent(redis_url, "ill")
    for agent in (well, ill):
        agent.delta([1, 2])
        agent.begin()
    client = redis.Redis.from_url(redis_url)
    async with plane_on(redis_url) as plane:
        await plane.until(lambda: plane.agrees(well) and plane.agrees(ill), well, ill)
        odd(client, "ill")
        for block in range(3, 6):
            well.delta([block])
            await plane.until(lambda: plane.agrees(well), well)
        holes = plane.ingest.holes
        well.delta([9])
        await plane.until(lambda: plane.agrees(well), well)
        assert plane.ingest.connected
        assert plane.state("well") is IndexState.EXACT
        assert plane.ingest.holes - holes <= 1, "of the ill one, and not again and again"
        client.delete(keyspace.blocks_key("ill"), keyspace.snapshot_key("ill"), keyspace.worker_key("ill"))
        ill.register()
        ill.snapshot()
        await plane.until(lambda: plane.agrees(ill) and plane.agrees(well), well, ill)
    client.close()


def test_what_agents_write_is_read() -> None:
    whole = WorkerRecord(
        worker="host:8000/a b", url="http://[::1]:8000", epoch=(1 << 63) - 1, models=(), block_size=1, cache_blocks=0,
        sends_kv_events=False, named_ranks=16,
    )  # fmt: skip
    assert keyspace.decode_worker(keyspace.encode_worker(whole)) == whole
    figures = EngineReport(worker="w", epoch=1, sequence=1, state=9, scrape_age_s=0.0, kv_usage=1.0, running=70_000)
    assert keyspace.decode_report(keyspace.encode_report(figures)) == figures
