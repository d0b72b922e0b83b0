"""Requests to data-parallel ranks: each rank is weighed by itself, and what belongs to the engine's address is shared."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contract.keyspace import EngineState, RankFigures
from contract.outcome import End
from contract.routing import Asked, Request, numbered
from controlplane import packed, ranks, wire
from controlplane.breaker import BreakerBounds, BreakerState
from controlplane.director import Director
from controlplane.fleet_view import FleetWatch
from controlplane.index_state import IndexState
from controlplane.ledger import Ledger
from controlplane.question import Decision, Shed
from controlplane.snapshot import FleetSnapshot
from controlplane.usual import UsualDirector
from proto import routing_pb2 as pb
from tests.controlplane.parts import BLOCK, MODEL, Plant, hashes, question, record, report

NEW = "0.32.0"


def join(plant: Plant, worker: str, named_ranks: int, **fields: object) -> list[int]:
    """A worker of so many ranks, all their blocks known. Returns their slots."""
    plant.snapshot.worker_registered(
        record(worker, named_ranks=named_ranks, data_parallel_size=max(1, named_ranks), engine_version=NEW, **fields), plant.now
    )
    slots = plant.snapshot.slots_of(worker)
    for slot in slots:
        plant.index.attach(slot, capacity_blocks=500, exact=True)
        plant.index.set_state(slot, IndexState.EXACT)
    return list(slots)


@pytest.fixture
def plant() -> Plant:
    """One engine of two ranks."""
    made = Plant(workers=0)
    join(made, "w0", 2)
    return made


class TestSteering:
    @pytest.mark.parametrize(
        ("version", "obeys"),
        [
            ("0.11.1", True),
            ("0.11.1.post2", True),
            ("0.12", True),
            ("0.11.0", False),
            ("0.11.0.post2", False),
            ("0.11", False),
            ("0.32.0+cpu", True),
            ("v1.2.3", True),
            ("0.1.dev20175+g2573878a3.d20260821", True),
            ("0.10.2", False),
            ("0.9.1rc1", False),
            ("", False),
            ("main", False),
        ],
    )
    def test_only_versions_that_read_the_header(self, version: str, obeys: bool) -> None:
        assert ranks.obeys(version) is obeys
        assert ranks.steered(record(named_ranks=4, engine_version=version)) == (4 if obeys else 1)

    def test_ranks_that_cannot_be_named_are_one_endpoint(self) -> None:
        assert ranks.steered(record(data_parallel_size=4, engine_version=NEW)) == 1

    def test_switched_off_an_engine_is_one_endpoint(self) -> None:
        snapshot = FleetSnapshot(Ledger(), BreakerBounds(), ranks.together)
        snapshot.worker_registered(record(named_ranks=2, engine_version=NEW), 0.0)
        assert snapshot.slots_of("w0") == (0,)
        assert snapshot.endpoints()[0].cache_tokens == 1000 * BLOCK


class TestSnapshot:
    def test_each_rank_is_an_endpoint_with_its_share_of_the_cache_and_a_breaker_beside_the_addresss(self, plant: Plant) -> None:
        first, second = plant.snapshot.endpoints()
        assert (first.rank, second.rank) == (0, 1)
        assert (first.name, second.name) == ("w0/0", "w0/1")
        assert (first.number, second.number) == (0, 0)
        assert first.cache_tokens == second.cache_tokens == 500 * BLOCK
        assert first.breaker.address is second.breaker.address  # type: ignore[union-attr]
        assert first.breaker.own is not second.breaker.own  # type: ignore[union-attr]
        assert first.load is not second.load
        assert plant.snapshot.workers() == [first]

    def test_figures_are_each_ranks_own(self, plant: Plant) -> None:
        figures = (RankFigures(3, 0, 0.5, 70, 30), RankFigures(1, 2, 0.1, 20, 10))
        plant.snapshot.worker_reported(report("w0", running=4, waiting=2, kv_usage=0.5, ranks=figures), plant.now)
        first, second = plant.snapshot.endpoints()
        assert (first.running, first.waiting, first.kv_usage, first.progress) == (3, 0, 0.5, 100)
        assert (second.running, second.waiting, second.kv_usage, second.progress) == (1, 2, 0.1, 30)

    def test_a_report_that_does_not_tell_them_apart_is_shared_out(self, plant: Plant) -> None:
        plant.snapshot.worker_reported(report("w0", running=5, waiting=2, kv_usage=0.5), plant.now)
        assert [(one.running, one.waiting) for one in plant.snapshot.endpoints()] == [(3, 1), (3, 1)]

    def test_they_drain_fall_silent_and_leave_together(self, plant: Plant) -> None:
        snapshot = plant.snapshot
        snapshot.drain("w0", True)
        assert [one.draining for one in snapshot.endpoints()] == [True, True]
        snapshot.drain("w0", False)
        snapshot.worker_reported(report("w0", state=EngineState.UNREACHABLE), plant.now)
        assert [one.serving for one in snapshot.endpoints()] == [False, False]
        snapshot.worker_reported(report("w0"), plant.now)
        snapshot.worker_left("w0", plant.now)
        assert [one.alive for one in snapshot.endpoints()] == [False, False]

    def test_an_engine_that_comes_back_with_fewer_ranks_or_more_keeps_the_numbers_of_those_it_has(self, plant: Plant) -> None:
        other = plant.join("w1")
        assert other == 2
        join(plant, "w0", 1, epoch=2)
        assert plant.snapshot.slots_of("w0") == (0,)
        assert plant.snapshot.at_slot(0).rank == -1  # type: ignore[union-attr]
        plant.director.tick(plant.now, connected=True)
        assert plant.snapshot.at_slot(1) is None
        assert join(plant, "w0", 3, epoch=3) == [0, 1, 3]
        assert [one.rank for one in plant.snapshot.endpoints()] == [0, 1, -1, 2]
        assert {one.name for one in plant.snapshot.endpoints()} == {"w0/0", "w0/1", "w0/2", "w1"}

    def test_what_is_under_way_at_a_rank_that_is_gone_ends_well(self, plant: Plant) -> None:
        plant.director.set_policy("least_load")
        there = [plant.place(question_id=number) for number in range(2)]
        assert {one.candidate.endpoint.rank for one in there} == {0, 1}
        join(plant, "w0", 1, epoch=2)
        plant.director.tick(plant.now, connected=True)
        for decision in there:
            assert plant.end(decision)
        assert len(plant.ledger) == 0
        assert plant.endpoint("w0").load.active == 0


class TestDecisions:
    def test_a_prompt_goes_to_the_rank_that_holds_it(self, plant: Plant) -> None:
        plant.index.store(1, hashes(1, 2, 3), rank=1)
        chosen = plant.place(question(1, 2, 3))
        assert chosen.candidate.endpoint.rank == 1
        assert chosen.candidate.matched_tokens == 3 * BLOCK

    def test_a_guess_is_the_ranks_own(self, plant: Plant) -> None:
        first = plant.place(question(1, 2, 3))
        plant.end(first)
        again = plant.place(question(1, 2, 3), question_id=2)
        assert again.candidate.endpoint is first.candidate.endpoint
        other = next(one for one in again.candidate.endpoint.ranks if one is not again.candidate.endpoint)
        assert plant.index.guesses(other.slot) == 0

    def test_load_is_counted_by_rank(self, plant: Plant) -> None:
        plant.director.set_policy("least_load")
        placed = [plant.place(question_id=number) for number in range(4)]
        assert [one.load.active for one in plant.snapshot.endpoints()] == [2, 2]
        for decision in placed:
            plant.end(decision)
        assert [one.load.active for one in plant.snapshot.endpoints()] == [0, 0]

    def test_who_was_tried_at_one_rank_goes_to_another_engine(self, plant: Plant) -> None:
        plant.index.store(1, hashes(1, 2, 3), rank=1)
        join(plant, "w1", 2)
        first = plant.place(question(1, 2, 3))
        answer = packed.answer(first, 1, "lmetric")
        assert (answer.endpoint, answer.rank, answer.url) == (0, 1, "http://w0:8000")
        again = plant.place(question(1, 2, 3, exclude=(answer.endpoint,), attempt=1), question_id=2)
        assert again.candidate.endpoint.worker == "w1"
        refused = plant.ask(question(1, 2, 3, exclude=(answer.endpoint, again.candidate.endpoint.number)), question_id=3)
        assert isinstance(refused, Shed)

    def test_an_engine_of_one_rank_is_asked_without_one(self) -> None:
        plant = Plant(workers=1)
        decision = plant.place()
        assert packed.answer(decision, 1, "lmetric").rank == -1
        assert not wire.decision(decision, 1, "lmetric").HasField("data_parallel_rank")

    def test_both_ways_of_saying_it_agree(self, plant: Plant) -> None:
        plant.index.store(1, hashes(1, 2, 3), rank=1)
        decision = plant.place(question(1, 2, 3))
        message, answer = wire.decision(decision, 1, "lmetric"), packed.answer(decision, 1, "lmetric")
        assert (message.endpoint, message.data_parallel_rank) == (answer.endpoint, answer.rank) == (0, 1)

    def test_the_explanation_has_a_row_for_each_rank(self, plant: Plant) -> None:
        decision = plant.place()
        trace = plant.ring.get(decision.decision_id)
        assert trace is not None
        rows = wire.explanation(trace).candidates
        assert [(row.worker, row.data_parallel_rank) for row in rows] == [("w0", 0), ("w0", 1)]
        assert [row.data_parallel_rank for row in rows if row.chosen] == [decision.candidate.endpoint.rank]

    def test_the_short_way_leaves_engines_of_ranks_to_the_general_one(self) -> None:
        answers = []
        for director in (Director, UsualDirector):
            plant = Plant(workers=1, director=director)
            join(plant, "w1", 2)
            plant.index.store(2, hashes(1, 2), rank=1)
            asked = [Asked(n, Request(model=MODEL, input_tokens=40), ((BLOCK, hashes(1, 2).tobytes()),)) for n in range(5)]
            answers.append(plant.director.answer_all(asked, plant.now, owner="dp"))
        assert answers[0] == answers[1]
        assert (answers[0][0].worker, answers[0][0].rank) == ("w1", 1)


class TestEnds:
    def test_the_record_names_worker_address_and_rank(self, plant: Plant) -> None:
        plant.index.store(1, hashes(1, 2, 3), rank=1)
        plant.end(plant.place(question(1, 2, 3)), cached_tokens=3 * BLOCK, prompt_tokens=56, output_tokens=4)
        (outcome,) = plant.outcomes
        assert (outcome.worker, outcome.url, outcome.rank) == ("w0", "http://w0:8000", 1)

    def test_what_the_cache_held_is_held_against_the_rank_alone(self, plant: Plant) -> None:
        plant.index.store(1, hashes(1, 2, 3), rank=1)
        for number in range(60):
            plant.end(plant.place(question(1, 2, 3), question_id=number), cached_tokens=0)
            plant.index.store(1, hashes(1, 2, 3), rank=1)
        first, second = plant.snapshot.endpoints()
        assert first.credit
        assert not second.credit

    def test_failures_at_any_rank_open_the_breaker_of_all(self, plant: Plant) -> None:
        plant.director.set_policy("least_load")
        for number in range(40):
            result = plant.ask(question(1), question_id=number)
            if isinstance(result, Decision):
                plant.end(result, End.CONNECT_FAILED)
        assert {one.breaker.view(plant.now) for one in plant.snapshot.endpoints()} == {BreakerState.OPEN}

    def test_a_data_plane_that_comes_back_claims_at_the_rank(self, plant: Plant) -> None:
        held = [
            pb.Held(
                decision_id=7, endpoint=0, url="http://w0:8000", input_tokens=100, uncached_tokens=100, data_parallel_rank=1
            ),
            pb.Held(decision_id=8, endpoint=0, url="http://w0:8000", input_tokens=50, uncached_tokens=50),
        ]
        plant.director.arrived("dp", wire.claims(held), plant.now)
        first, second = plant.snapshot.endpoints()
        assert (first.load.active, second.load.active) == (1, 1)
        assert (first.load.prefill_tokens, second.load.prefill_tokens) == (50, 100)
        for number in (7, 8):
            assert plant.director.ended(wire.ended(pb.Outcome(decision_id=number, end=pb.COMPLETE)), plant.now)
        assert [one.load.active for one in plant.snapshot.endpoints()] == [0, 0]

    def test_claims_come_before_the_registration(self) -> None:
        plant = Plant(workers=0)
        held = pb.Held(decision_id=7, url="http://w0:8000", input_tokens=10, uncached_tokens=10, data_parallel_rank=1)
        plant.director.arrived("dp", wire.claims([held]), plant.now)
        join(plant, "w0", 2)
        assert [one.load.active for one in plant.snapshot.endpoints()] == [0, 1]


def test_data_planes_see_one_endpoint_with_the_requests_of_all_ranks(plant: Plant) -> None:
    plant.director.set_policy("least_load")
    for number in range(3):
        plant.place(question_id=number)
    view = FleetWatch(plant.snapshot, plant.director, first_version=1).view(plant.now)
    (endpoint,) = view.endpoints
    assert (endpoint.worker, endpoint.endpoint, endpoint.active, endpoint.available) == ("w0", 0, 3, True)


def test_when_tokens_came_is_known_by_rank_and_of_an_address_says_nothing(plant: Plant) -> None:
    plant.director.tokens_came([(0, 0.01), (1, 0.01), (numbered(0, 2), 0.01), (numbered(7, 0), 0.01)], plant.now)
    assert [one.load.token_at for one in plant.snapshot.endpoints()] == [0.0, 0.0]
    plant.director.tokens_came([(numbered(0, 1), 0.25), (numbered(0, 0), 0.5)], plant.now)
    assert [one.load.token_at for one in plant.snapshot.endpoints()] == [plant.now - 0.5, plant.now - 0.25]
    plant.director.tokens_came([(numbered(0, 1), 0.5)], plant.now)
    assert plant.snapshot.endpoints()[1].load.token_at == plant.now - 0.25, "another process saw older ones"


def test_the_step_of_each_rank_is_as_old_as_its_own_tokens(plant: Plant) -> None:
    plant.director.set_policy("least_load")
    for number in range(2):
        plant.place(question_id=number)
    plant.now += 1.0
    plant.director.tokens_came([(numbered(0, 1), 0.25)], plant.now)
    decision = plant.place(question_id=3)
    trace = plant.ring.get(decision.decision_id)
    assert trace is not None
    assert [row.step_age_s for row in trace.candidates] == pytest.approx([1.0, 0.25])


@given(
    fleet=st.lists(st.integers(1, 3), min_size=1, max_size=3),
    steps=st.lists(
        st.tuples(st.sampled_from(["ask", "first", "end", "fail", "cancel", "again", "restart"]), st.integers(0, 7))
    ),
    policy=st.sampled_from(["lmetric", "least_load", "prefix", "round_robin"]),
)
@settings(max_examples=60, deadline=None)
def test_whatever_happens_what_is_counted_at_each_rank_is_what_is_there(
    fleet: list[int], steps: list[tuple[str, int]], policy: str
) -> None:
    plant = Plant(workers=0, policy=policy)
    for number, count in enumerate(fleet):
        join(plant, f"w{number}", count)
    live: dict[int, Decision] = {}
    epochs = [1] * len(fleet)
    for at, (step, pick) in enumerate(steps):
        plant.now += 0.01
        chosen = list(live)[pick % len(live)] if live else None
        if step in ("ask", "again"):
            tried = () if chosen is None or step == "ask" else (live[chosen].candidate.endpoint.number,)
            result = plant.ask(question(pick, pick + 1, exclude=tried), question_id=at)
            if isinstance(result, Decision):
                assert result.candidate.endpoint.number not in tried
                live[at] = result
        elif step == "restart":
            worker = pick % len(fleet)
            epochs[worker] += 1
            join(plant, f"w{worker}", 1 + pick % 3, epoch=epochs[worker])
            plant.director.tick(plant.now, connected=True)
        elif chosen is not None:
            decision = live[chosen]
            if step == "first":
                plant.director.first_byte(decision.decision_id, 0.01, plant.now)
                continue
            del live[chosen]
            if step == "cancel":
                plant.director.cancel("dp", chosen, plant.now)
            else:
                plant.end(decision, End.COMPLETE if step == "end" else End.RESET)
    there: dict[str, int] = {}
    for decision in live.values():
        there[place_of(plant, decision)] = there.get(place_of(plant, decision), 0) + 1
    for endpoint in plant.snapshot.endpoints():
        assert endpoint.load.active == there.get(endpoint.place, 0), endpoint.name
    for decision in live.values():
        plant.end(decision)
    assert len(plant.ledger) == 0
    for endpoint in plant.snapshot.endpoints():
        assert (endpoint.load.active, endpoint.load.prefill_tokens, endpoint.load.context_tokens) == (0, 0, 0)


def place_of(plant: Plant, decision: Decision) -> str:
    return plant.ledger.reservations[decision.decision_id].url
