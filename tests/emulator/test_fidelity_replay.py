from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from emulator.fidelity import pace
from emulator.fidelity.compare import Level, apart, compare, errors, of_levels, quiet, repeats
from emulator.fidelity.cpu import halves
from emulator.fidelity.machine import BIN_S, Timeline, contention
from emulator.fidelity.recording import Recording
from emulator.fidelity.replay import Undisturbed, replay
from emulator.latency import Batch, Chunk
from emulator.presets import TINY_CPU
from tests.emulator.recordings import RUN_S, arrivals, recorded

CURVE = np.array([1.2, 1.5, 2.0, 3.0, 5.0])
NUM_RUNS = 4


@pytest.fixture(scope="module")
def asked() -> Recording:
    return arrivals(NUM_RUNS, 40)


def changing() -> Timeline:
    """Each run has its own speed, and every other second a machine that somebody else uses too."""
    times = [RUN_S * run + second for run in range(NUM_RUNS) for second in range(int(RUN_S))]
    rates = [(0.8 + 0.1 * run) * (1.0 if second % 4 < 2 else 0.7) for run in range(NUM_RUNS) for second in range(int(RUN_S))]
    return Timeline(times, rates)


def test_a_request_alone_takes_the_way_in_and_its_own_steps(asked: Recording) -> None:
    alone = asked.only(np.arange(len(asked)) == 0)
    found = replay(alone, TINY_CPU, TINY_CPU.batching, Undisturbed())
    tokens, latency = len(alone.prompts[0]) // 4, TINY_CPU.batching
    assert found.ttft_s[0] == pytest.approx(latency.request_s + latency.step_s(Batch([Chunk(tokens, 0)], starts=1)))
    assert found.itl_s[0] == pytest.approx(latency.step_s(Batch([], decodes=1, decode_context=tokens)), rel=0.02)


def test_on_a_machine_of_half_the_speed_a_request_alone_takes_twice_as_long(asked: Recording) -> None:
    alone = asked.only(np.arange(len(asked)) == 0)
    once = replay(alone, TINY_CPU, TINY_CPU.batching, Undisturbed())
    twice = replay(alone, TINY_CPU, TINY_CPU.batching, Timeline([0.0], [0.5]))
    assert twice.ttft_s == pytest.approx(2 * once.ttft_s)
    assert twice.tpot_s == pytest.approx(2 * once.tpot_s)


def test_the_speed_of_the_machine_over_time_is_told_by_other_requests(asked: Recording) -> None:
    real = recorded(asked, changing)
    rates = pace.measure(
        real, TINY_CPU.batching, runs := contention(real), [np.ones(len(run.cpu)) for run in runs], np.ones(len(real), bool)
    )
    for run, by_bin in zip(runs, rates, strict=True):
        at = run.begin_s + BIN_S * (np.arange(len(by_bin)) + 0.5)
        true = np.diff(changing().work_s(np.append(at - BIN_S / 2, at[-1] + BIN_S / 2))) / BIN_S
        middle = slice(4, len(by_bin) - 8)
        assert np.median(np.abs(by_bin[middle] / true[middle] - 1)) < 0.12


def test_on_such_a_machine_the_right_engine_is_recognised_and_a_wrong_one_is_not(asked: Recording) -> None:
    real, latency = recorded(asked, changing), TINY_CPU.batching
    right = errors(real, pace.crossed(real, latency, CURVE, draws=1))
    wrong = replace(latency, prefill_s_per_token=latency.prefill_s_per_token / 2)
    other = errors(real, pace.crossed(real, wrong, CURVE, draws=1))
    assert right["ttft_s"] < 0.06
    assert right["tpot_s"] < 0.06
    assert other["ttft_s"] > 2 * right["ttft_s"]


def test_no_request_tells_its_own_speed(asked: Recording) -> None:
    real = recorded(asked, changing)
    (before,) = pace.crossed(real, TINY_CPU.batching, CURVE, draws=1)
    real.tpot_s[::2] *= 1.5  # one fold
    (after,) = pace.crossed(real, TINY_CPU.batching, CURVE, draws=1)
    assert after.ttft_s[::2] == pytest.approx(before.ttft_s[::2])
    assert not np.allclose(after.ttft_s[1::2], before.ttft_s[1::2], rtol=0.01)


def test_levels_are_compared_by_their_own_requests_and_all_draws(asked: Recording) -> None:
    real = recorded(asked, Undisturbed)
    same = replay(asked, TINY_CPU, TINY_CPU.batching, Undisturbed())
    for level in compare(real, [same, same], np.ones(len(real), bool)):
        assert level.ratios == pytest.approx((1, 1, 1))
        assert level.within
        assert (level.requests, level.runs) == (80, 2)


def test_a_level_is_met_within_its_bounds_and_no_further() -> None:
    level = Level("closed_1", 10, 1, 0.0, (1.0, 2.0, 0.01), (1.14, 1.72, 0.0109))
    assert level.within
    assert not replace(level, emulated=(1.16, 2.0, 0.01)).within
    assert not replace(level, emulated=(1.0, 2.0, 0.0112)).within
    assert not replace(level, emulated=(1.0, 1.6, 0.01)).within


def test_repeats_of_an_engine_on_a_machine_that_changes_are_as_far_apart_as_the_machine(asked: Recording) -> None:
    everything = np.ones(len(asked), bool)
    speeds = Timeline([RUN_S * run for run in range(NUM_RUNS)], [1.0, 1.0, 0.6, 1.0])
    slow, steady = (level.ratios[2] for level in repeats(recorded(asked, lambda: speeds), everything))
    assert slow > 1.3 or slow < 1 / 1.3
    assert steady == pytest.approx(1.0, rel=0.2)


def test_runs_are_as_far_apart_as_the_machine_was_whatever_their_arrivals(asked: Recording) -> None:
    speeds = Timeline([RUN_S * run for run in range(NUM_RUNS)], [1.0, 1.0, 0.8, 1.0])
    same = replay(asked, TINY_CPU, TINY_CPU.batching, Undisturbed())
    found = apart(recorded(asked, lambda: speeds), same, np.ones(len(asked), bool))
    # A slower machine decodes more sequences at a time, too.
    assert 1 / 0.8 < found["poisson_1"][2] < 2 / 0.8
    assert found["poisson_2"] == pytest.approx((1, 1, 1))


def test_the_halves_of_the_levels_share_nothing_and_leave_nothing_out(asked: Recording) -> None:
    first, second = halves(asked)
    assert first.isdisjoint(second)
    assert (of_levels(asked, first) ^ of_levels(asked, second)).all()


def test_a_quiet_run_is_one_in_which_others_used_little(asked: Recording) -> None:
    real = recorded(asked, Undisturbed)
    real.other_cpu[real.runs == 1] = 0.5
    assert quiet(real).tolist() == (real.runs != 1).tolist()
