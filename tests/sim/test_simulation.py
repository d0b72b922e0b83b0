"""Whole runs in virtual time: nothing is lost, everything is given back, and the same seed tells the same story."""

from __future__ import annotations

from dataclasses import replace

import pytest

from controlplane.profiles import NAMES
from simulation import faults
from simulation.checks import Violation
from simulation.control import Parts
from simulation.proxy import Fate, Result
from simulation.world import Report, Setup, Simulation
from tests.sim import parts


def run(setup: Setup) -> Report:
    return Simulation(setup).run()


def fates(report: Report) -> dict[Fate, int]:
    return {fate: sum(result.fate is fate for result in report.results) for fate in Fate}


def cached(results: list[Result]) -> int:
    return sum(result.cached_tokens for result in results)


@pytest.mark.parametrize("policy", NAMES)
def test_every_policy_completes_every_request_of_a_healthy_fleet(policy: str) -> None:
    report = run(parts.setup(policy))
    assert fates(report)[Fate.COMPLETE] == 60
    assert all(result.attempts == 1 and result.ttft_s > 0 for result in report.results)
    assert report.compared_blocks > 0
    assert report.compared_loads > 20


def test_the_same_seed_gives_the_same_numbers() -> None:
    first, again = (run(parts.setup("power_of_two", plan=parts.drawn(5))) for _ in range(2))
    assert first.results == again.results
    assert (first.events, first.steps, first.virtual_s, first.busy) == (again.events, again.steps, again.virtual_s, again.busy)


def test_another_seed_decides_otherwise() -> None:
    setup = parts.setup("random")
    first, other = run(setup), run(replace(setup, seed=2))
    assert [result.worker for result in first.results] != [result.worker for result in other.results]


def test_predicted_matches_are_what_the_engine_finds_while_nothing_is_evicted() -> None:
    report = run(parts.setup("lmetric", count=40))
    assert sum(result.matched_tokens for result in report.results) > 0
    assert [result.matched_tokens for result in report.results] == [result.cached_tokens for result in report.results]


def test_a_policy_that_knows_the_caches_reuses_more_than_one_that_does_not() -> None:
    assert cached(run(parts.setup("lmetric")).results) > cached(run(parts.setup("round_robin")).results)


def test_without_events_the_router_lives_on_guesses_and_still_finds_most_of_it() -> None:
    with_events, without = run(parts.setup("lmetric")), run(replace(parts.setup("lmetric"), kv_events=False))
    assert cached(without.results) > 0.7 * cached(with_events.results)


def test_a_worker_known_to_be_slow_gets_less() -> None:
    report = run(parts.setup("lmetric", plan=faults.slow([(0, 4.0)])))
    served = [sum(result.worker == f"worker-{number}" for result in report.results) for number in range(3)]
    assert served[0] < min(served[1:])


def test_each_of_two_models_has_workers_of_its_own_whatever_happens() -> None:
    """Engines with blocks of 32 and of 16 tokens; the control plane down for a while, so that the fallback chooses, too."""
    plan = (*faults.slow([(0, 2.0), (3, 2.0)]), faults.RestartControl(2.0, 1.0), faults.KillEngine(4.0, 2, 0.5))
    jobs = [replace(job, model="llama-2-13b") if job.index % 3 else job for job in parts.chats(120, rate=15.0)]
    presets = ("tiny-cpu",) * 2 + ("llama2-13b-a100-40gb",) * 2
    report = run(replace(parts.setup("lmetric", plan=plan), jobs=jobs, presets=presets))
    assert any(result.fallback for result in report.results)
    assert fates(report)[Fate.COMPLETE] > 110
    for result in report.results:
        assert result.worker in (("worker-2", "worker-3") if result.index % 3 else ("worker-0", "worker-1"))
    promised = [result for result in report.results if result.fate is Fate.COMPLETE and result.matched_tokens > 0]
    assert {result.index % 3 > 0 for result in promised} == {True, False}
    assert report.compared_blocks > 0


# ------------------------------------------------------------------------------------------------------------------ faults


def test_a_killed_engine_breaks_only_what_had_begun_to_stream() -> None:
    kills = tuple(faults.KillEngine(at_s, 0, 0.3) for at_s in (1.0, 2.0, 3.0, 4.0, 5.0))
    report = run(replace(parts.setup("least_load", plan=kills), jobs=parts.chats(120, rate=20.0)))
    for result in report.results:
        if result.fate is Fate.BROKEN:
            assert result.ttft_s >= 0, f"request {result.index} had no token yet and was not retried: {result}"
    assert any(result.attempts > 1 and result.fate is Fate.COMPLETE for result in report.results)


def test_a_new_incarnation_is_never_credited_with_the_blocks_of_the_old_one() -> None:
    report = run(parts.setup("prefix", count=120, plan=tuple(faults.KillEngine(at, 0, 0.05) for at in (2.0, 4.0, 6.0))))
    promised = [result for result in report.results if result.fate is Fate.COMPLETE and result.matched_tokens >= 0]
    assert sum(result.matched_tokens > result.cached_tokens for result in promised) <= 2


