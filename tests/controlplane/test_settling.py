"""The next turn waits for the engine's word on the answer before it: not long, and only where that is on its way."""

from __future__ import annotations

from array import array
from pathlib import Path

import pytest

from contract.routing import Request
from controlplane.answers import PATIENCE_S, TRUST_AFTER
from controlplane.director import Answer
from controlplane.question import Decision, Question
from controlplane.settling import HELD_MAX, LAST_LOOK_S, Settling
from proto import routing_pb2 as pb
from tests.controlplane.parts import BLOCK, Plant, hashes
from tests.controlplane.served import asked as question
from tests.controlplane.served import serve

SETTLE_S = 0.25
PROMPT = array("Q", range(1, 5))
ANSWER = array("Q", [50])
NEXT = PROMPT + ANSWER + array("Q", [60])


def asked(hashes: array[int], **fields: object) -> Question:
    request = Request(model="m", input_tokens=BLOCK * len(hashes) + 3, exact_tokens=True, **fields)  # type: ignore[arg-type]
    return Question(request, {BLOCK: hashes})


def a_plant(**fields: object) -> Plant:
    """Of one worker that has announced the prompt, and has just answered it with one block and a token."""
    plant = Plant(1, settle_s=SETTLE_S, **fields)  # type: ignore[arg-type]
    plant.index.store(0, PROMPT)
    answer(plant)
    return plant


def answer(plant: Plant) -> None:
    plant.end(plant.place(asked(PROMPT)), output_tokens=BLOCK + 1, prompt_tokens=BLOCK * len(PROMPT) + 3, cached_tokens=0)


