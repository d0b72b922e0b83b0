"""The Routing service over a real channel: what a data plane is promised."""

from __future__ import annotations

from pathlib import Path

import grpc
import pytest

from contract.routing import VERSION, Asked, Ended, Request, Said, pack, unpack_answers
from proto import routing_pb2 as pb
from tests.controlplane.parts import BLOCK, MODEL, hashes, record
from tests.controlplane.served import asked, serve
from tests.waiting import until


async def test_the_questions_of_one_message_are_answered_in_one_message(short_dir: Path) -> None:
    async with serve(short_dir, policy="round_robin") as served:
        decisions = await served.stream().ask(*(asked(number, number) for number in range(1, 7)))
        assert [decision.question_id for decision in decisions] == [1, 2, 3, 4, 5, 6]
        assert [decision.worker for decision in decisions] == ["w0", "w1"] * 3
        assert len({decision.decision_id for decision in decisions}) == 6
        assert {decision.url for decision in decisions} == {"http://w0:8000", "http://w1:8000"}


async def test_every_question_of_a_message_sees_the_reservations_of_those_before_it(short_dir: Path) -> None:
    async with serve(short_dir, workers=4, policy="least_load") as served:
        decisions = await served.stream().ask(*(asked(number) for number in range(8)))
        assert sorted(decision.worker for decision in decisions) == sorted(["w0", "w1", "w2", "w3"] * 2)


async def test_outcomes_free_their_place_before_the_questions_of_the_same_message_are_asked(short_dir: Path) -> None:
    async with serve(short_dir, workers=1, active_max=0, waiting_max=0) as served:
        stream = served.stream()
        [first] = await stream.ask(asked(1, 1))
        [refused] = await stream.ask(asked(2, 1))
        assert refused.shed.reason == pb.Shed.ALL_SATURATED
        await stream.send(asked(3, 1), outcomes=(pb.Outcome(decision_id=first.decision_id, end=pb.COMPLETE),))
        [third] = await stream.receive()
        assert third.worker == "w0"


async def test_an_outcome_that_comes_twice_counts_once(short_dir: Path) -> None:
    async with serve(short_dir) as served:
        stream = served.stream()
        [decision] = await stream.ask(asked(1, 1))
        outcome = pb.Outcome(decision_id=decision.decision_id, end=pb.COMPLETE)
        await stream.send(outcomes=(outcome, outcome))
        await until(lambda: len(served.plant.outcomes) == 1)
        await stream.ask(asked(2, 1))
        assert len(served.plant.outcomes) == 1
        assert served.plant.director.tally.duplicates == 1


async def test_a_stream_without_hello_is_refused(short_dir: Path) -> None:
    async with serve(short_dir) as served:
        call = served.route.RouteStream()
        await call.write(pb.RouteBatch(questions=[asked(1)]))
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call.read()
        assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert "hello" in (refused.value.details() or "")


async def test_reservations_of_a_broken_stream_are_claimed_by_the_same_process(short_dir: Path) -> None:
    async with serve(short_dir) as served:
        stream = served.stream("dp-7")
        kept, forgotten = await stream.ask(asked(1, 1), asked(2, 2))
        stream.break_off()
        await until(lambda: served.routing.streams == 0)
        assert len(served.plant.ledger) == 2
        held = pb.Held(decision_id=kept.decision_id, url=kept.url, uncached_tokens=9, input_tokens=24)
        again = served.stream("dp-7", held=(held,))
        await again.send()
        await until(lambda: len(served.plant.ledger) == 1)
        [lost] = served.plant.outcomes
        assert lost.decision_id == forgotten.decision_id
        await again.send(outcomes=(pb.Outcome(decision_id=kept.decision_id, end=pb.COMPLETE),))
        await until(lambda: len(served.plant.ledger) == 0)


