"""The outcome record: what is written is read back, and what another version wrote is refused in words."""

from __future__ import annotations

import msgspec
import pytest

from contract import outcome
from contract.outcome import SCHEMA, End, Outcome


def record() -> Outcome:
    return Outcome(
        schema=SCHEMA,
        decision_id=7,
        request_id="r",
        decided_at=1.5,
        model="m",
        tenant="",
        worker="w",
        url="http://w:8000",
        policy="predictive",
        end=End.COMPLETE,
        http_status=200,
        attempt=0,
        streamed=True,
        input_tokens=10,
        matched_tokens=0,
        cached_tokens=0,
        output_tokens=3,
        ttft_s=0.5,
        itl_s=0.02,
        e2e_s=0.6,
        predicted_ttft_s=0.4,
        snapshot_age_s=0.05,
        candidates=2,
        feature_version=1,
        features=[1.0, 2.0],
        predicted_p90_s=0.9,
        model_id="m-1",
    )


def test_what_is_written_is_read_back() -> None:
    assert outcome.decode(outcome.encode(record())) == record()


def test_a_record_of_schema_1_is_refused_by_its_number() -> None:
    fields = msgspec.msgpack.decode(outcome.encode(record()))
    older = msgspec.msgpack.encode([1, *fields[1:-2]])  # schema 1 ended with the accelerator
    with pytest.raises(ValueError, match="outcome of schema 1, this build reads 2"):
        outcome.decode(older)


def test_a_record_of_a_later_schema_is_refused_by_its_number() -> None:
    fields = msgspec.msgpack.decode(outcome.encode(record()))
    with pytest.raises(ValueError, match=f"schema {outcome.SCHEMA + 1}"):
        outcome.decode(msgspec.msgpack.encode([outcome.SCHEMA + 1, *fields[1:], "new"]))


def test_a_record_without_a_rank_is_of_an_engine_that_has_one_alone() -> None:
    fields = msgspec.msgpack.decode(outcome.encode(record()))
    assert fields[-1] == -1
    older = outcome.decode(msgspec.msgpack.encode(fields[:-1]))
    assert (older.rank, older.engine) == (-1, "w")
    assert msgspec.structs.replace(older, rank=0).engine == "w/0"
