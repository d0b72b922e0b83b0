"""The director over all cores in virtual time: decisions, refusals, waiting, ends and what is learned from them."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contract.features import FEATURES, INDEX, VERSION
from contract.keyspace import EngineState
from contract.outcome import End, Outcome, decode, encode
from controlplane.breaker import BreakerState
from controlplane.director import UnknownPolicyError
from controlplane.endpoint import Standing, features
from controlplane.index_state import IndexState
from controlplane.progress import HUNG_AFTER_S
from controlplane.question import Decision, Ended, Question, Request, Shed, ShedReason
from proto import routing_pb2
from tests.controlplane.parts import BLOCK, MODEL, Plant, candidate, hashes, question, report


def refusal(plant: Plant, asked: Question | None = None) -> Shed:
    result = plant.ask(question(1) if asked is None else asked)
    assert isinstance(result, Shed), result
    return result


# ---------------------------------------------------------------------------------------------------------- matching


def test_the_match_counts_the_blocks_that_the_chosen_endpoint_holds() -> None:
    plant = Plant(policy="prefix")
    plant.index.store(1, hashes(1, 2, 3))
    decision = plant.place(question(1, 2, 3, 4))
    assert (decision.candidate.slot, decision.candidate.matched_tokens) == (1, 3 * BLOCK)


def test_the_block_with_the_last_token_is_never_credited_since_engines_compute_it() -> None:
    plant = Plant(1)
    plant.index.store(0, hashes(1, 2))
    assert plant.place(question(1, 2, tokens=2 * BLOCK)).candidate.matched_tokens == BLOCK
    assert plant.place(question(1, 2, tokens=2 * BLOCK + 1), question_id=2).candidate.matched_tokens == 2 * BLOCK


def test_a_dispatched_prompt_is_expected_at_its_endpoint_before_any_event() -> None:
    plant = Plant(policy="prefix")
    first = plant.place(question(1, 2, 3))
    second = plant.place(question(1, 2, 3, 4), question_id=2)
    assert second.candidate.slot == first.candidate.slot
    assert second.candidate.matched_tokens == 3 * BLOCK


def test_endpoints_of_different_block_sizes_are_asked_with_their_own_chain() -> None:
    plant = Plant(1)
    slot = plant.join("wide", block_size=32)
    plant.index.store(0, hashes(1, 2))
    plant.index.store(slot, hashes(9))
    asked = Question(Request(model=MODEL, input_tokens=70), {16: hashes(1, 2), 32: hashes(9, 10)})
    plant.place(asked)
    trace = plant.ring.get(1)
    assert trace is not None
    assert [row.matched_tokens for row in trace.candidates] == [32, 32]


def test_what_a_worker_without_credit_holds_is_not_believed_but_still_compared() -> None:
    plant = Plant(1)
    plant.index.store(0, hashes(1, 2))
    plant.endpoint().credit = False
    decision = plant.place(question(1, 2, 3))
    assert decision.candidate.matched_tokens == 0
    assert decision.expected_tokens == 2 * BLOCK


# ---------------------------------------------------------------------------------------------------------- refusals


def test_a_model_that_nobody_ever_served_is_unknown() -> None:
    shed = refusal(Plant(), question(1, model="gpt-9"))
    assert shed.reason == ShedReason.UNKNOWN_MODEL
    assert "'gpt-9'" in shed.message
    assert shed.retry_after_s == 0


def test_before_the_fleet_is_read_no_model_is_unknown() -> None:
    plant = Plant(0)
    plant.director.warm = False
    shed = refusal(plant)
    assert shed.reason == ShedReason.NO_WORKER
    assert shed.retry_after_s > 0


def test_a_model_whose_workers_are_gone_has_no_worker() -> None:
    plant = Plant(1)
    plant.snapshot.worker_left("w0", plant.now)
    assert refusal(plant).reason == ShedReason.NO_WORKER


def test_a_model_whose_engines_are_not_ready_has_no_worker() -> None:
    plant = Plant(1)
    plant.snapshot.worker_reported(report(state=EngineState.SLEEPING), plant.now)
    assert refusal(plant).reason == ShedReason.NO_WORKER


def test_a_model_whose_workers_all_drain_says_so() -> None:
    plant = Plant(2)
    plant.snapshot.worker_left("w0", plant.now)
    plant.snapshot.drain("w1", True)
    assert refusal(plant).reason == ShedReason.ALL_DRAINING


def test_open_breakers_say_when_the_first_may_close() -> None:
    plant = Plant(2)
    for worker, number in (("w0", 1), ("w1", 2)):
        for _ in range(number):
            breaker = plant.endpoint(worker).breaker
            breaker.suspect(plant.now, "a test says so")
    shed = refusal(plant)
    assert shed.reason == ShedReason.ALL_BREAKERS_OPEN
    assert shed.retry_after_s >= 1.0


def test_every_endpoint_tried_is_a_refusal_of_its_own() -> None:
    assert refusal(Plant(2), question(1, exclude=(0, 1))).reason == ShedReason.EXCLUDED


def test_saturation_without_a_queue_is_refused_at_once() -> None:
    plant = Plant(1, active_max=0, waiting_max=0)
    plant.place()
    assert refusal(plant).reason == ShedReason.ALL_SATURATED


def test_a_ttft_bound_that_no_candidate_can_meet_is_refused() -> None:
    plant = Plant(1)
    plant.endpoint().rates.prefill_tokens_per_s = 1000.0
    shed = refusal(plant, question(tokens=5000, slo_ttft_ms=2000))
    assert shed.reason == ShedReason.SLO_UNREACHABLE
    assert shed.retry_after_s == pytest.approx(3.0)
    plant.place(question(tokens=1500, slo_ttft_ms=2000))
    assert refusal(plant, question(tokens=1500, slo_ttft_ms=2000)).reason == ShedReason.SLO_UNREACHABLE


def test_a_ttft_bound_is_not_judged_where_a_speed_is_unknown() -> None:
    plant = Plant(2)
    plant.endpoint("w0").rates.prefill_tokens_per_s = 1.0
    plant.place(question(tokens=5000, slo_ttft_ms=10))


def test_refusals_are_recorded_and_counted() -> None:
    plant = Plant()
    shed = refusal(plant, question(1, model="none", request_id="r", tenant="t"))
    [outcome] = plant.outcomes
    assert (outcome.end, outcome.shed_reason, outcome.http_status) == (End.SHED, "UNKNOWN_MODEL", 404)
    assert (outcome.decision_id, outcome.request_id, outcome.tenant) == (shed.decision_id, "r", "t")
    assert plant.director.tally.sheds == {"UNKNOWN_MODEL": 1}


def test_the_numbers_of_refusals_are_those_of_the_wire() -> None:
    wire = {name: number for name, number in routing_pb2.Shed.Reason.items() if number}
    assert {reason.name: reason.value for reason in ShedReason} == wire


# ----------------------------------------------------------------------------------------------------------- waiting


def test_questions_wait_for_room_and_are_answered_in_the_order_they_came() -> None:
    plant = Plant(1, active_max=0)
    first = plant.place()
    assert [plant.ask(question(1), question_id=number) for number in (2, 3)] == [None, None]
    assert plant.director.answers(plant.now) == []
    plant.end(first)
    [answer] = plant.director.answers(plant.now)
    assert answer.question_id == 2
    assert isinstance(answer.result, Decision)
    plant.end(answer.result)
    assert [answer.question_id for answer in plant.director.answers(plant.now)] == [3]


def test_a_new_question_does_not_overtake_those_that_wait() -> None:
    plant = Plant(1, active_max=0)
    first = plant.place()
    assert plant.ask(question(1), question_id=2) is None
    plant.end(first)
    assert plant.ask(question(1), question_id=3) is None
    assert [answer.question_id for answer in plant.director.answers(plant.now)] == [2]


def test_a_question_is_refused_at_its_deadline() -> None:
    plant = Plant(1, active_max=0, wait_s_max=5.0)
    plant.place()
    plant.ask(question(1), question_id=2)
    plant.ask(question(1, slo_ttft_ms=1000), question_id=3)
    plant.now += 1.0
    [answer] = plant.director.answers(plant.now)
    assert answer.question_id == 3
    assert isinstance(answer.result, Shed)
    assert answer.result.reason == ShedReason.DEADLINE
    plant.now += 4.0
    assert [answer.question_id for answer in plant.director.answers(plant.now)] == [2]


def test_a_full_queue_refuses() -> None:
    plant = Plant(1, active_max=0, waiting_max=2)
    plant.place()
    for number in (2, 3):
        assert plant.ask(question(1), question_id=number) is None
    assert refusal(plant).reason == ShedReason.QUEUE_FULL


def test_a_cancelled_question_leaves_the_queue() -> None:
    plant = Plant(1, active_max=0)
    first = plant.place()
    plant.ask(question(1), question_id=2)
    plant.director.cancel("dp", 2, plant.now)
    plant.end(first)
    assert plant.director.answers(plant.now) == []


def test_questions_of_a_broken_stream_leave_the_queue() -> None:
    plant = Plant(1, active_max=0)
    plant.place()
    plant.ask(question(1), question_id=2)
    plant.director.departed("dp", plant.now)
    assert len(plant.waiting) == 0


def test_a_worker_that_vanishes_sheds_those_that_wait_for_it() -> None:
    plant = Plant(1, active_max=0)
    plant.place()
    plant.ask(question(1), question_id=2)
    plant.snapshot.worker_left("w0", plant.now)
    [answer] = plant.director.answers(plant.now)
    assert isinstance(answer.result, Shed)
    assert answer.result.reason == ShedReason.NO_WORKER


# -------------------------------------------------------------------------------------------------------------- ends


def test_an_outcome_joins_what_was_known_at_the_decision_with_how_it_ended() -> None:
    plant = Plant(1)
    plant.index.store(0, hashes(1))
    plant.snapshot.worker_reported(report(running=3, kv_usage=0.5), plant.now)
    plant.now += 0.25
    decision = plant.place(question(1, 2, request_id="r", tenant="t", attempt=1, max_tokens=7))
    plant.now += 2.0
    plant.end(decision, ttft_s=0.5, e2e_s=2.0, itl_s=0.1, output_tokens=9, cached_tokens=16, prompt_tokens=40, streamed=True)
    [outcome] = plant.outcomes
    assert decode(encode(outcome)) == outcome
    row = dict(zip(FEATURES, outcome.features, strict=True))
    assert (row["matched_tokens"], row["running"], row["kv_usage"], row["max_tokens"]) == (16, 3, 0.5, 7)
    assert row["report_age_s"] == pytest.approx(0.25)
    assert row["active"] == 0
    assert (outcome.worker, outcome.policy, outcome.request_id, outcome.attempt) == ("w0", "lmetric", "r", 1)
    assert (outcome.ttft_s, outcome.cached_tokens, outcome.matched_tokens) == (0.5, 16, 16)
    assert outcome.feature_version == VERSION
    assert outcome.decided_at == pytest.approx(decision.decided_at)
    assert outcome.accelerator == "cpu"


def test_an_outcome_that_comes_twice_counts_once() -> None:
    plant = Plant()
    decision = plant.place()
    assert plant.end(decision)
    assert not plant.end(decision, End.RESET)
    assert len(plant.outcomes) == 1
    assert sum(plant.director.tally.ends.values()) == 1


def test_first_bytes_teach_the_rates() -> None:
    plant = Plant(1)
    decision = plant.place(question(tokens=1000))
    plant.now += 0.5
    plant.director.first_byte(decision.decision_id, 0.5, plant.now)
    plant.director.first_byte(decision.decision_id, 9.0, plant.now)
    rates = plant.endpoint().rates
    assert rates.prefill_tokens_per_s == pytest.approx(2025)  # with the attention of a 1,000-token prompt
    assert rates.ttft_ewma_s == pytest.approx(0.5)
    plant.end(decision, itl_s=0.02)
    assert rates.decode_itl_s == pytest.approx(0.02)
    next_row = plant.place(question_id=2).candidate
    assert next_row.prefill_tokens_per_s == pytest.approx(2025)


def test_a_row_says_what_an_endpoint_is_computing_and_since_when() -> None:
    plant = Plant(1)
    first = plant.place(question(tokens=1000), question_id=1)
    plant.now += 0.25
    second = plant.place(question(tokens=400), question_id=2)
    assert (second.candidate.head_tokens, second.candidate.prefill_pairs) == (1000, 500_000)
    assert second.candidate.prefill_wait_s == pytest.approx(0.25)
    plant.now += 0.25
    plant.director.first_byte(first.decision_id, 0.5, plant.now)
    plant.now += 0.125
    third = plant.place(question(tokens=10), question_id=3).candidate
    assert (third.head_tokens, third.prefill_pairs) == (400, 80_000)
    assert third.prefill_wait_s == pytest.approx(0.125)  # since the first byte, not since the second was sent


def test_speed_is_learned_from_what_did_not_pass_behind_others() -> None:
    plant = Plant(1)
    placed = [plant.place(question(tokens=1000), question_id=number) for number in range(3)]
    for place, decision in enumerate(placed, start=1):  # half a second each: the same speed however long the queue was
        plant.now += 0.5
        plant.director.first_byte(decision.decision_id, 0.5 * place, plant.now)
    assert plant.endpoint().rates.prefill_tokens_per_s == pytest.approx(2025)


def test_an_idle_endpoint_is_not_at_anything() -> None:
    plant = Plant(1)
    decision = plant.place(question(tokens=1000), question_id=1)
    plant.end(decision)
    plant.now += 5.0
    row = plant.place(question(tokens=10), question_id=2).candidate
    assert (row.head_tokens, row.prefill_pairs, row.prefill_wait_s) == (0, 0, 0)


def test_failures_open_a_breaker_and_one_probe_closes_it() -> None:
    plant = Plant(2, policy="round_robin")
    placed = [plant.place(question_id=number) for number in range(10)]
    for decision in placed:
        plant.end(decision, End.CONNECT_FAILED if decision.candidate.slot == 0 else End.COMPLETE)
    assert plant.endpoint("w0").breaker.view(plant.now) == BreakerState.OPEN
    assert {plant.place(question_id=number).candidate.slot for number in range(10, 14)} == {1}
    plant.now += 1.0
    after = [plant.place(question_id=number) for number in range(14, 20)]
    [probe] = [decision for decision in after if decision.candidate.slot == 0]
    plant.end(probe)
    assert plant.endpoint("w0").breaker.view(plant.now) == BreakerState.CLOSED
    assert plant.director.tally.breakers_opened == 1
    assert plant.endpoint("w0").failures == 5


def test_a_cancelled_probe_makes_room_for_another() -> None:
    plant = Plant(1)
    plant.endpoint().breaker.suspect(plant.now, "a test says so")
    plant.now += 1.0
    plant.place(question_id=4)
    assert refusal(plant).reason == ShedReason.ALL_BREAKERS_OPEN
    plant.director.cancel("dp", 4, plant.now)
    plant.place(question_id=5)


def test_lost_requests_are_recorded_and_hold_nothing_against_the_engine() -> None:
    plant = Plant(1, grace_s_max=1.0)
    for number in range(10):
        plant.place(question_id=number)
    plant.director.departed("dp", plant.now)
    plant.pass_time(1.5)
    assert {outcome.end for outcome in plant.outcomes} == {End.LOST}
    assert plant.endpoint().load.active == 0
    assert plant.endpoint().breaker.view(plant.now) == BreakerState.CLOSED


def test_a_fallback_outcome_is_evidence_too() -> None:
    plant = Plant(1)
    for _ in range(5):
        plant.director.ended(Ended(decision_id=0, end=End.RESET, url="http://w0:8000", model=MODEL), plant.now)
    assert plant.endpoint().breaker.view(plant.now) == BreakerState.OPEN
    assert {outcome.policy for outcome in plant.outcomes} == {"fallback"}


def test_predictions_that_do_not_come_true_cost_the_worker_its_credit_until_they_do() -> None:
    plant = Plant(1)
    plant.index.store(0, hashes(1, 2))
    asked = question(1, 2)

    def serve(cached_tokens: int, times: int) -> None:
        for _ in range(times):
            plant.end(plant.place(asked), cached_tokens=cached_tokens)

    serve(0, 40)
    assert not plant.endpoint().credit
    assert plant.place(asked).candidate.matched_tokens == 0
    serve(32, 200)
    assert plant.endpoint().credit


def test_text_chains_and_unfinished_responses_are_not_compared() -> None:
    plant = Plant(1)
    plant.index.store(0, hashes(1, 2))
    for _ in range(60):
        plant.end(plant.place(question(1, 2, exact_tokens=False)), cached_tokens=0)
        plant.end(plant.place(question(1, 2)), End.CLIENT_GONE, cached_tokens=0)
        plant.end(plant.place(question(1, 2)))
    assert plant.self_check.verdict("w0", 1).samples == 0


# ------------------------------------------------------------------------------------------------------ time and policy


def test_a_hung_engine_that_reports_health_is_shut_out() -> None:
    plant = Plant(2)
    decision = plant.place()
    worker = decision.candidate.endpoint.worker
    plant.pass_time(HUNG_AFTER_S - 1)
    assert plant.endpoint(worker).breaker.view(plant.now) == BreakerState.CLOSED
    plant.pass_time(2)
    assert plant.endpoint(worker).breaker.view(plant.now) == BreakerState.OPEN
    assert "hung" in plant.endpoint(worker).breaker.reason
    assert plant.place(question_id=2).candidate.endpoint.worker != worker


def test_time_in_which_the_control_plane_stood_still_is_held_against_no_engine() -> None:
    plant = Plant(1)
    plant.place()
    plant.pass_time(1)
    plant.now += 3 * HUNG_AFTER_S
    plant.director.stood_still(3 * HUNG_AFTER_S)
    plant.snapshot.worker_reported(report(), plant.now)  # its machine stood still, too: no token more than before
    plant.director.tick(plant.now, connected=True)
    assert plant.endpoint().breaker.view(plant.now) == BreakerState.CLOSED
    plant.pass_time(HUNG_AFTER_S + 1)
    assert plant.endpoint().breaker.view(plant.now) == BreakerState.OPEN, "one that hangs all the same is found"


def test_without_fresh_reports_nobody_is_called_hung() -> None:
    plant = Plant(1)
    plant.place()
    for _ in range(200):
        plant.now += 0.25
        plant.director.tick(plant.now, connected=False)
    assert plant.endpoint().alive
    assert plant.endpoint().breaker.view(plant.now) == BreakerState.CLOSED


def test_an_idle_engine_does_not_hang_however_long_it_idles() -> None:
    plant = Plant(1)
    plant.pass_time(10 * HUNG_AFTER_S, step_s=0.5)
    plant.place()
    plant.pass_time(1)
    assert plant.endpoint().breaker.view(plant.now) == BreakerState.CLOSED


def test_an_engine_whose_token_counters_move_does_not_hang() -> None:
    plant = Plant(1)
    plant.place()
    for second in range(3 * int(HUNG_AFTER_S)):
        plant.now += 1.0
        plant.snapshot.worker_reported(report(prompt_tokens=second), plant.now)
        plant.director.tick(plant.now, connected=True)
    assert plant.endpoint().breaker.view(plant.now) == BreakerState.CLOSED


def test_a_silent_worker_gets_no_more_requests_and_returns_with_its_agent() -> None:
    plant = Plant(2, policy="round_robin")
    plant.pass_time(4.0, silent=("w0",))
    assert {plant.place(question_id=number).candidate.slot for number in range(4)} == {1}
    plant.pass_time(0.5)
    assert {plant.place(question_id=number).candidate.slot for number in range(4, 8)} == {0, 1}


def test_a_draining_worker_gets_no_more_requests_and_ends_those_it_has() -> None:
    plant = Plant(2, policy="round_robin")
    before = [plant.place(question_id=number) for number in range(2)]
    plant.snapshot.drain("w0", True)
    assert {plant.place(question_id=number).candidate.slot for number in range(2, 6)} == {1}
    assert all(plant.end(decision) for decision in before)


def test_policies_switch_between_two_decisions() -> None:
    plant = Plant(3, policy="round_robin")
    assert plant.place().policy == "round_robin"
    plant.director.set_policy("least_load")
    assert plant.place(question_id=2).policy == "least_load"
    with pytest.raises(UnknownPolicyError, match="round_robin, random"):
        plant.director.set_policy("best")
    assert plant.director.policy == "least_load"


def test_a_dry_run_changes_nothing() -> None:
    plant = Plant(2)
    plant.index.set_state(0, IndexState.EXACT)
    result = plant.director.decide(question(1, 2), plant.now)
    assert isinstance(result, Decision)
    assert result.decision_id == 0
    assert len(plant.ledger) == len(plant.ring) == 0
    assert plant.index.match(hashes(1, 2)) == {}
    assert isinstance(plant.director.decide(question(1, model="x"), plant.now), Shed)
    assert plant.outcomes == []


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 1000), steps=st.lists(st.integers(0, 5), max_size=60), active_max=st.integers(0, 3))
def test_every_question_ends_in_exactly_one_outcome_and_nothing_leaks(seed: int, steps: list[int], active_max: int) -> None:
    """Any mixture of questions, ends, time and broken streams: at the end the outcomes add up and the loads are zero."""
    plant = Plant(2, policy="power_of_two", active_max=active_max, grace_s_max=1.0, waiting_max=3, seed=seed)
    rng = Random(seed)
    placed: list[int] = []
    asked = 0

    def note(result: Decision | Shed | None) -> None:
        if isinstance(result, Decision):
            placed.append(result.decision_id)

    for step in steps:
        if step <= 1:
            asked += 1
            note(plant.ask(question(rng.randrange(5)), question_id=asked))
        elif step == 2 and placed:
            plant.director.ended(Ended(decision_id=rng.choice(placed), end=rng.choice(list(End)[1:10])), plant.now)
        elif step == 3 and placed:
            plant.director.first_byte(rng.choice(placed), 0.1, plant.now)
        elif step == 4:
            plant.pass_time(rng.random() * 3)
        elif rng.random() < 0.2:
            asked -= len(plant.waiting)  # nobody is there to hear their answer
            plant.director.departed("dp", plant.now)
        for answer in plant.director.answers(plant.now):
            note(answer.result)
    plant.pass_time(6.0)
    for answer in plant.director.answers(plant.now):
        note(answer.result)
    asked -= len(plant.waiting)
    plant.director.departed("dp", plant.now)
    plant.pass_time(2.0)
    assert len(plant.outcomes) == asked
    assert len({outcome.decision_id for outcome in plant.outcomes}) == asked
    for endpoint in plant.snapshot.endpoints():
        load = endpoint.load
        assert (load.active, load.no_first_byte, load.prefill_tokens, load.context_tokens) == (0, 0, 0, 0)


def test_features_are_in_the_order_of_the_contract() -> None:
    plant = Plant(1)
    plant.end(plant.place(question(tokens=123)))
    outcome: Outcome = plant.outcomes[0]
    assert outcome.features[INDEX["input_tokens"]] == outcome.features[INDEX["uncached_tokens"]] == 123


def test_every_feature_is_what_its_name_says() -> None:
    whole = {name: 1000 + place for place, name in enumerate(FEATURES) if name in Standing.__struct_fields__}
    times = {"prefill_wait_s": 1.0, "step_age_s": 2.0, "report_age_s": 3.0, "begins_s": 4.0}
    row = candidate(input_tokens=50, matched_tokens=20, max_tokens=7, **(whole | times))  # type: ignore[arg-type]
    values = features(row)
    assert values == [getattr(row, name) for name in FEATURES]
    assert len(set(values)) == len(values), "no two are alike, so none is in another's place"