async def test_unclaimed_reservations_are_released_after_the_grace_period(short_dir: Path) -> None:
    async with serve(short_dir, grace_s_max=0.05) as served:
        stream = served.stream()
        await stream.ask(asked(1, 1))
        stream.break_off()
        await until(lambda: len(served.plant.ledger) == 0)
        assert served.plant.outcomes[0].end == 101


async def test_a_restarted_control_plane_rebuilds_its_ledger_from_what_data_planes_hold(short_dir: Path) -> None:
    async with serve(short_dir) as served:
        held = tuple(
            pb.Held(decision_id=number, url="http://w1:8000", uncached_tokens=50, input_tokens=100, first_byte_seen=number == 9)
            for number in (8, 9)
        )
        await served.stream(held=held).send()
        load = served.plant.endpoint("w1").load
        await until(lambda: load.active == 2)
        assert (load.no_first_byte, load.prefill_tokens, load.context_tokens) == (1, 50, 200)


async def test_a_cancelled_question_releases_what_it_was_given(short_dir: Path) -> None:
    async with serve(short_dir) as served:
        stream = served.stream()
        await stream.ask(asked(1, 1), asked(2, 2))
        await stream.send(cancels=(1, 77))
        await until(lambda: len(served.plant.ledger) == 1)


async def test_a_question_waits_for_room_and_is_answered_when_a_place_comes_free(short_dir: Path) -> None:
    async with serve(short_dir, workers=1, active_max=0) as served:
        stream = served.stream(queue_notices=True)
        [first] = await stream.ask(asked(1, 1))
        [notice] = await stream.ask(asked(2, 1))
        assert notice.queued
        assert not notice.url
        await stream.send(outcomes=(pb.Outcome(decision_id=first.decision_id, end=pb.COMPLETE),))
        [second] = await stream.receive()
        assert second.question_id == 2
        assert second.worker == "w0"


async def test_a_question_that_waits_too_long_is_shed(short_dir: Path) -> None:
    async with serve(short_dir, workers=1, active_max=0, wait_s_max=0.05) as served:
        stream = served.stream()
        await stream.ask(asked(1, 1))
        [late] = await stream.ask(asked(2, 1))
        assert late.shed.reason == pb.Shed.DEADLINE
        assert late.shed.retry_after_s > 0


async def test_a_place_freed_by_one_data_plane_answers_the_question_of_another(short_dir: Path) -> None:
    async with serve(short_dir, workers=1, active_max=0) as served:
        one, other = served.stream("one"), served.stream("other", queue_notices=True)
        [first] = await one.ask(asked(1, 1))
        [notice] = await other.ask(asked(1, 1))
        assert notice.queued
        await one.send(outcomes=(pb.Outcome(decision_id=first.decision_id, end=pb.COMPLETE),))
        [answer] = await other.receive()
        assert answer.worker == "w0"


async def test_an_unreadable_chain_matches_nothing_and_breaks_nothing(short_dir: Path) -> None:
    async with serve(short_dir) as served:
        broken = pb.Question(question_id=1, model=MODEL, chains=[pb.BlockChain(block_size=BLOCK, hashes=b"123")])
        [decision] = await served.stream().ask(broken)
        assert decision.worker
        assert decision.matched_tokens == 0


async def test_a_dry_run_leaves_no_trace(short_dir: Path) -> None:
    async with serve(short_dir) as served:
        decision = await served.route.Route(pb.RouteRequest(question=asked(5, 1, 2)))
        assert decision.decision_id == 0
        assert decision.question_id == 5
        assert decision.worker
        assert len(served.plant.ledger) == 0
        assert not served.plant.outcomes


