"""`headway profile` in virtual time, and everything that it refuses."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pyarrow.parquet as pq
import pytest

from contract.features import INDEX
from emulator.presets import PRESETS
from headway.__main__ import dispatch
from headway.errors import UsageError
from loadgen import wildchat
from loadgen.profile_rows import SCHEMA
from loadgen.wildchat import Entry
from prediction import dataset
from tests.loadgen import wildchat_rows

SMALL = ("--simulate", "--preset", "tiny-cpu", "--workers", 2, "--levels", "0.3,1.5", "--mixes", "mixed,<128")
FEW = (*SMALL, "--overlaps", "0.5", "--outputs", "short", "--rows", 150, "--requests-max", 60, "--step-s", 5)


pytestmark = pytest.mark.usefixtures("own_home")


def profile(*argv: object) -> int:
    return dispatch(["profile", *map(str, argv)])


def refused(*argv: object) -> str:
    with pytest.raises(UsageError) as error:
        profile(*argv)
    text = str(error.value)
    assert "\n" not in text
    return text


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory that tests read, and copy before they change it."""
    path = tmp_path_factory.mktemp("run") / "p"
    assert profile(*FEW, "--run-dir", path) == 0
    return path


def test_a_sweep_gives_a_row_for_every_request_of_its_plan(finished: Path) -> None:
    plan = json.loads((finished / "plan.json").read_text())
    rows = pq.read_table(finished / "data.parquet")
    assert rows.schema.equals(SCHEMA)
    assert rows.schema.field("ttft_s").metadata[b"unit"] == b"s"
    assert len(rows) == sum(step["requests"] for step in plan["steps"]) >= 150
    assert len(set(rows.column("request_id").to_pylist())) == len(rows)
    assert set(rows.column("level").to_pylist()) == {0.3, 1.5}
    assert set(plan["saturation_rps"]) == {
        "mixed tokens, overlap 0.5, answers short",
        "<128 tokens, overlap 0.5, answers short",
    }


def test_labels_and_features_of_a_row_fit_each_other(finished: Path) -> None:
    samples = dataset.read(finished / "data.parquet")
    rows, table = samples.rows, samples.table.to_pandas()
    assert (samples.ttft_s > 0).all()
    assert (samples.ttft_s <= samples.e2e_s + 1e-9).all()
    assert (rows[:, INDEX["uncached_tokens"]] == rows[:, INDEX["input_tokens"]] - rows[:, INDEX["matched_tokens"]]).all()
    assert (rows[:, INDEX["no_first_byte"]] <= rows[:, INDEX["active"]]).all()
    assert (table["engine_age_s"].dropna() >= 0).all(), "the engine's page is never one from after the decision"
    assert table["engine_age_s"].median() < 0.2, "ten pages a second"
    low, high = (table[table.level == level] for level in (0.3, 1.5))
    assert high.ttft_s.median() > 2 * low.ttft_s.median()
    assert high.active.median() > low.active.median()


def test_parquet_and_csv_say_the_same(finished: Path) -> None:
    both = [dataset.read(finished / name) for name in ("data.parquet", "data.csv")]
    assert np.array_equal(both[0].rows, both[1].rows)
    assert np.array_equal(both[0].ttft_s, both[1].ttft_s)


