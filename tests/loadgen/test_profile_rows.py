"""Outcomes become rows: every column said, times in the fleet's time, the engine's page before the decision and none after."""

from __future__ import annotations

import math
from pathlib import Path

import msgspec
import pytest

from contract.features import FEATURES, INDEX, VERSION
from contract.outcome import End, Outcome
from loadgen import profile_columns
from loadgen.errors import LoadError
from loadgen.profile_gauges import History, figures
from loadgen.profile_rows import SCHEMA, Gauges, Played, late_steps, table
from loadgen.profile_run import Plan, RunDirectory
from loadgen.sweep import Combination, Grid, Step
from prediction import dataset
from tests.trainer import traffic

STEP = Step(index=3, combination=Combination("mixed", 0.5, "short"), rate_rps=10.0, level=0.5, requests=4, seed=1)
START_S = 1_000.0
FIXTURES = Path(__file__).parents[1] / "fixtures"


def outcome(number: int, *, at_s: float = START_S, end: End = End.COMPLETE, ttft_s: float = 0.25) -> Outcome:
    features = [float(place) for place in range(len(FEATURES))]
    features[INDEX["input_tokens"]] = 600.0
    return msgspec.structs.replace(
        traffic.outcomes(1, 0)[0],
        decision_id=number,
        request_id=f"r{number}",
        decided_at=at_s,
        end=end,
        streamed=True,
        ttft_s=ttft_s,
        itl_s=-1.0,
        e2e_s=0.5,
        features=features,
        feature_version=VERSION,
    )


def test_every_column_of_the_file_is_described_and_nothing_else() -> None:
    assert set(profile_columns.COLUMNS) == set(SCHEMA.names)
    assert all(about for _, about in profile_columns.COLUMNS.values())
    assert all(f"`{name}`" in profile_columns.markdown() for name in SCHEMA.names)
    assert all(field.metadata[b"about"] for field in SCHEMA)


def test_units_of_the_description_are_those_of_the_names() -> None:
    for name, (unit, _) in profile_columns.COLUMNS.items():
        if name.endswith("_per_s"):
            assert unit == "tokens/s", name
        elif name.endswith("_s") or name == "decided_at":
            assert unit == "s", name
        elif name.endswith("_tokens"):
            assert unit == "tokens", name


def test_a_row_says_what_the_router_knew_what_became_of_it_and_what_the_engine_showed() -> None:
    gauges = Gauges(at_s=START_S - 0.05, running=3.0, waiting=2.0, kv_usage=0.5, preemptions=1.0)
    rows = table([Played(outcome(1), gauges)], STEP, run="p", speed=1.0, start_s=START_S)
    (row,) = rows.to_pylist()
    assert rows.schema.equals(SCHEMA)
    assert [row[name] for name in FEATURES] == outcome(1).features
    assert (row["ttft_s"], row["itl_s"], row["e2e_s"]) == (0.25, -1.0, 0.5)
    assert (row["run"], row["step"], row["rate_rps"], row["level"]) == ("p", 3, 10.0, 0.5)
    assert (row["mix"], row["bucket"], row["overlap"], row["output_class"]) == ("mixed", "512-1024", 0.5, "short")
    assert (row["engine_running"], row["engine_waiting"], row["engine_kv_usage"], row["engine_preemptions"]) == (3, 2, 0.5, 1)
    assert row["engine_age_s"] == pytest.approx(0.05)
    assert math.isnan(row["arrived_rps"]), "one request has no rate"


def test_a_fleet_that_runs_faster_is_written_in_its_own_time() -> None:
    gauges = Gauges(at_s=START_S + 9.9, running=1.0, waiting=0.0, kv_usage=0.0, preemptions=0.0)
    (row,) = table([Played(outcome(1, at_s=START_S + 10.0), gauges)], STEP, run="p", speed=4.0, start_s=START_S).to_pylist()
    known = outcome(1).features
    assert (row["ttft_s"], row["e2e_s"]) == (1.0, 2.0)
    assert row["itl_s"] == -1.0, "what is not known stays so"
    assert row["decided_at"] == START_S + 40.0
    assert row["engine_age_s"] == pytest.approx(0.4)
    assert row["report_age_s"] == 4.0 * known[INDEX["report_age_s"]]
    assert row["prefill_tokens_per_s"] == known[INDEX["prefill_tokens_per_s"]] / 4.0
    assert row["prefill_tokens"] == known[INDEX["prefill_tokens"]], "tokens are no time"


def test_only_samples_become_rows() -> None:
    played = [
        Played(outcome(1), None),
        Played(outcome(2, end=End.CLIENT_GONE), None),
        Played(outcome(3, ttft_s=-1.0), None),
    ]
    rows = table(played, STEP, run="p", speed=1.0, start_s=START_S)
    assert rows.column("request_id").to_pylist() == ["r1"]
    assert math.isnan(rows.column("engine_running")[0].as_py()), "no page was seen before it"