def matched(plant: Plant) -> list[int]:
    """Blocks that the questions were credited which can be answered now."""
    results = [one.result for one in plant.director.answers(plant.now)]
    assert all(isinstance(result, Decision) for result in results)
    return [result.expected_tokens // BLOCK for result in results if isinstance(result, Decision)]


def assert_given_up_at(at: float, plant: Plant) -> None:
    """No sooner, and then after one more look: with what was announced, and no credit beyond it."""
    plant.now = at - 0.001
    assert matched(plant) == []
    plant.now = at
    assert matched(plant) == []
    plant.now += LAST_LOOK_S
    assert matched(plant) == [4]


def time_is_over(plant: Plant) -> list[Answer]:
    plant.now += 1.0
    first = plant.director.answers(plant.now)
    plant.now += LAST_LOOK_S
    return first + plant.director.answers(plant.now)


def test_a_question_that_follows_at_once_is_decided_when_the_event_is_here() -> None:
    plant = a_plant()
    plant.now += 0.01
    assert plant.ask(asked(NEXT)) is None
    assert matched(plant) == []
    plant.index.store(0, ANSWER)
    assert matched(plant) == [5]
    assert (plant.director.settling.held, plant.director.settling.in_vain, len(plant.director.settling)) == (1, 0, 0)
    assert matched(plant) == []


def test_no_longer_than_its_time_and_without_credit_for_what_was_not_announced() -> None:
    plant = a_plant()
    ended_at = plant.now
    plant.now += 0.04
    assert plant.ask(asked(NEXT)) is None
    assert_given_up_at(ended_at + PATIENCE_S, plant)
    assert plant.director.settling.in_vain == 1


def test_an_event_that_is_taken_in_a_moment_after_its_time_still_counts() -> None:
    """A process without a processor: late for the question's time and for the event alike."""
    plant = a_plant()
    assert plant.ask(asked(NEXT)) is None
    plant.now += 1.0
    assert matched(plant) == []
    plant.index.store(0, array("Q", [99]))
    assert matched(plant) == []
    plant.now += LAST_LOOK_S / 2
    plant.index.store(0, ANSWER)
    assert matched(plant) == [5]


def test_an_engine_whose_events_take_long_is_not_awaited_for_ever() -> None:
    plant = a_plant()
    plant.index.lagged(0, 30.0)
    asked_at = plant.now
    assert plant.ask(asked(NEXT)) is None
    assert_given_up_at(asked_at + SETTLE_S, plant)


def test_the_engines_later_word_ends_the_wait() -> None:
    plant = a_plant()
    assert plant.ask(asked(NEXT)) is None
    plant.index.store(0, array("Q", [99]))
    assert matched(plant) == []
    plant.index.heard(0, plant.now)
    plant.index.store(0, array("Q", [98]))
    assert matched(plant) == [4]


@pytest.mark.parametrize("thought_s", [PATIENCE_S, 1.0])
def test_who_takes_longer_than_that_is_not_held(thought_s: float) -> None:
    plant = a_plant()
    plant.now += thought_s
    assert plant.place(asked(NEXT)).expected_tokens == 4 * BLOCK


def test_a_request_with_a_ttft_bound_is_not_held() -> None:
    assert a_plant().place(asked(NEXT, slo_ttft_ms=500.0)).expected_tokens == 4 * BLOCK


def test_another_conversation_is_not_held() -> None:
    assert a_plant().place(asked(array("Q", [7, 8, 9]))).expected_tokens == 0


def test_switched_off_nobody_is_held() -> None:
    plant = Plant(1)
    plant.index.store(0, PROMPT)
    answer(plant)
    assert plant.place(asked(NEXT)).expected_tokens == 4 * BLOCK


def test_a_dry_run_is_not_held() -> None:
    assert isinstance(a_plant().director.decide(asked(NEXT), 100.0), Decision)


def test_claims_are_judged_by_what_came_of_the_wait() -> None:
    """After so many that came true the next is credited at once."""
    plant = a_plant()
    for number in range(TRUST_AFTER):
        plant.now += 5.0
        plant.index.expire(plant.now)
        answer(plant)
        assert plant.ask(asked(NEXT), question_id=10 + number) is None
        plant.index.store(0, ANSWER)
        assert matched(plant) == [5]
        plant.index.remove(0, ANSWER)
    plant.now += 5.0
    plant.index.expire(plant.now)
    answer(plant)
    assert plant.place(asked(NEXT)).expected_tokens == 5 * BLOCK


def test_who_has_gone_is_not_answered() -> None:
    plant = a_plant()
    assert plant.ask(asked(NEXT), question_id=7) is None
    plant.director.cancel("dp", 7, plant.now)
    assert plant.ask(asked(NEXT), question_id=8) is None
    plant.director.departed("dp", plant.now)
    assert time_is_over(plant) == []
    assert len(plant.ledger) == 0


def test_a_held_question_that_finds_no_room_waits_for_it() -> None:
    plant = a_plant(active_max=0)
    assert plant.ask(asked(NEXT), question_id=7) is None
    other = plant.place(asked(array("Q", [7, 8])), question_id=8)
    assert time_is_over(plant) == []
    assert len(plant.waiting) == 1
    plant.end(other)
    assert [one.question_id for one in plant.director.answers(plant.now)] == [7]


def test_a_held_question_whose_worker_leaves_is_refused() -> None:
    plant = a_plant()
    assert plant.ask(asked(NEXT)) is None
    plant.snapshot.worker_left("w0", plant.now)
    [one] = time_is_over(plant)
    assert not isinstance(one.result, Decision)


def test_only_so_many_are_held() -> None:
    settling = Settling(SETTLE_S)
    held = asked(NEXT)
    for number in range(HELD_MAX):
        assert settling.open
        settling.hold(held, "dp", number, 5.1 if number else 9.0, {}, 5.01)
    assert not settling.open
    assert {one.until for one in settling.due(0, 5.0)} == {5.1, 5.01 + SETTLE_S}
    assert len(settling.due(1, 5.02)) == HELD_MAX
    assert settling.due(1, 5.03) == []
    assert len(settling.due(2, 5.03)) == HELD_MAX
    settling.withdraw_all("dp")
    assert settling.open


async def test_over_the_wire_a_held_question_is_queued_and_answered_with_the_event(short_dir: Path) -> None:
    async with serve(short_dir, workers=1, settle_s=5.0) as served:
        index = served.plant.index
        index.store(0, hashes(1, 2))
        stream = served.stream(queue_notices=True)
        [first] = await stream.ask(question(1, 1, 2))
        ended = pb.Outcome(decision_id=first.decision_id, end=pb.COMPLETE, output_tokens=BLOCK, prompt_tokens=2 * BLOCK + 8)
        await stream.send(question(2, 1, 2, 3, 4), outcomes=(ended,))
        [notice] = await stream.receive()
        assert (notice.question_id, notice.queued) == (2, True)
        index.store(0, hashes(3))
        served.routing.answer_settled()
        [second] = await stream.receive()
        assert (second.question_id, second.matched_tokens) == (2, 3 * BLOCK)