def test_a_run_that_was_cut_short_goes_on_and_ends_as_if_it_had_not_been(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "cut"
    (run / "parts").mkdir(parents=True)
    (run / "plan.json").write_bytes((finished / "plan.json").read_bytes())
    kept = sorted((finished / "parts").iterdir())[0]
    (run / "parts" / kept.name).write_bytes(kept.read_bytes())
    (run / "parts" / "00001.parquet.new").write_bytes(b"half a part")
    assert profile("--resume", "--simulate", "--run-dir", run) == 0
    assert pq.read_table(run / "data.parquet").equals(pq.read_table(finished / "data.parquet"))
    assert "0 failed" in capsys.readouterr().out


def test_an_interrupt_in_virtual_time_ends_it_at_once(tmp_path: Path) -> None:
    line = [sys.executable, "-m", "headway", "profile", "--simulate", "--rows", "100000", "--run-dir", str(tmp_path / "p")]
    process = subprocess.Popen(line, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    assert process.stderr.readline().startswith("saturation: ")  # under way
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 130
    assert said.splitlines()[-1].startswith("profile: interrupted")
    assert "Traceback" not in said


def test_a_finished_run_is_not_played_again(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (finished / "parts" / "00000.parquet").stat().st_mtime_ns
    assert profile("--resume", "--run-dir", finished) == 0, "and knows from its plan that it was simulated"
    assert (finished / "parts" / "00000.parquet").stat().st_mtime_ns == before
    assert refused(*FEW, "--run-dir", finished).endswith("a profile is there already; --resume goes on with it")


def test_the_steps_of_another_run_are_played_on_another_fleet(finished: Path, tmp_path: Path) -> None:
    run = tmp_path / "other"
    fleet = ("--simulate", "--preset", "tiny-cpu", "--workers", 2, "--worker-speeds", "1,0.25")
    assert profile(*fleet, "--steps-of", finished, "--run-dir", run) == 0
    ours, theirs = (json.loads((path / "plan.json").read_text()) for path in (run, finished))
    assert ours["steps"] == theirs["steps"]
    rows = [pq.read_table(path / "data.parquet").to_pandas() for path in (run, finished)]
    lengths = [frame.groupby("step").input_tokens.apply(sorted) for frame in rows]
    assert lengths[0].equals(lengths[1]), "the same prompts"
    assert rows[0].e2e_s.median() > rows[1].e2e_s.median(), "on a slower fleet"


TWO_MODELS = ("--simulate", "--preset", "tiny-cpu,llama2-13b-a100-40gb", "--workers", 3, *FEW[len(SMALL) :], "--mixes", "mixed")


@pytest.mark.parametrize(("shares", "of_first"), [((), 2 / 3), (("--shares", "1,3"), 1 / 4)])
def test_a_fleet_of_two_models_gives_rows_of_both(tmp_path: Path, shares: tuple[str, ...], of_first: float) -> None:
    """Of three workers the first and the third serve the first model."""
    run = tmp_path / "p"
    assert profile(*TWO_MODELS, "--levels", "0.3,0.9", *shares, "--run-dir", run) == 0
    table = pq.read_table(run / "data.parquet").to_pandas()
    models = [PRESETS[name].model for name in ("tiny-cpu", "llama2-13b-a100-40gb")]
    assert set(table.model) == set(models)
    by_worker = {worker: set(rows.model) for worker, rows in table.groupby("worker")}
    assert by_worker == {"worker-0": {models[0]}, "worker-1": {models[1]}, "worker-2": {models[0]}}
    spread = 4 * (of_first * (1 - of_first) / len(table)) ** 0.5
    assert (table.model == models[0]).mean() == pytest.approx(of_first, abs=spread)
    again = tmp_path / "again"
    assert profile("--simulate", "--workers", 3, "--preset", TWO_MODELS[2], *shares, "--steps-of", run, "--run-dir", again) == 0
    assert pq.read_table(again / "data.parquet")["model"].to_pylist() == table.model.to_list(), "drawn by the step's seed"


def test_a_fleet_of_two_models_goes_on_as_it_began(tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert profile(*TWO_MODELS, "--rates", "4,8", "--shares", "1,2", "--run-dir", whole) == 0
    (cut / "parts").mkdir(parents=True)
    (cut / "plan.json").write_bytes((whole / "plan.json").read_bytes())
    assert profile("--resume", "--simulate", "--run-dir", cut) == 0, "with the presets and shares of its plan"
    assert pq.read_table(cut / "data.parquet").equals(pq.read_table(whole / "data.parquet"))


def test_progress_is_told_while_it_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = (*SMALL, "--overlaps", "0", "--outputs", "short", "--rows", 24, "--rates", "5", "--step-s", 1)
    assert profile(*small, "--run-dir", tmp_path / "p") == 0
    told = capsys.readouterr().err
    assert "saturation" not in told, "rates were given"
    assert "profile: 48/48, 48 rows, 0 failed" in told


def test_wildchat_becomes_the_prompts_of_a_sweep(tmp_path: Path) -> None:
    rows = [wildchat_rows.conversation(f"c{n}", f"w{n} " * (30 * n + 5), "an answer") for n in range(12)]
    source = wildchat_rows.write(tmp_path / "data", rows)
    run = tmp_path / "run"
    rate = (
        "--simulate",
        "--preset",
        "tiny-cpu",
        "--workers",
        1,
        "--rates",
        "2",
        "--rows",
        24,
        "--mixes",
        "mixed",
        "--step-s",
        1,
    )
    assert profile(*rate, "--workload", f"wildchat:{source}", "--run-dir", run) == 0
    entries = [msgspec.json.decode(line, type=Entry) for line in (run / wildchat.FILE).read_bytes().splitlines()]
    assert len(entries) == 12
    table = pq.read_table(run / "data.parquet").to_pandas()
    assert table.input_tokens.nunique() == 12, "all of them, twice"
    assert set(table.output_class) == {"recorded"}
    assert set(table.overlap) == {-1.0}

    again = tmp_path / "again"
    assert profile(*rate, "--workload", run / wildchat.FILE, "--run-dir", again) == 0, "the file alone does as well"
    assert sorted(pq.read_table(again / "data.parquet")["input_tokens"].to_pylist()) == sorted(table.input_tokens)


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (("--levels", "0.5,x"), "--levels"),
        (("--levels", "-1"), "--levels"),
        (("--rates", "0"), "--rates"),
        (("--mixes", "medium"), "no 'medium'; there are mixed"),
        (("--mixes", ","), "nothing is named"),
        (("--outputs", "endless"), "--outputs"),
        (("--overlaps", "1"), "no prompt would be new"),
        (("--worker-speeds", "0"), "--worker-speeds"),
        (("--workers", 100_000), "--workers"),
        (("--preset", "no-such"), "no preset 'no-such'; there are "),
        (("--preset", "tiny-cpu,tiny-cpu", "--workers", 1), "no worker for tiny-cpu: give more --workers"),
        (("--shares", "1,2"), "2 numbers for the models"),
        (("--shares", "x"), "--shares"),
        (("--preset", "tiny-cpu,llama3-8b-h100", "--workers", 4, "--choices", 5), "--choices: among workers of one model"),
        (("--tokens-max", 5_000), "--tokens-max: 5000 is above"),
        (("--tokens-max", 500), ">1024"),
        (("--tokenizer", "no/such-tokenizer", "--workload", "TRACE"), "--tokenizer"),
        (("--workload", "/no/such/file.jsonl"), "No such file"),
        (("--workload", "wildchat:/no/such/directory"), "data set /no/such/directory"),
        (("--steps-of", "/no/such/run"), "no profile to resume"),
        (("--resume",), "no profile to resume"),
    ],
)
def test_what_cannot_be_done_is_refused_in_one_line(tmp_path: Path, argv: tuple[object, ...], said: str) -> None:
    trace = tmp_path / "trace.jsonl"
    trace.write_text('{"id": "a", "messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}\n')
    argv = tuple(str(trace) if part == "TRACE" else part for part in argv)
    assert said in refused("--simulate", "--preset", "tiny-cpu", "--run-dir", tmp_path / "p", *argv)
    assert not (tmp_path / "p" / "plan.json").exists()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "empty"),
        ('{"question": 1}\n', "no known trace"),
        ("not json\n", "no known trace"),
        ('{"id": "a", "messages": 3}\n', "trace.jsonl"),
    ],
)
def test_a_workload_of_another_schema_is_refused_by_name(tmp_path: Path, content: str, said: str) -> None:
    trace = tmp_path / "trace.jsonl"
    trace.write_text(content)
    assert said in refused("--simulate", "--preset", "tiny-cpu", "--workload", trace, "--run-dir", tmp_path / "p")


