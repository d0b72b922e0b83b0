"""A data plane that opens its stream again before the end of the old one was noticed: what waited on the old one is over."""

from __future__ import annotations

from pathlib import Path

from contract.outcome import End
from controlplane.question import Decision
from proto import routing_pb2 as pb
from tests.controlplane.parts import Plant, question
from tests.controlplane.served import asked, serve


def test_nothing_is_reserved_for_a_question_of_the_old_stream() -> None:
    plant = Plant(1, active_max=0)
    first = plant.place(question_id=1)
    assert plant.ask(question(1), question_id=2) is None, "it waits for room"
    plant.director.arrived("dp", [], plant.now)
    assert plant.director.answers(plant.now) == []
    assert len(plant.ledger) == 0, "what it did not claim is lost"
    assert not plant.end(first, End.COMPLETE)
    plant.pass_time(1.0)
    assert len(plant.ledger) == 0


def test_the_same_question_may_be_asked_again_on_the_new_one() -> None:
    plant = Plant(1, active_max=0)
    plant.place(question_id=1)
    assert plant.ask(question(1), question_id=2) is None
    plant.director.arrived("dp", [], plant.now)
    assert isinstance(plant.ask(question(1), question_id=2), Decision)


async def test_answers_to_the_old_stream_do_not_come_on_the_new_one(short_dir: Path) -> None:
    async with serve(short_dir, workers=1, active_max=0) as served:
        old, other = served.stream("dp", queue_notices=True), served.stream("other")
        [first] = await other.ask(asked(1, 1))
        [notice] = await old.ask(asked(7, 1))
        assert notice.queued
        new = served.stream("dp")
        await new.send()
        await new.send(asked(8, 1))
        await other.send(outcomes=(pb.Outcome(decision_id=first.decision_id, end=pb.COMPLETE),))
        [answer] = await new.receive()
        assert answer.question_id == 8
        assert len(served.plant.ledger) == 1


def test_a_data_plane_that_went_to_another_control_plane_gets_no_answer_here() -> None:
    plant = Plant(1, active_max=0)
    other = plant.place(owner="other", question_id=1)
    assert plant.ask(question(1), question_id=2) is None
    plant.director.moved("dp", plant.now)
    plant.end(other)
    assert plant.director.answers(plant.now) == []
    assert len(plant.ledger) == 0
