from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen import recorder, report
from loadgen.answer import Answer
from loadgen.client import Exchange
from loadgen.errors import LoadError
from loadgen.recorder import Record, Recorder, gaps_of, record
from loadgen.summary import GapHistogram, Quantiles, Slo, Summary, lateness_warning, quantiles
from loadgen.workload import TimedRequest
from tests.fakes.sse_server import DONE, chat_text, event, usage


def entry(index: int = 0, **changes: object) -> Record:
    """A request that went well: due and sent at `index` seconds, first token after 0.1 s, ended after 1 s."""
    fields: dict[str, object] = {
        "index": index,
        "request_id": f"r-{index}",
        "scheduled_s": float(index),
        "sent_s": float(index),
        "lateness_s": 0.0,
        "ttft_s": 0.1,
        "e2e_s": 1.0,
        "tpot_s": 0.01,
        "prompt_tokens": 100,
        "output_tokens": 10,
        "output_tokens_asked": 10,
        "end": "ok",
        "status": 200,
    }
    return Record(**{**fields, **changes})  # type: ignore[arg-type]


def summary(*entries: Record, **options: object) -> Summary:
    made = Summary(**options)  # type: ignore[arg-type]
    for each in entries:
        made.add(each)
    return made


FAILED = {"end": "truncated", "ttft_s": 0.01, "error": "cut"}
SHED = {"end": "shed", "ttft_s": -1.0, "status": 503}
INTERRUPTED = {"end": "interrupted", "ttft_s": 0.01}


def test_failures_and_sheds_count_as_misses_and_interrupted_requests_not_at_all() -> None:
    slow = entry(1, ttft_s=0.6)
    figures = summary(
        entry(0), slow, entry(2, **FAILED), entry(3, **SHED), entry(4, **INTERRUPTED), slo=Slo(ttft_s=0.5)
    ).figures()
    assert (figures.requests, figures.ok, figures.failed, figures.shed, figures.interrupted) == (5, 2, 1, 1, 1)
    assert figures.goodput_share == 1 / 4
    assert figures.failures == {"truncated": 1}


def test_latencies_are_those_of_requests_that_went_well() -> None:
    figures = summary(entry(0, ttft_s=0.2), entry(1, **FAILED), entry(2, **INTERRUPTED)).figures()
    assert figures.ttft_s == Quantiles(0.2, 0.2, 0.2, 0.2)


def test_an_slo_on_both_first_token_and_gaps_is_kept_only_where_both_are() -> None:
    slo = Slo(ttft_s=0.2, itl_s=0.02)
    assert slo.met(entry())
    assert not slo.met(entry(ttft_s=0.21))
    assert not slo.met(entry(tpot_s=0.021))
    assert slo.met(entry(tpot_s=-1.0)), "one token has no gap"
    assert not slo.met(entry(ttft_s=-1.0))


def test_the_cached_share_is_the_engines_own_over_the_prompts_of_those_that_report_it() -> None:
    figures = summary(entry(0, cached_tokens=64), entry(1, cached_tokens=0), entry(2), entry(3, **SHED)).figures()
    assert (figures.cached_tokens, figures.prompt_tokens, figures.cached_reported) == (64, 200, 2)
    assert figures.cached_share == 0.32
    assert summary(entry()).figures().cached_share is None


def test_predicted_and_actual_match_are_compared_to_the_block() -> None:
    pairs = [(64, 64), (70, 64), (80, 64), (32, 64), (-1, 64)]
    entries = [entry(n, matched_tokens=matched, cached_tokens=cached) for n, (matched, cached) in enumerate(pairs)]
    figures = summary(*entries, match_block_tokens=16).figures()
    assert figures.match_compared == 4
    assert (figures.match_equal_share, figures.match_over_share, figures.match_under_share) == (0.5, 0.25, 0.25)


def test_rates_are_over_the_time_from_the_first_due_to_the_last_end_rounds_added_up() -> None:
    one = summary(entry(0), entry(1), entry(2, e2e_s=2.0)).figures()
    assert (one.duration_s, one.completed_per_s, one.output_tokens_per_s) == (4.0, 0.75, 7.5)
    assert one.offered_per_s == 1.5
    two = summary(entry(0), entry(1), entry(0, round=1), entry(1, round=1)).figures()
    assert two.duration_s == 4.0


def test_requests_per_worker_short_answers_and_the_routers_own_doings_are_counted() -> None:
    figures = summary(
        entry(0, worker="b", attempts=2),
        entry(1, worker="a", fallback=True),
        entry(2, worker="b", output_tokens=9, reconnects=1),
        entry(3, **SHED),
    ).figures()
    assert figures.workers == {"a": 1, "b": 2}
    assert (figures.retried, figures.fallbacks, figures.reconnects, figures.short_outputs) == (1, 1, 1, 1)


def test_nothing_gives_empty_figures_and_a_readable_report() -> None:
    figures = Summary().figures()
    assert (figures.requests, figures.duration_s, figures.ttft_s.p50) == (0, 0.0, None)
    assert "0 ok" in report.render([figures])


@given(st.lists(st.floats(0, 100), min_size=1))
def test_quantiles_are_ordered_and_within_the_values(values: list[float]) -> None:
    got = quantiles(values)
    assert got.p50 is not None
    assert got.p90 is not None
    assert got.p99 is not None
    assert min(values) <= got.p50 <= got.p90 <= got.p99 <= max(values)


