"""What an analysis says, on traffic whose law is known."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from contract.features import FEATURES, INDEX, prefill_work
from prediction import dataset, zones
from prediction.dataset import Dataset
from prediction.errors import DatasetError
from tests.trainer import traffic
from trainer.analysis import findings, knee, page, relations, report, signals, states
from trainer.analysis.findings import Findings
from trainer.analysis.report import HTML, MARKDOWN
from trainer.analysis.signals import Signals

ROWS = 800


@pytest.fixture(scope="module")
def samples() -> Dataset:
    return traffic.samples(ROWS, 5)


@pytest.fixture(scope="module")
def found(samples: Dataset) -> Findings:
    return findings.find(samples, name="known <traffic>", seed=0)


def made_up(load: list[float], ttft_s: list[float]) -> Signals:
    values = np.array(ttft_s)
    return Signals({"active": np.array(load)}, values, zones.of(values))


# ------------------------------------------------------------------------------------------------------------------- signals


def test_derived_signals_are_the_work_that_a_router_can_count(samples: Dataset) -> None:
    columns = signals.of(samples).columns
    row = samples.rows[0]
    uncached, tokens = row[INDEX["uncached_tokens"]], row[INDEX["input_tokens"]]
    own = prefill_work(uncached, uncached * (tokens - uncached / 2))
    queued = prefill_work(row[INDEX["prefill_tokens"]], row[INDEX["prefill_pairs"]])
    assert columns["work_tokens"][0] == pytest.approx(own + queued)
    assert columns["work_s"][0] == pytest.approx((own + queued) / row[INDEX["prefill_tokens_per_s"]])


def test_what_is_foreseen_is_the_queue_and_this_requests_own_work(samples: Dataset) -> None:
    few = samples.take(np.arange(60))
    for name, value in (
        ("uncached_tokens", 500.0),
        ("input_tokens", 500.0),
        ("prefill_tokens_per_s", 1_000.0),
        ("begins_s", 3.0),
    ):
        few.rows[:, INDEX[name]] = value
    assert signals.of(few).columns["foreseen_s"] == pytest.approx(3.0 + prefill_work(500.0, 125_000.0) / 1_000.0)


def test_a_speed_that_is_not_known_makes_no_seconds_of_work(samples: Dataset) -> None:
    slow = samples.take(np.arange(60))
    slow.rows[:, INDEX["prefill_tokens_per_s"]] = 0.0
    assert np.isnan(signals.of(slow).columns["work_s"]).all()


def test_levels_are_corrected_by_the_rate_that_arrived(samples: Dataset) -> None:
    table = samples.table
    for name, value in (("level", 2.0), ("rate_rps", 10.0), ("arrived_rps", 5.0)):
        table = table.append_column(name, pa.array([value] * len(table)))
    assert set(signals.of(dataset.of_table(table)).columns["level"]) == {1.0}
    unknown = table.set_column(table.column_names.index("arrived_rps"), "arrived_rps", pa.array([math.nan] * len(table)))
    assert set(signals.of(dataset.of_table(unknown)).columns["level"]) == {2.0}


def test_too_few_samples_are_refused(samples: Dataset) -> None:
    with pytest.raises(DatasetError, match="49 samples"):
        signals.of(samples.take(np.arange(49)))


# ---------------------------------------------------------------------------------------------------------------------- knee


def test_the_knee_of_a_known_curve_is_found() -> None:
    """TTFT = 0.1 s x 2^(load / 10) passes 0.5 s at 23.2 and 2 s at 43.2."""
    rng = np.random.default_rng(0)
    load = rng.uniform(0, 60, 4_000)
    ttft_s = 0.1 * 2 ** (load / 10) * np.exp(rng.normal(0, 0.2, len(load)))
    (one,) = knee.find(made_up(load.tolist(), ttft_s.tolist()))
    assert one.at_from == pytest.approx(10 * math.log2(5), abs=1.0)
    assert one.at_to == pytest.approx(10 * math.log2(20), abs=1.0)


@given(st.lists(st.floats(0.01, 100), min_size=4, max_size=30), st.floats(0.02, 50))
def test_a_bound_is_crossed_between_the_points_around_it(values: list[float], bound_s: float) -> None:
    smooth = np.sort(np.array(values))
    load = np.arange(len(smooth), dtype=float)
    at = knee.crossing(load, smooth, bound_s)
    if smooth[0] >= bound_s or smooth[-1] < bound_s:
        assert math.isnan(at)
    else:
        assert smooth[math.floor(at)] <= bound_s or math.isclose(smooth[math.floor(at)], bound_s)
        assert smooth[math.ceil(at)] >= bound_s or math.isclose(smooth[math.ceil(at)], bound_s)


def test_a_load_that_does_not_vary_has_no_knee() -> None:
    assert knee.find(made_up([3.0] * 200, [0.1] * 200)) == []


def test_rates_say_nothing_where_levels_are_known() -> None:
    values = np.linspace(0.1, 3.0, 400)
    loads = {"level": values, "rate_rps": values * 10}
    assert [one.signal for one in knee.find(Signals(loads, values, zones.of(values)))] == ["level"]
    del loads["level"]
    assert [one.signal for one in knee.find(Signals(loads, values, zones.of(values)))] == ["rate_rps"]


# ----------------------------------------------------------------------------------------------------------------- relations


def test_correlations_are_those_of_each_zone_alone() -> None:
    """Load and TTFT rise together from zone to zone, and fall inside each."""
    load = [*range(100, 0, -1), *range(200, 100, -1)]
    ttft_s = [*np.linspace(0.1, 0.9, 100), *np.linspace(1.1, 9.0, 100)]
    one = relations.correlations(made_up([float(value) for value in load], ttft_s))["active"]
    assert one["low"].spearman == pytest.approx(-1)
    assert one["medium"].spearman == pytest.approx(-1)
    assert one["all"].spearman > 0
    assert math.isnan(one["high"].spearman), "nobody is there"


def test_the_best_signals_of_a_zone_come_first_and_unknown_ones_not_at_all(found: Findings) -> None:
    names = relations.best(found.correlations, "all")
    ranks = [abs(found.correlations[name]["all"].spearman) for name in names]
    assert ranks == sorted(ranks, reverse=True)
    assert {*names[:2]} == {"work_s", "foreseen_s"}, "nearly the law by which the traffic was made"
    assert "cache_tokens" not in names, "it is the same everywhere"


def test_importance_falls_on_what_the_law_is_made_of(found: Findings) -> None:
    permuted = found.importance.permuted
    law = {"begins_s", "prefill_tokens", "uncached_tokens", "prefill_tokens_per_s", "prefill_pairs", "input_tokens"}
    assert set(sorted(permuted, key=lambda name: permuted[name])[-3:]) <= law
    assert sum(found.importance.gain.values()) == pytest.approx(1)
    assert found.importance.r2 > 0.8
    assert not {"work_tokens", "work_s", "foreseen_s"} & set(permuted), "made of others, they would take their share"


# -------------------------------------------------------------------------------------------------------------------- states


def test_clusters_are_numbered_by_their_median_ttft(found: Findings) -> None:
    medians = [np.median(found.signals.ttft_s[found.states.cluster == number]) for number in range(states.CLUSTERS)]
    assert medians == sorted(medians)
    assert set(found.states.cluster) == set(range(states.CLUSTERS))


def test_the_number_of_clusters_that_were_made_is_found() -> None:
    rng = np.random.default_rng(1)
    middles = np.array([[0.0, 0.0], [0.0, 9.0], [9.0, 0.0]])
    points = np.vstack([middle + rng.normal(0, 0.1, (100, 2)) for middle in middles])
    columns = {name: np.expm1(points[:, place] + 1) for place, name in enumerate(("active", "input_tokens"))}
    ttft_s = np.repeat([0.1, 2.0, 0.5], 100)
    with threadpool_limits(findings.THREADS):
        made = states.find(Signals(columns, ttft_s, zones.of(ttft_s)), seed=0)
    assert made.silhouette_k == 3
    assert made.elbow_k == 3


def test_an_elbow_is_where_a_curve_turns() -> None:
    assert states.elbow({1: 100.0, 2: 20.0, 3: 10.0, 4: 9.0, 5: 8.0}) == 2
    assert states.elbow({1: 1.0, 2: 1.0}) == 1


def test_nothing_that_varies_is_no_state(samples: Dataset) -> None:
    one = Signals({"active": np.arange(100.0)}, np.ones(100), zones.of(np.ones(100)))
    with pytest.raises(ValueError, match="two signals that vary; there are active"):
        states.find(one, seed=0)


# -------------------------------------------------------------------------------------------------------------------- report


def test_a_report_has_every_figure_and_the_html_needs_no_other_file(found: Findings, tmp_path: Path) -> None:
    written = report.write(found, tmp_path)
    names = {path.name for path in written}
    assert {"optimal_k.png", "cluster_tsne.png", "cluster_boxplots.png", MARKDOWN, HTML} <= names
    pictures = {name for name in names if name.endswith(".png")}
    text = (tmp_path / MARKDOWN).read_text()
    assert set(re.findall(r"\]\((\S+\.png)\)", text)) == pictures
    page = (tmp_path / HTML).read_text()
    assert page.count("data:image/png;base64,") == len(pictures)
    assert "known &lt;traffic&gt;" in page
    assert "<traffic>" not in page
    assert not re.search(r'(?:src|href)="(?!data:)', page)
    for picture in pictures:
        assert (tmp_path / picture).read_bytes().startswith(b"\x89PNG")


def test_a_reports_zones_add_up(found: Findings, tmp_path: Path) -> None:
    report.write(found, tmp_path)
    text = (tmp_path / MARKDOWN).read_text()
    counts = re.findall(r"^\| (?:low|medium|high) \([^|]*\| (\d+) \|", text, re.MULTILINE)
    assert sum(map(int, counts)) == ROWS
    for name in FEATURES:
        if name in found.correlations:
            assert f"| {name} |" in text


def test_the_same_seed_gives_the_same_states(samples: Dataset) -> None:
    few = signals.of(samples.take(np.arange(150)))
    with threadpool_limits(findings.THREADS):
        one, two = (states.find(few, seed=3) for _ in range(2))
    assert np.array_equal(one.cluster, two.cluster)
    assert np.array_equal(one.tsne, two.tsne)


def test_a_page_shows_what_its_markdown_says_and_nothing_else_runs_in_it() -> None:
    text = "# A & B\n\n| a | b |\n|---|---|\n| 1 | `x` |\n\n![about](figures/a.png)\n\n<script>x</script>\n"
    shown = page.render(text)
    assert "<title>A &amp; B</title>" in shown
    assert "<td><code>x</code></td>" in shown
    assert shown.index('<div class="wide"') < shown.index("<table>") < shown.index("</table></div>"), (
        "it moves in a narrow window"
    )
    assert '<img src="figures/a.png" alt="about"' in shown
    assert "<script>" not in shown
