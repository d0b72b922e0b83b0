"""What is counted on the hot path: seen now and counted later, found by one label, remembered within bounds."""

from __future__ import annotations

from bisect import bisect_left

from hypothesis import given
from hypothesis import strategies as st

from dataplane.metrics import CELLS_MAX, SECONDS, Cells, Counter, Histogram, Metrics
from dataplane.trace import AT_ONCE, Ids, begun, lines_of, without_id
from dataplane.upstream import WHOLE_HEAD_BYTES_MAX, WHOLE_HEADS_MAX, WholeHeads

TIMES = st.lists(st.lists(st.one_of(st.floats(0, 700), st.sampled_from(SECONDS)), max_size=20), max_size=5)


@given(TIMES)
def test_what_is_counted_together_is_what_each_would_count(rounds: list[list[float]]) -> None:
    histogram, counts = Histogram("h_seconds", "help"), [0] * (len(SECONDS) + 1)
    for values in rounds:
        for value in values:
            histogram.observe(value)
            counts[bisect_left(SECONDS, value)] += 1
        histogram.fold()
    samples = {sample.labels.get("le", sample.name): sample.value for sample in histogram.family().samples}
    assert [samples[str(bound)] for bound in SECONDS] == [sum(counts[: index + 1]) for index in range(len(SECONDS))]
    assert samples["+Inf"] == samples["h_seconds_count"] == sum(map(len, rounds))
    assert abs(samples["h_seconds_sum"] - sum(map(sum, rounds))) < 1e-6 * (1 + samples["h_seconds_sum"])


def test_what_was_seen_since_the_last_time_is_on_the_page() -> None:
    metrics = Metrics()
    metrics.e2e.observe(0.25)
    assert b"headway_proxy_request_seconds_count 1.0" in metrics.page()
    metrics.e2e.observe(0.25)
    metrics.fold()
    assert b"headway_proxy_request_seconds_count 2.0" in metrics.page()


def test_numbers_found_by_one_label_are_the_counters_and_forgetting_them_loses_none() -> None:
    counter = Counter("c", "help", "path", "status")
    cells = Cells(lambda path: counter.cell(path if path == "/a" else "other", "200"))
    for number in range(CELLS_MAX + 5):
        cells[f"/{number}"].count += 1
        cells["/a"].count += 1
    assert len(cells) <= CELLS_MAX
    assert counter.values == {("/a", "200"): CELLS_MAX + 5, ("other", "200"): CELLS_MAX + 5}


def test_names_differ_and_their_lines_say_them() -> None:
    ids, seen = Ids(), set()
    for _ in range(3 * AT_ONCE):
        name, lines = ids.begin()
        assert lines == lines_of(name.encode(), begun(name))
        assert without_id(lines) == b"\r\ntraceparent: " + begun(name)
        seen.add(name)
    assert len(seen) == 3 * AT_ONCE
    assert {len(name) for name in seen} == {32}


def test_remembered_heads_of_answers_are_bounded_in_number_and_size() -> None:
    heads = WholeHeads()
    for size in range(WHOLE_HEADS_MAX + 10):
        heads.add(size, (b"head", 4, b"head", b"hebe"))
    heads.add(-1, (b"", WHOLE_HEAD_BYTES_MAX + 1, b"", b""))
    assert 0 < len(heads) <= WHOLE_HEADS_MAX
    assert -1 not in heads