def test_the_rate_at_which_requests_arrived_is_measured_and_a_late_step_is_counted() -> None:
    in_time = [Played(outcome(n, at_s=START_S + n / 10.0), None) for n in range(200)]
    rows = table(in_time, STEP, run="p", speed=1.0, start_s=START_S)
    assert rows.column("arrived_rps")[0].as_py() == pytest.approx(10.0)
    assert late_steps(rows) == 0
    slow = [Played(outcome(n, at_s=START_S + n / 5.0), None) for n in range(200)]
    assert late_steps(table(slow, STEP, run="p", speed=1.0, start_s=START_S)) == 1
    fast = [Played(outcome(n, at_s=START_S + n / 20.0), None) for n in range(200)]
    assert late_steps(table(fast, STEP, run="p", speed=2.0, start_s=START_S)) == 0, "in the fleet's time it is as planned"


def test_what_an_engine_showed_is_the_newest_page_before_and_never_a_later_one() -> None:
    history = History()
    for at_s in (1.0, 2.0, 3.0):
        history.add("w", Gauges(at_s, at_s, 0.0, 0.0, 0.0))
    found = history.before("w", 2.5)
    assert found is not None
    assert found.at_s == 2.0
    assert history.before("w", 0.5) is None
    assert history.before("another", 2.5) is None


def test_a_page_of_a_real_engine_is_read() -> None:
    found = figures((FIXTURES / "vllm" / "metrics" / "load_waiting_lora.txt").read_bytes())
    assert found is not None
    assert (found["running"], found["waiting"]) == (8.0, 16.0)


def test_an_engines_page_is_read_by_its_new_and_its_old_names() -> None:
    new = b"""# HELP x
vllm:num_requests_running{engine="0",model_name="m"} 3.0
vllm:num_requests_running{engine="1",model_name="m"} 2.0
vllm:num_requests_waiting{engine="0",model_name="m"} 1.0
vllm:num_requests_waiting_by_reason{engine="0",reason="capacity"} 9.0
vllm:kv_cache_usage_perc{engine="0"} 0.25
vllm:kv_cache_usage_perc{engine="1"} 0.75
vllm:num_preemptions_total{engine="0"} 4.0
"""
    assert figures(new) == {"running": 5.0, "waiting": 1.0, "kv_usage": 0.75, "preemptions": 4.0}
    old = b"vllm:num_requests_running 1.0\nvllm:num_requests_waiting 0.0\nvllm:gpu_cache_usage_perc 0.5\n"
    found = figures(old)
    assert found is not None
    assert (found["running"], found["kv_usage"]) == (1.0, 0.5)
    assert math.isnan(found["preemptions"]), "not on the page"
    assert figures(b"<html>not an engine</html>") is None
    assert figures(b"vllm:num_requests_running abc\nvllm:num_requests_waiting 0\n") is None


def plan() -> Plan:
    return Plan(run="p", started_at=START_S, speed=1.0, grid=Grid(), steps=[STEP])


def test_a_run_directory_keeps_its_plan_and_makes_one_data_set_of_its_parts(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path / "run")
    directory.begin(plan())
    assert directory.plan() == plan()
    assert directory.finished(plan()) == set()
    directory.write_part(3, table([Played(outcome(1), None)], STEP, run="p", speed=1.0, start_s=START_S))
    assert directory.finished(plan()) == {3}
    directory.finish(plan())
    both = [dataset.read(path) for path in (directory.data, directory.csv)]
    assert [len(samples) for samples in both] == [1, 1]
    assert (both[0].rows == both[1].rows).all(), "the CSV says the same"
    assert not list((tmp_path / "run").rglob("*.new"))


def test_a_run_directory_refuses_what_would_mix_two_runs(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path / "run")
    with pytest.raises(LoadError, match="no profile to resume"):
        directory.plan()
    directory.begin(plan())
    with pytest.raises(LoadError, match="--resume"):
        directory.begin(plan())
    path = tmp_path / "run" / "plan.json"
    path.write_text(path.read_text().replace(f'"feature_version": {VERSION}', f'"feature_version": {VERSION + 1}'))
    with pytest.raises(LoadError, match=f"features of version {VERSION + 1}"):
        directory.plan()
    path.write_text("{}")
    with pytest.raises(LoadError, match=r"plan\.json"):
        directory.plan()


def test_a_part_that_was_damaged_is_named(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path / "run")
    directory.begin(plan())
    (tmp_path / "run" / "parts" / "00003.parquet").write_bytes(b"not parquet")
    with pytest.raises(LoadError, match=r"00003\.parquet"):
        directory.rows(3)