@given(st.lists(st.lists(st.floats(1e-5, 100), min_size=1), min_size=1), st.floats(0, 1))
def test_gaps_in_the_histogram_have_the_quantiles_of_the_gaps_to_two_percent(parts: list[list[float]], q: float) -> None:
    histogram, other = GapHistogram(), GapHistogram()
    for place, part in enumerate(parts):
        (histogram if place % 2 else other).add(part)
    histogram.merge(other)
    exact = float(np.quantile(np.concatenate(parts), q, method="inverted_cdf"))
    below = float(np.quantile(np.concatenate(parts), q, method="lower"))
    got = histogram.quantile(q)
    assert got is not None
    assert below * 0.98 <= got <= max(exact, below) * 1.02


def test_only_gaps_of_requests_that_went_well_count() -> None:
    made = Summary()
    made.add(entry(0), [0.01, 0.01])
    made.add(entry(1, **FAILED), [5.0] * 10)
    assert made.figures().itl_s.max == pytest.approx(0.01, rel=0.01)


@pytest.mark.parametrize(("late_s", "ttft_s", "warned"), [(0.009, 0.01, False), (0.02, 0.01, True), (0.02, 1.0, False)])
def test_a_late_generator_is_warned_of_where_its_lateness_shows_in_the_figures(
    late_s: float, ttft_s: float, warned: bool
) -> None:
    assert bool(lateness_warning(Quantiles(p99=late_s), Quantiles(p50=ttft_s))) is warned
    shown = report.render([summary(entry(lateness_s=late_s, ttft_s=ttft_s)).figures()])
    assert ("warning: the load generator itself was late" in shown) is warned


def test_a_comparison_has_a_column_for_each_policy() -> None:
    prefix = summary(entry(cached_tokens=80, worker="a"), policy="prefix", slo=Slo(ttft_s=1.0)).figures()
    robin = summary(entry(cached_tokens=20, worker="b"), policy="round_robin", slo=Slo(ttft_s=1.0)).figures()
    lines = report.render([prefix, robin]).splitlines()
    assert lines[0].split() == ["prefix", "round_robin"]
    (cached,) = [line for line in lines if line.startswith("cached prompt tokens")]
    assert "80.0 %" in cached
    assert "20.0 %" in cached
    assert len({line.find("100.0 %") for line in lines if line.startswith("goodput ")}) == 1


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "-"),
        (0.0, "0 us"),
        (0.00025, "250 us"),
        (0.01234, "12.3 ms"),
        (0.9999, "1 s"),
        (1.234, "1.23 s"),
        (250.4, "250 s"),
    ],
)
def test_durations_are_written_in_the_unit_that_reads_best(seconds: float | None, text: str) -> None:
    assert report.duration(seconds) == text


def exchange() -> Exchange:
    answer = Answer()
    answer.streaming = True
    for now, data in (
        (11.0, chat_text("a")),
        (11.5, chat_text("b")),
        (12.5, chat_text("c", "length")),
        (12.6, usage(40, 4, 32)),
    ):
        answer.feed(event(data), now)
    answer.feed(event(DONE), 12.6)
    headers = {"x-headway-worker": "w", "x-headway-matched-tokens": "32", "x-headway-attempts": "2", "x-headway-fallback": "1"}
    return Exchange(10.5, answer=answer, status=200, headers=headers, ended=12.6, end="ok")


def test_a_record_says_when_it_was_due_sent_and_answered_on_the_runs_own_clock() -> None:
    asked = TimedRequest(3, 0.25, "/", b"", 41, 4, "r", "s")
    got = record(asked, exchange(), start=10.0, round_index=1, policy="prefix")
    assert (got.scheduled_s, got.sent_s, got.lateness_s, got.ttft_s, got.e2e_s) == (0.25, 0.5, 0.25, 0.5, 2.1)
    assert (got.tpot_s, got.prompt_tokens, got.output_tokens, got.cached_tokens, got.matched_tokens) == (0.5, 40, 4, 32, 32)
    assert (got.worker, got.attempts, got.fallback, got.policy, got.round) == ("w", 2, True, "prefix", 1)
    assert got.itl is not None
    assert (got.itl.count, got.itl.p50_s, got.itl.max_s) == (2, 0.75, 1.0)


def test_headers_that_are_no_numbers_are_not_known() -> None:
    made = exchange()
    made.headers["x-headway-matched-tokens"] = "many"
    assert record(TimedRequest(0, 0, "/", b"", 0, 1, "r"), made, start=0.0).matched_tokens == -1


def test_a_single_event_has_no_gaps() -> None:
    assert gaps_of([]) is None


def test_records_come_back_from_their_file_as_they_were_written(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "run.jsonl"
    entries = [entry(0, itl=gaps_of([0.1, 0.2])), entry(1, **SHED)]
    with Recorder(path) as writer:
        for each in entries:
            writer.write(each)
    assert recorder.read(path) == entries


def test_a_file_of_records_that_is_none_is_named_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    path.write_text("{}\n")
    with pytest.raises(LoadError, match=r"run\.jsonl:1: Object missing required field"):
        recorder.read(path)
    with pytest.raises(LoadError, match=r"none\.jsonl: No such file"):
        recorder.read(tmp_path / "none.jsonl")
    with pytest.raises(LoadError, match="Is a directory"):
        Recorder(tmp_path)