async def test_a_reserved_unary_decision_is_ended_by_report_once(short_dir: Path) -> None:
    async with serve(short_dir) as served:
        decision = await served.route.Route(pb.RouteRequest(question=asked(1, 1), reserve=True))
        assert len(served.plant.ledger) == 1
        outcome = pb.Outcome(decision_id=decision.decision_id, end=pb.COMPLETE)
        await served.route.Report(outcome)
        assert len(served.plant.ledger) == 0
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await served.route.Report(outcome)
        assert refused.value.code() == grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize(
    ("question", "says"),
    [
        (pb.Question(), "model"),
        (pb.Question(model=MODEL, chains=[pb.BlockChain(block_size=16, hashes=b"1234567")]), "multiple of 8"),
    ],
)
async def test_a_question_that_makes_no_sense_is_an_invalid_argument(short_dir: Path, question: pb.Question, says: str) -> None:
    async with serve(short_dir) as served:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await served.route.Route(pb.RouteRequest(question=question))
        assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert says in (refused.value.details() or "")


async def test_a_report_that_names_no_request_is_an_invalid_argument(short_dir: Path) -> None:
    async with serve(short_dir) as served:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await served.route.Report(pb.Outcome(end=pb.COMPLETE))
        assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT


async def test_the_fleet_is_sent_at_once_and_again_when_it_changes(short_dir: Path) -> None:
    async with serve(short_dir) as served:
        views = served.route.WatchFleet(pb.WatchFleetRequest(process="dp"))
        first = await views.read()
        assert [endpoint.worker for endpoint in first.endpoints] == ["w0", "w1"]
        assert first.models[0].name == MODEL
        assert list(first.models[0].block_sizes) == [BLOCK]
        assert first.models[0].tokenizer == "tiny"
        assert first.warm
        served.plant.join("w2")
        second = await views.read()
        while len(second.endpoints) < 3:
            second = await views.read()
        assert second.version > first.version
        served.plant.snapshot.drain("w0", True)
        third = await views.read()
        while third.endpoints[0].available:
            third = await views.read()
        assert third.version > second.version
        views.cancel()


async def test_the_fleet_is_sent_again_though_nothing_changes(short_dir: Path) -> None:
    async with serve(short_dir) as served:
        views = served.route.WatchFleet(pb.WatchFleetRequest())
        first = await views.read()
        [_] = await served.stream().ask(asked(1, 1))
        second = await views.read()
        assert second.version == first.version
        assert sum(endpoint.active for endpoint in second.endpoints) == 1
        views.cancel()


async def test_a_decision_is_explained_with_its_candidates_and_its_outcome(short_dir: Path) -> None:
    async with serve(short_dir, workers=3, policy="weighted") as served:
        served.plant.index.store(1, hashes(1, 2, 3))
        served.plant.snapshot.drain("w2", True)
        stream = served.stream()
        [decision] = await stream.ask(asked(1, 1, 2, 3, request_id="r-1"))
        assert (decision.worker, decision.matched_tokens) == ("w1", 48)
        await stream.send(outcomes=(pb.Outcome(decision_id=decision.decision_id, end=pb.COMPLETE, cached_tokens=48),))
        await until(lambda: len(served.plant.ledger) == 0)
        told = await served.route.Explain(pb.ExplainRequest(decision_id=decision.decision_id))
        assert (told.model, told.policy, told.request_id) == (MODEL, "weighted", "r-1")
        rows = {row.worker: row for row in told.candidates}
        assert rows["w1"].chosen
        assert rows["w1"].features["matched_tokens"] == 48
        assert set(rows["w1"].scores) == {"prefix", "queue", "kv_free"}
        assert rows["w1"].total > rows["w0"].total
        assert rows["w2"].rejected_by == "draining"
        assert told.outcome.cached_tokens == 48


async def test_a_refusal_is_explained_too(short_dir: Path) -> None:
    async with serve(short_dir, workers=1) as served:
        [decision] = await served.stream().ask(asked(1, 1, exclude=[0]))
        assert decision.shed.reason == pb.Shed.EXCLUDED
        told = await served.route.Explain(pb.ExplainRequest(decision_id=decision.decision_id))
        assert told.shed.reason == pb.Shed.EXCLUDED
        assert [row.rejected_by for row in told.candidates] == ["tried"]


