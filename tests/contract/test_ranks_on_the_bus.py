"""Ranks in what agents publish: either side may be the older one."""

from __future__ import annotations

import msgspec

from contract import keyspace as k

RECORD = k.WorkerRecord(
    worker="w",
    url="http://w",
    epoch=1,
    models=(),
    block_size=16,
    cache_blocks=100,
    sends_kv_events=True,
    data_parallel_size=2,
    named_ranks=2,
)
REPORT = k.EngineReport(
    worker="w", epoch=1, sequence=1, state=0, scrape_age_s=0.0, ranks=(k.RankFigures(1, 2, 0.5, 3, 4), k.RankFigures())
)


def test_what_is_written_is_read_back() -> None:
    assert k.decode_worker(k.encode_worker(RECORD)) == RECORD
    assert k.decode_report(k.encode_report(REPORT)) == REPORT


def test_an_older_agent_names_no_ranks() -> None:
    record = msgspec.msgpack.decode(k.encode_worker(RECORD))
    report = msgspec.msgpack.decode(k.encode_report(REPORT))
    assert k.decode_worker(msgspec.msgpack.encode(record[:-1])).named_ranks == 0
    assert k.decode_report(msgspec.msgpack.encode(report[:-1])).ranks == ()


def test_a_newer_agent_may_say_more() -> None:
    record = msgspec.msgpack.decode(k.encode_worker(RECORD))
    report = msgspec.msgpack.decode(k.encode_report(REPORT))
    assert k.decode_worker(msgspec.msgpack.encode([*record, "new"])) == RECORD
    assert k.decode_report(msgspec.msgpack.encode([*report, "new"])) == REPORT
