from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from emulator.fidelity.machine import (
    BIN_S,
    PACE_MAX,
    STOP_S,
    Contention,
    Timeline,
    contention,
    overlap,
    rates_of,
    slowness,
    stopping,
)
from emulator.fidelity.replay import Undisturbed
from tests.emulator.recordings import arrivals, recorded

RATES = st.lists(st.floats(0.05, 1.5), min_size=1, max_size=12)


@given(RATES, st.floats(0, 5), st.floats(1e-4, 3))
def test_work_begun_is_done_when_the_timeline_has_given_that_much(rates: list[float], begin_s: float, work_s: float) -> None:
    timeline = Timeline([0.5 * index for index in range(len(rates))], rates)
    end_s = timeline.end_s(begin_s, work_s)
    done = timeline.work_s(np.array([begin_s, end_s]))
    assert done[1] - done[0] == pytest.approx(work_s)


@given(RATES, st.integers(0, 99))
def test_a_machine_that_stops_does_as_much_in_every_bin_as_one_that_is_slow(rates: list[float], seed: int) -> None:
    runs = [Contention(3.0, np.zeros(len(rates)))]
    edges = 3.0 + BIN_S * np.arange(len(rates) + 1)
    stops, slow = stopping(runs, [np.array(rates)], seed=seed), slowness(runs, [np.array(rates)])
    assert np.diff(stops.work_s(edges)) == pytest.approx(np.diff(slow.work_s(edges)), rel=1e-6)


def test_heavy_contention_stops_some_steps_and_leaves_the_others_alone() -> None:
    runs, rates = [Contention(0.0, np.zeros(40))], [np.full(40, 0.25)]
    step_s, stops = 1e-3, stopping(runs, rates)
    now, durations = 0.0, []
    while now < 40 * BIN_S:
        end = stops.end_s(now, step_s)
        durations.append(end - now)
        now = end
    assert np.median(durations) == pytest.approx(step_s * PACE_MAX)
    assert np.mean(durations) == pytest.approx(step_s * 4, rel=0.05)
    assert STOP_S / 2 < max(durations) < 2 * STOP_S * 1.5


def test_overlaps_of_an_interval_add_up_to_it() -> None:
    shared = overlap(np.array([0.1, 0.6]), np.array([0.9, 0.7]), 8)
    assert shared.sum(axis=1) == pytest.approx([0.8, 0.1])
    assert shared[1].nonzero()[0].tolist() == [2]


def test_contention_as_a_function_of_time_is_told_by_averages_over_requests() -> None:
    asked = recorded(arrivals(1, 120, rate=12), Undisturbed)
    begin, end = asked.send_s, asked.send_s + asked.e2e_s
    busy = (4.0, 7.0)
    share = np.maximum(0, np.minimum(end, busy[1]) - np.maximum(begin, busy[0])) / (end - begin)
    asked.other_cpu[:] = 1.5 * share
    (run,) = contention(asked)
    at = run.begin_s + BIN_S * (np.arange(len(run.cpu)) + 0.5)
    assert run.cpu[(at > 4.6) & (at < 6.4)].mean() == pytest.approx(1.5, rel=0.15)
    assert run.cpu[(at < 3.4) | (at > 7.6)].mean() < 0.15


def test_contention_costs_what_the_curve_says_times_the_speed_of_the_run() -> None:
    run = Contention(0.0, np.array([0.05, 0.5, 0.9, 1.8]))
    (rates,) = rates_of([run], np.array([1.1]), np.array([1.2, 1.5, 2.0, 4.0, 6.0]))
    assert 1 / rates == pytest.approx(1.1 * np.array([1.0, 1.2, 1.5, 6.0]))