async def test_a_decision_that_is_not_remembered_cannot_be_explained(short_dir: Path) -> None:
    async with serve(short_dir) as served:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await served.route.Explain(pb.ExplainRequest(decision_id=123))
        assert refused.value.code() == grpc.StatusCode.NOT_FOUND


async def test_a_fallback_outcome_is_recorded_without_a_decision(short_dir: Path) -> None:
    async with serve(short_dir) as served:
        await served.stream().send(
            outcomes=(pb.Outcome(end=pb.COMPLETE, url="http://w1:8000", model=MODEL, input_tokens=7, e2e_s=0.5),)
        )
        await until(lambda: len(served.plant.outcomes) == 1)
        [outcome] = served.plant.outcomes
        assert (outcome.worker, outcome.policy, outcome.input_tokens, outcome.features) == ("w1", "fallback", 7, [])


async def test_a_second_stream_of_a_process_takes_over_from_the_first(short_dir: Path) -> None:
    async with serve(short_dir) as served:
        first = served.stream("dp")
        [decision] = await first.ask(asked(1, 1))
        second = served.stream("dp", held=(pb.Held(decision_id=decision.decision_id, url=decision.url),))
        await second.ask(asked(1, 2))
        first.break_off()
        await second.ask(asked(2, 2))
        assert len(served.plant.ledger) == 3
        assert served.routing.streams == 1


async def test_a_worker_of_another_model_is_no_candidate(short_dir: Path) -> None:
    async with serve(short_dir, workers=1) as served:
        served.plant.snapshot.worker_registered(record("other", models=("n", "n-adapter")), served.plant.now)
        [mine, theirs, adapter, nobody] = await served.stream().ask(
            asked(1, 1), asked(2, 1, model="n"), asked(3, 1, model="n-adapter"), asked(4, 1, model="x")
        )
        assert (mine.worker, theirs.worker, adapter.worker) == ("w0", "other", "other")
        assert nobody.shed.reason == pb.Shed.UNKNOWN_MODEL


async def test_who_reads_packed_messages_is_answered_in_them(short_dir: Path) -> None:
    async with serve(short_dir, workers=2, policy="round_robin") as served:
        call = served.route.RouteStream()
        await call.write(pb.RouteBatch(hello=pb.Hello(process="dp-1", packed_version=VERSION, queue_notices=True)))
        greeting = await call.read()
        assert isinstance(greeting, pb.DecisionBatch)
        assert (greeting.packed_version, greeting.packed, len(greeting.decisions)) == (VERSION, b"", 0)
        chains = ((BLOCK, hashes(1, 2).tobytes()),)
        questions = [Asked(number, Request(model=MODEL, input_tokens=40), chains) for number in (1, 2)]
        unknown = Asked(3, Request(model="nobody's"))
        await call.write(pb.RouteBatch(packed=pack(Said([*questions, unknown]))))
        batch = await call.read()
        assert isinstance(batch, pb.DecisionBatch)
        first, second, refused = unpack_answers(batch.packed)
        assert (first.question_id, first.worker, second.worker, first.policy) == (1, "w0", "w1", "round_robin")
        assert refused.refusal is not None
        assert refused.refusal.reason == pb.Shed.UNKNOWN_MODEL
        ended = Ended(decision_id=first.decision_id, end=pb.COMPLETE, e2e_s=0.5)
        await call.write(pb.RouteBatch(packed=pack(Said(first_bytes=[(second.decision_id, 0.1)], outcomes=[ended]))))
        await until(lambda: len(served.plant.ledger) == 1)
        call.cancel()


async def test_packed_bytes_that_are_none_end_the_stream(short_dir: Path) -> None:
    async with serve(short_dir) as served:
        call = served.route.RouteStream()
        await call.write(pb.RouteBatch(hello=pb.Hello(process="dp-1")))
        await call.write(pb.RouteBatch(packed=b"\xc1"))
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call.read()
        assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert "packed" in (refused.value.details() or "")
