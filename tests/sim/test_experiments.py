"""The experiments with learned TTFT, on a small scale: a fleet that becomes slow, and fleets of unequal workers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from emulator.presets import PRESETS
from headway.__main__ import UsageError, dispatch
from simulation import fleets, slowdown
from simulation.fleets import Comparison, Fleet
from simulation.parallel import play
from simulation.proxy import Fate
from simulation.slowdown import LIVE, ORACLE, PLAIN, WITHIN_SHARE, Outcome, Point, Slowdown
from simulation.slowdown_figure import slowdown_svg
from simulation.world import Report, Setup

SMALL = Slowdown(workers=4, slowed=2, rate=9.0, capacity=18.0, at_s=25.0, after_s=120.0, teach_s=40.0, teach_ramps=2)
FLEET = Comparison(duration_s=92.0, train_every_s=30.0)
JOINING = Fleet("joining", slowed=2, joins_s=26.0)
UNEQUAL = (*(fleet for fleet in fleets.FLEETS if fleet.name in ("half slow", "small caches")), JOINING)


def at_once(setups: Sequence[Setup]) -> list[Report]:
    """As `headway simulate` plays them."""
    return play(setups, 2, lambda place, ended: None)


@cache
def slowed() -> Outcome:
    models = slowdown.taught(at_once(slowdown.teaching(SMALL, 1)))
    return slowdown.judged(SMALL, [1], at_once(slowdown.setups(SMALL, [1], models)))


@pytest.mark.slow
def test_a_minute_after_half_of_the_fleet_became_slow_predictive_does_what_a_model_of_that_state_does() -> None:
    outcome = slowed()
    assert outcome.unserved == {LIVE: 0, ORACLE: 0, PLAIN: 0}
    assert outcome.ratio <= 1 + WITHIN_SHARE, outcome.settled_s
    assert outcome.met


@pytest.mark.slow
def test_a_policy_without_speeds_does_worse_on_the_slow_fleet() -> None:
    outcome = slowed()
    assert outcome.plain_ratio > 1.1 * outcome.ratio, outcome.settled_s


@pytest.mark.slow
def test_before_the_slowdown_nothing_is_amiss() -> None:
    outcome = slowed()
    assert outcome.before_s[LIVE] < (1 + WITHIN_SHARE) * outcome.settled_s[LIVE]
    assert outcome.points[0].at_s < 0 < outcome.points[-1].at_s


def test_a_request_that_got_no_token_counts_as_one_that_waited_for_ever() -> None:
    pairs = np.array([[1.0, 0.1], [2.0, np.inf], [3.0, 0.2]])
    assert slowdown._p90(pairs, 0.0, 10.0) == np.inf
    assert slowdown._p90(pairs, 2.5, 10.0) == 0.2
    assert np.isnan(slowdown._p90(pairs, 5.0, 10.0))


def test_the_drawing_has_three_lines_a_band_and_both_moments() -> None:
    points = [Point(float(at_s), {LIVE: 0.3, ORACLE: 0.25, PLAIN: 0.4}) for at_s in range(-30, 150, 10)]
    root = ElementTree.fromstring(slowdown_svg(points, title="a < b", subtitle="c"))
    tags = [element.tag.rpartition("}")[2] for element in root.iter()]
    assert (tags.count("polyline"), tags.count("polygon")) == (3, 1)
    texts = [element.text for element in root.iter() if element.text]
    assert {"a < b", "workers slow", "60 s", "oracle", "lmetric"} <= set(texts)
    with pytest.raises(ValueError, match="nothing to draw"):
        slowdown_svg([], title="", subtitle="")


@cache
def played() -> dict[tuple[Fleet, str], Report]:
    """By fleet and policy; the longest first."""
    cases = [(fleet, policy) for policy in ("predictive", "lmetric") for fleet in UNEQUAL]
    reports = at_once([FLEET.setup(fleet, policy, seed=1) for fleet, policy in cases])
    return dict(zip(cases, reports, strict=True))


@pytest.mark.slow
@pytest.mark.timeout(240)  # the first one plays for all of them
@pytest.mark.parametrize("fleet", UNEQUAL, ids=lambda fleet: fleet.name)
def test_on_an_unequal_fleet_predictive_is_no_worse_than_lmetric(fleet: Fleet) -> None:
    """A fifth of leeway for one seed's luck; `headway simulate --experiment fleets` prints the figures of several."""
    predictive, plain = (FLEET.figures(fleet, [played()[fleet, policy]]) for policy in ("predictive", "lmetric"))
    assert predictive.complete == predictive.requests == plain.requests > 200
    assert predictive.ttft_s.p50 is not None
    assert predictive.ttft_s.p90 is not None
    assert plain.ttft_s.p50 is not None
    assert plain.ttft_s.p90 is not None
    assert predictive.ttft_s.p50 <= 1.2 * plain.ttft_s.p50
    assert predictive.ttft_s.p90 <= 1.2 * plain.ttft_s.p90
    assert predictive.goodput_share >= plain.goodput_share - 0.03


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_workers_that_join_get_work_from_the_first_minute_on() -> None:
    report = played()[JOINING, "predictive"]
    first_s = 0.5 + JOINING.joins_s
    joined = [one for one in report.results if one.worker in ("worker-0", "worker-1")]
    assert all(one.arrived_s > first_s - 5.0 for one in joined if one.fate is Fate.COMPLETE)
    minute = [one for one in report.results if first_s + 5.0 <= one.arrived_s < first_s + 65.0]
    share = sum(one.worker in ("worker-0", "worker-1") for one in minute) / len(minute)
    assert 0.3 * 2 / 8 / fleets.SLOW_FACTOR < share < 2 / 8, share


