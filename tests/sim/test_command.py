"""`headway simulate`, its figures and its drawing."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from headway.__main__ import UsageError, dispatch
from simulation.figure import ttft_cdf
from simulation.proxy import Fate, Result
from simulation.summary import figures
from simulation.world import Report

SMALL = ("simulate", "--preset", "tiny-cpu", "--scale", "0.1", "--limit", "30", "--workers", "2", "--speed", "2")


def report(*results: Result) -> Report:
    return Report("lmetric", list(results), 10.0, 0.1, 1, 1, 0, [0.5, 0.5], 0, 0, 0)


def ended(index: int, fate: Fate, ttft_s: float, worker: str = "a") -> Result:
    return Result(index, fate, 0.0, 1.0, worker=worker, ttft_s=ttft_s, input_tokens=100, cached_tokens=25, matched_tokens=25)


def test_two_runs_of_one_seed_print_the_same_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    documents = []
    for name in ("first.json", "again.json"):
        code = dispatch([*SMALL, "--policies", "random,lmetric", "--faults", "3", "--json", str(tmp_path / name)])
        assert code == 0
        policies = json.loads((tmp_path / name).read_text())["policies"]
        documents.append([{key: one[key] for key in one if key not in ("wall_s", "speed")} for one in policies])
    assert documents[0] == documents[1]
    assert [one["policy"] for one in documents[0]] == ["random", "lmetric"]
    printed = capsys.readouterr().out
    assert "TTFT p50" in printed
    assert "lmetric" in printed


def test_a_drawing_is_written_beside_the_table(tmp_path: Path) -> None:
    path = tmp_path / "ttft.svg"
    assert dispatch([*SMALL, "--policies", "least_load", "--plot", str(path)]) == 0
    assert ElementTree.parse(path).getroot().tag.endswith("svg")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--policies", "fastest"], "no policy 'fastest'"),
        (["--slow", "9:2"], "workers are 0 to 1"),
        (["--slow", "one"], "not NUMBER:FACTOR"),
        (["--rate", "fast"], "is no rate"),
        (["--workers", "0"], "not above 0"),
        (["absent.jsonl"], "absent.jsonl"),
        (["--ranks", "17"], "--ranks: 17 is above 16"),
        (["--ranks", "2", "--steer-ranks", "auto,maybe"], "'maybe' is none of auto, off"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(arguments: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message) as refusal:
        dispatch([*SMALL, *arguments])
    assert "\n" not in str(refusal.value)


def test_workers_whose_cache_is_smaller_than_the_longest_prompt_are_simulated(tmp_path: Path) -> None:
    path = tmp_path / "small.json"
    arguments = ["--preset", "llama3-8b-h100", "--limit", "12", "--workers", "2", "--cache", "0:0.03", "--json", str(path)]
    assert dispatch(["simulate", *arguments, "--policies", "lmetric"]) == 0
    (figures,) = json.loads(path.read_text())["policies"]
    assert figures["complete"] == figures["requests"] == 12


def test_workers_of_several_ranks_are_compared_steered_and_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "ranks.json"
    arguments = ["--policies", "lmetric", "--ranks", "2", "--steer-ranks", "auto,off", "--json", str(path)]
    assert dispatch([*SMALL, *arguments]) == 0
    assert [one["policy"] for one in json.loads(path.read_text())["policies"]] == ["lmetric", "lmetric, not steered"]
    assert "of 2 ranks" in capsys.readouterr().out


def test_prompts_too_long_for_the_model_are_an_error_when_none_is_left() -> None:
    with pytest.raises(UsageError, match="none of the 30 requests fits tiny-cpu"):
        dispatch([*SMALL, "--scale", "50"])


def test_sheds_and_broken_requests_are_misses_and_no_latencies() -> None:
    row = figures(
        report(
            ended(0, Fate.COMPLETE, 0.5),
            ended(1, Fate.COMPLETE, 3.0),
            ended(2, Fate.SHED, -1.0, worker=""),
            ended(3, Fate.BROKEN, 0.1, worker="b"),
        ),
        slo_ttft_s=2.0,
        workers=["a", "b"],
    )
    assert row.goodput_share == 0.25
    assert row.ttft_s.max == 3.0
    assert row.cached_share == 0.25
    assert row.workers == {"a": 2, "b": 1}
    assert row.imbalance == pytest.approx(2 / 1.5)


def test_a_curve_ends_below_the_top_where_requests_were_not_served() -> None:
    def top(requests: int) -> float:
        drawing = ElementTree.fromstring(
            ttft_cdf({"a & b": [0.1, 0.2]}, requests={"a & b": requests}, title="<two>", slo_s=0.15)
        )
        line = next(part for part in drawing.iter() if part.tag.endswith("polyline"))
        return min(float(point.split(",")[1]) for point in line.attrib["points"].split())

    assert top(2) < top(4)


def test_a_drawing_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="no TTFT"):
        ttft_cdf({"a": []}, requests={"a": 3}, title="")
