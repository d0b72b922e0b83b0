"""`headway analyze`, and a client's recording of one engine read as a profile."""

from __future__ import annotations

import math
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from contract.features import INDEX
from headway import analyze as command
from headway import recorded_profile
from headway.__main__ import dispatch
from headway.errors import UsageError
from headway.recorded_profile import BLOCK_TOKENS, CACHE_BLOCKS, NEEDED
from loadgen.profile_rows import SCHEMA
from prediction import dataset
from prediction.errors import DatasetError
from tests.trainer import traffic


def analyze(*argv: object) -> int:
    return dispatch(["analyze", *map(str, argv)])


def refused(*argv: object) -> str:
    with pytest.raises(UsageError) as error:
        analyze(*argv)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "data.parquet"
    dataset.write(dataset.from_outcomes(traffic.outcomes(300, 1)), path)
    return path


# ------------------------------------------------------------------------------------------------------------------- command


def test_a_data_set_becomes_a_report_and_figures(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert analyze(data, "--out", tmp_path / "out") == 0
    said = capsys.readouterr()
    assert {Path(line).name for line in said.out.split()} == {path.name for path in (tmp_path / "out").iterdir()}
    assert "analyze: states of 300 samples" in said.err
    assert (tmp_path / "out" / "report.md").read_text().startswith("# State space of data.parquet\n")


def test_rows_can_be_chosen_and_written(data: Path, tmp_path: Path) -> None:
    kept = tmp_path / "kept.parquet"
    assert analyze(data, "--out", tmp_path / "o", "--where", "worker=w1", "--below", "active=1000", "--dataset", kept) == 0
    samples = dataset.read(kept)
    assert set(samples.worker) == {"w1"}
    assert len(samples) == 75


def test_what_cannot_be_analysed_is_refused_in_one_line(data: Path, tmp_path: Path) -> None:
    out = ("--out", tmp_path / "out")
    text = tmp_path / "notes.csv"
    text.write_text("a,b\n1,2\n")
    assert "no such file" in refused(tmp_path / "absent.parquet", *out)
    assert "no column 'input_tokens'" in refused(text, *out)
    text.with_suffix(".parquet").write_bytes(b"not parquet")
    assert "notes.parquet" in refused(text.with_suffix(".parquet"), *out)
    (tmp_path / "empty").mkdir()
    assert "no .parquet or .csv file" in refused(tmp_path / "empty", *out)
    assert "an analysis needs 50" in refused(data, *out, "--below", "input_tokens=30")
    assert "column of the data set" in refused(data, *out, "--where", "colour=red")
    assert "do not compare" in refused(data, *out, "--below", "worker=3")
    assert not list((tmp_path / "out").glob("*"))


def test_where_nothing_can_be_written_is_found_out_before_anything_is_computed(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "Not a directory" in refused(data, "--out", data / "below")
    assert capsys.readouterr().err == ""


# ----------------------------------------------------------------------------------------------------------------- recording

HEAD = [*NEEDED, "client_active", "other_cpu"]


def row(number: int, **fields: object) -> dict[str, object]:
    """100 ms to the first token, 1 s to the end."""
    made: dict[str, object] = {
        "id": number,
        "phase": "closed_2",
        "t_send_s": 0.0,
        "m_running": 1.0,
        "m_waiting": 0.0,
        "m_kv_usage": 0.25,
        "m_age_ms": 50.0,
        "kind": "cold",
        "prompt_tokens": 320,
        "cached_tokens": 0,
        "max_tokens": 8,
        "output_tokens": 8,
        "ttft_ms": 100.0,
        "tpot_ms": 10.0,
        "e2e_ms": 1_000.0,
        "status": 200,
        "client_active": 0,
        "other_cpu": 0.5,
    }
    return made | fields


def written(path: Path, *rows: dict[str, object]) -> Path:
    lines = [",".join("" if one[name] is None else str(one[name]) for name in HEAD) for one in rows]
    path.write_text("\n".join([",".join(HEAD), *lines]) + "\n")
    return path


def features(table_row: dict[str, object], *names: str) -> list[object]:
    assert set(names) <= set(INDEX)
    return [table_row[name] for name in names]


def test_a_recording_becomes_what_the_director_would_have_known(tmp_path: Path) -> None:
    path = written(
        tmp_path / "rec.csv",
        row(1),
        row(2, t_send_s=0.05, prompt_tokens=640, cached_tokens=320),
        row(3, t_send_s=0.5),
        row(4, t_send_s=5.0),
    )
    table = recorded_profile.read(path)
    assert table.schema.names == [*SCHEMA.names, "other_cpu"]
    first, second, third, fourth = table.to_pylist()
    ledger = ("active", "no_first_byte", "prefill_tokens", "head_tokens", "context_tokens")
    assert features(first, *ledger) == [0, 0, 0, 0, 0]
    assert features(second, *ledger) == [1, 1, 320, 320, 320]
    assert features(second, "input_tokens", "matched_tokens", "uncached_tokens") == [640, 320, 320]
    assert features(third, *ledger) == [2, 0, 0, 0, 960], "both have their first token and none has ended"
    assert features(fourth, *ledger) == [0, 0, 0, 0, 0], "all have ended"
    assert features(first, "running", "waiting", "kv_usage", "cache_tokens") == [1, 0, 0.25, BLOCK_TOKENS * CACHE_BLOCKS]
    assert first["report_age_s"] == pytest.approx(0.05)
    assert first["engine_age_s"] == pytest.approx(0.05)


def test_labels_of_a_recording_are_in_seconds_and_its_phase_names_the_run(tmp_path: Path) -> None:
    (one,) = recorded_profile.read(written(tmp_path / "rec.csv", row(1, tpot_ms=None))).to_pylist()
    assert (one["ttft_s"], one["e2e_s"], one["itl_s"]) == (0.1, 1.0, -1.0)
    assert (one["run"], one["mix"], one["bucket"], one["other_cpu"]) == ("rec:closed_2", "cold", "128-512", 0.5)
    assert math.isnan(one["rate_rps"])


def test_requests_that_failed_are_no_rows_and_charge_nobody(tmp_path: Path) -> None:
    path = written(tmp_path / "rec.csv", row(1, status=500), row(2, ttft_ms=-1.0), row(3, t_send_s=0.01))
    (one,) = recorded_profile.read(path).to_pylist()
    assert (one["request_id"], one["active"]) == ("3", 0)


def test_a_recording_without_a_column_or_without_rows_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rec.csv"
    path.write_text("client_active,ttft_ms\n1,2\n")
    assert recorded_profile.is_recording(path)
    with pytest.raises(DatasetError, match="no column 'id'"):
        recorded_profile.read(path)
    with pytest.raises(DatasetError, match="none of its 1 requests"):
        recorded_profile.read(written(path, row(1, status=503)))


def test_the_command_knows_a_recording_by_its_columns(tmp_path: Path) -> None:
    path = written(tmp_path / "rec.csv", *(row(n, t_send_s=0.3 * n, prompt_tokens=64 * (1 + n % 7)) for n in range(1, 61)))
    assert len(command.read(path)) == 60
    kept = tmp_path / "kept.parquet"
    assert analyze(path, "--out", tmp_path / "out", "--below", "other_cpu=0.6", "--dataset", kept) == 0
    assert pq.read_table(kept).num_rows == 60