def test_a_fleet_with_more_slow_workers_than_there_are_is_a_mistake() -> None:
    with pytest.raises(AssertionError, match="9 slow"):
        Fleet("impossible", slowed=9)
    assert replace(fleets.FLEETS[0], slowed=8).capacity == pytest.approx(fleets.CAPACITY / fleets.SLOW_FACTOR)


def test_of_two_models_either_has_its_share_of_the_slow_workers_and_of_the_requests() -> None:
    fleet = next(fleet for fleet in fleets.FLEETS if fleet.others)
    assert fleet.slow_workers == [0, 1, 4, 5]
    first, other = fleet.capacities()
    assert (first, other) == pytest.approx((fleets.CAPACITY * 0.35, fleets.OTHER_CAPACITY * 0.35))
    setup = Comparison(duration_s=60.0).setup(fleet, "lmetric", seed=1)
    share = sum(job.model == PRESETS[fleets.OTHER].model for job in setup.jobs) / len(setup.jobs)
    assert share == pytest.approx(other / (first + other), abs=0.05)
    assert setup.presets[3:5] == ("tiny-cpu", fleets.OTHER)


def test_the_command_prints_a_table_a_fleet_and_writes_the_figures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # The command as it is typed, on fleets that take seconds: what they are is no option of it.
    short = partial(Comparison, duration_s=12.0, train_every_s=2.0, load=0.3)
    monkeypatch.setattr(fleets, "Comparison", short)
    monkeypatch.setattr(fleets, "FLEETS", (Fleet("equal"), Fleet("half slow", slowed=4)))
    path = tmp_path / "fleets.json"
    arguments = ["--policies", "random,lmetric", "--seeds", "1", "--jobs", "2", "--json", str(path)]
    assert dispatch(["simulate", "--experiment", "fleets", *arguments]) == 0
    printed = capsys.readouterr().out
    assert all(word in printed for word in ("equal", "half slow", "random", "lmetric", "goodput"))
    written = json.loads(path.read_text())
    assert [(one["fleet"]["name"], one["figures"]["policy"]) for one in written] == [
        (fleet, policy) for fleet in ("equal", "half slow") for policy in ("random", "lmetric")
    ]


def test_an_experiment_or_a_policy_that_there_is_not_is_refused() -> None:
    with pytest.raises(UsageError, match="slowest"):
        dispatch(["simulate", "--experiment", "slowest"])
    with pytest.raises(UsageError, match="no policy 'fastest'"):
        dispatch(["simulate", "--experiment", "fleets", "--policies", "fastest"])