def test_a_directory_of_another_schema_is_refused_by_its_columns(tmp_path: Path) -> None:
    source = tmp_path / "data"
    source.mkdir()
    (source / "train.jsonl").write_text('{"prompt": "a", "answer": "b"}\n')
    said = refused("--simulate", "--preset", "tiny-cpu", "--workload", f"wildchat:{source}", "--run-dir", tmp_path / "p")
    assert "no column `conversation` in the data set; there are answer, prompt" in said


def test_without_a_stack_it_says_what_to_name(tmp_path: Path) -> None:
    assert "--redis-url" in refused("--run-dir", tmp_path / "p")
    assert "--redis-url" in refused("--redis-url", "nonsense", "--run-dir", tmp_path / "p")


def test_the_columns_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert profile("--columns") == 0
    printed = capsys.readouterr().out
    assert all(f"`{name}`" in printed for name in SCHEMA.names)


def test_the_same_seed_gives_the_same_rows(finished: Path, tmp_path: Path) -> None:
    assert profile(*FEW, "--run-dir", tmp_path / "p") == 0
    named = ["run", "request_id", "decided_at"]
    ours, theirs = (pq.read_table(path / "data.parquet").drop_columns(named) for path in (tmp_path / "p", finished))
    times = ("arrived_rps", "engine_age_s", "report_age_s", "prefill_wait_s", "ttft_s", "itl_s", "e2e_s")
    for name in ours.column_names:
        if name in times:  # another time of day rounds Unix seconds otherwise
            assert np.allclose(ours[name].to_numpy(), theirs[name].to_numpy(), rtol=1e-4, atol=1e-5, equal_nan=True), name
        else:
            assert ours[name].equals(theirs[name]), name


def test_nothing_that_went_ahead_to_warm_a_step_up_is_found_in_a_cache(tmp_path: Path) -> None:
    few = ("--rates", "2", "--mixes", ">1024", "--overlaps", "0", "--outputs", "short", "--rows", 24, "--step-s", 1)
    assert profile(*SMALL, *few, "--run-dir", tmp_path / "p") == 0
    table = pq.read_table(tmp_path / "p" / "data.parquet").to_pandas()
    assert len(table) == 24
    assert (table.matched_tokens == 0).all(), "no two prompts share anything"
    assert (table.cached_tokens == 0).all()