def test_lost_deltas_are_noticed_and_made_up_for_by_a_snapshot() -> None:
    healthy = run(parts.setup("lmetric"))
    report = run(parts.setup("lmetric", plan=(faults.LoseDeltas(1.0, 0, 3), faults.LoseDeltas(2.0, 1, 1))))
    assert report.loads >= healthy.loads + 2
    assert fates(report)[Fate.COMPLETE] == 60


def test_a_silent_agent_takes_its_worker_out_of_the_choice_and_nothing_is_lost() -> None:
    report = run(parts.setup("round_robin", plan=(faults.SilenceAgent(0.0, 1, 30.0),)))
    assert fates(report)[Fate.COMPLETE] == 60
    late = [result for result in report.results if result.arrived_s > 4.0]
    assert late
    assert all(result.worker != "worker-1" for result in late)


def test_a_hung_engine_delays_and_loses_nothing() -> None:
    report = run(parts.setup("least_load", plan=(faults.HangEngine(1.0, 0, 25.0),)))
    assert fates(report)[Fate.COMPLETE] == 60
    assert max(result.ttft_s for result in report.results) > 20.0


def test_without_a_control_plane_requests_are_placed_by_the_data_plane() -> None:
    report = run(parts.setup("lmetric", plan=(faults.RestartControl(2.0, 2.0),)))
    assert fates(report)[Fate.COMPLETE] == 60
    assert sum(result.fallback for result in report.results) > 0
    assert not report.results[-1].fallback


def test_reservations_outlive_a_stream_cut_for_longer_than_the_grace_period() -> None:
    report = run(parts.setup("least_load", count=100, plan=(faults.CutStream(2.0, 14.0),)))
    assert fates(report)[Fate.COMPLETE] == 100


def test_clients_that_leave_free_their_slot_and_their_reservation() -> None:
    setup = parts.setup("lmetric")
    report = run(replace(setup, jobs=parts.impatient(setup.jobs, every=3, leaves_s=0.15)))
    assert fates(report)[Fate.LEFT] > 5
    assert fates(report)[Fate.LEFT] + fates(report)[Fate.COMPLETE] == 60


def test_an_overloaded_fleet_refuses_and_counts() -> None:
    setup = replace(parts.setup("lmetric", workers=1), jobs=parts.chats(160, rate=200.0))
    report = run(setup)
    assert fates(report)[Fate.SHED] > 0
    assert fates(report)[Fate.SHED] + fates(report)[Fate.COMPLETE] == 160


@pytest.mark.parametrize("seed", range(12))
def test_nothing_is_lost_whatever_goes_wrong(seed: int) -> None:
    setup = parts.setup(NAMES[seed % len(NAMES)], count=50, seed=seed, plan=parts.drawn(seed))
    report = run(replace(setup, jobs=parts.impatient(setup.jobs, every=7, leaves_s=0.5)))
    assert len(report.results) == 50


# --------------------------------------------------------------------------------------------------------------- detectors


def test_a_violation_says_when_and_with_which_seed() -> None:
    with pytest.raises(Violation, match=r"at \d+\.\d+ s, policy lmetric, seed 1\]"):
        run(replace(parts.setup(), parts=Parts(ledger=parts.LedgerThatLeaks)))


def test_a_ledger_that_forgets_releases_is_caught() -> None:
    with pytest.raises(Violation, match=r"reservations, .* requests in flight"):
        run(replace(parts.setup(), parts=Parts(ledger=parts.LedgerThatLeaks)))


def test_a_ledger_that_does_not_refund_is_caught() -> None:
    with pytest.raises(Violation, match=r"the ledger has"):
        run(replace(parts.setup(), parts=Parts(ledger=parts.LedgerThatKeepsTokens)))


def test_an_index_that_keeps_removed_blocks_is_caught() -> None:
    with pytest.raises(Violation, match=r"the index counts .* blocks, the engine holds"):
        run(replace(parts.setup("lmetric", count=150, workers=1), parts=Parts(index=parts.IndexThatNeverForgets)))


def test_an_index_that_misses_blocks_is_caught() -> None:
    with pytest.raises(Violation, match=r"the index counts .* blocks, the engine holds"):
        run(replace(parts.setup(), parts=Parts(index=parts.IndexThatMissesBlocks)))


def test_a_policy_that_goes_back_to_where_it_failed_is_caught() -> None:
    with pytest.raises(Violation, match=r"which it has tried|breaker admits nobody"):
        run(
            replace(
                parts.setup("lmetric", plan=(faults.KillEngine(1.0, 0, 20.0), faults.KillEngine(1.0, 1, 20.0))),
                parts=Parts(profiles=parts.careless_profiles),
            )
        )


def test_a_policy_that_herds_shows_in_the_figures() -> None:
    herding = run(replace(parts.setup("random"), parts=Parts(profiles=parts.herding_profiles)))
    assert {result.worker for result in herding.results} == {"worker-0"}
