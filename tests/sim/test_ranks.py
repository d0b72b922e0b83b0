"""Workers of several data-parallel ranks in virtual time: each rank is what is counted, matched and credited by itself."""

from __future__ import annotations

from dataclasses import replace

import pytest

from controlplane.progress import HUNG_AFTER_S
from controlplane.ranks import steered, together
from simulation import faults
from simulation.checks import Violation
from simulation.control import Parts
from simulation.proxy import Fate
from simulation.world import Report, Setup, Simulation
from tests.sim import parts


def setup(*, count: int = 60, seed: int = 1, plan: tuple[faults.Fault, ...] = ()) -> Setup:
    return replace(parts.setup("lmetric", count=count, seed=seed, workers=2, plan=plan), ranks=3)


def run(setup: Setup) -> Report:
    return Simulation(setup).run()


def test_predicted_matches_are_what_the_rank_finds_while_nothing_is_evicted() -> None:
    report = run(setup())
    assert all(result.fate is Fate.COMPLETE for result in report.results)
    assert sum(result.matched_tokens for result in report.results) > 0
    assert [result.matched_tokens for result in report.results] == [result.cached_tokens for result in report.results]
    assert report.compared_blocks > 0
    assert report.compared_loads > 20


def test_a_worker_that_balances_by_itself_keeps_less_of_what_was_promised() -> None:
    named, alone = run(setup()), run(replace(setup(), steering=together))
    assert sum(result.cached_tokens for result in named.results) > sum(result.cached_tokens for result in alone.results)
    assert any(result.matched_tokens > result.cached_tokens for result in alone.results)
    assert alone.compared_blocks > 0


@pytest.mark.parametrize("steering", [steered, together])
@pytest.mark.parametrize("seed", range(3))
def test_what_must_hold_holds_whatever_happens_to_engines_agents_and_the_control_plane(steering: object, seed: int) -> None:
    plan = parts.drawn(seed, workers=2, count=12)
    report = run(replace(setup(count=120, seed=seed, plan=plan), steering=steering, jobs=parts.chats(120, rate=15.0)))
    assert len(report.results) == 120
    assert report.compared_loads > 0


def test_lost_deltas_of_any_rank_are_made_up_for_by_one_snapshot_of_all() -> None:
    healthy = run(setup())
    report = run(setup(plan=(faults.LoseDeltas(1.0, 0, 3), faults.LoseDeltas(2.0, 1, 1))))
    assert report.loads >= healthy.loads + 2
    assert all(result.fate is Fate.COMPLETE for result in report.results)


def test_a_rank_that_hangs_gets_nothing_and_the_others_of_its_worker_serve_on() -> None:
    """One worker only: without a breaker of its own for each rank there would be nobody left."""
    hung_at_s, hung_s = 1.0, 60.0
    plan = (faults.HangEngine(hung_at_s, 0, hung_s, rank=1),)
    one = replace(setup(plan=plan), presets=("tiny-cpu",), jobs=parts.chats(120, rate=3.0))
    report = run(one)
    late = [result for result in report.results if result.arrived_s > hung_at_s + HUNG_AFTER_S + 2]
    assert len(late) > 20
    assert all(result.fate is Fate.COMPLETE and result.ttft_s < 5 for result in late), "nobody who came later waited there"
    stuck = [result for result in report.results if result.ended_s > hung_at_s + hung_s]
    assert stuck, "some were there when it began to hang"
    assert all(result.arrived_s < hung_at_s + HUNG_AFTER_S + 2 for result in stuck if result.ttft_s > 5)


def test_an_index_that_misses_blocks_of_a_rank_is_noticed() -> None:
    broken = replace(setup(), parts=Parts(index=parts.IndexThatMissesBlocks))
    with pytest.raises(Violation, match=r"the index counts .* blocks, the engine holds"):
        run(broken)


def test_the_same_seed_gives_the_same_numbers() -> None:
    first, again = (run(setup(plan=parts.drawn(5, workers=2))) for _ in range(2))
    assert first.results == again.results
