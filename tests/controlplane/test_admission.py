"""The waiting room: bounded, fair, and nobody is lost in it."""

from __future__ import annotations

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.admission import WaitingRoom
from controlplane.question import Question, Shed, ShedReason
from tests.controlplane.parts import MODEL, question


def asked(tenant: str = "", priority: int = 0, **fields: object) -> Question:
    return question(1, tenant=tenant, priority=priority, **fields)


def offer(room: WaitingRoom, number: int, one: Question, now: float = 0.0) -> Shed | None:
    return room.offer(one, "dp", number, now)


def served_order(room: WaitingRoom, model: str = MODEL) -> list[int]:
    order = []
    while (waiting := room.next(model)) is not None:
        room.served(waiting)
        order.append(waiting.question_id)
    return order


def test_the_more_urgent_class_goes_first() -> None:
    room = WaitingRoom()
    for number, priority in enumerate((0, 5, -1, 5)):
        offer(room, number, asked(priority=priority))
    assert served_order(room) == [1, 3, 0, 2]


def test_tenants_take_turns_whatever_their_numbers() -> None:
    room = WaitingRoom()
    for number in range(4):
        offer(room, number, asked("loud"))
    offer(room, 10, asked("quiet"))
    offer(room, 11, asked("quiet"))
    assert served_order(room) == [0, 10, 1, 11, 2, 3]


def test_one_tenant_cannot_fill_the_queue_while_others_wait() -> None:
    room = WaitingRoom(waiting_max=10)
    offer(room, 0, asked("quiet"))
    accepted = [offer(room, number, asked("loud")) is None for number in range(1, 10)]
    assert accepted == [True] * 5 + [False] * 4
    assert offer(room, 20, asked("third")) is None


def test_a_tenant_alone_may_use_the_whole_queue() -> None:
    room = WaitingRoom(waiting_max=4)
    assert [offer(room, number, asked("only")) is None for number in range(5)] == [True] * 4 + [False]


def test_a_full_queue_says_how_many_wait() -> None:
    room = WaitingRoom(waiting_max=1)
    offer(room, 1, asked())
    refused = offer(room, 2, asked())
    assert refused is not None
    assert refused.reason == ShedReason.QUEUE_FULL
    assert refused.retry_after_s > 0


def test_a_question_that_is_asked_twice_waits_once() -> None:
    room = WaitingRoom()
    assert offer(room, 1, asked()) is None
    assert offer(room, 1, asked()) is not None
    assert len(room) == 1


def test_models_wait_in_lines_of_their_own() -> None:
    room = WaitingRoom()
    offer(room, 1, asked(model="a"))
    offer(room, 2, asked(model="b"))
    assert room.waits_for("a")
    assert served_order(room, "b") == [2]
    assert room.models() == ["a"]


def test_deadlines_pass_and_a_requests_own_bound_is_the_shorter_one() -> None:
    room = WaitingRoom(wait_s_max=5.0)
    offer(room, 1, asked())
    offer(room, 2, asked(slo_ttft_ms=500))
    assert [waiting.question_id for waiting in room.expire(0.4)] == []
    assert [waiting.question_id for waiting in room.expire(0.5)] == [2]
    assert [waiting.question_id for waiting in room.expire(5.0)] == [1]
    assert room.models() == []


def test_the_withdrawn_are_not_answered() -> None:
    room = WaitingRoom()
    offer(room, 1, asked("a"))
    offer(room, 2, asked("b"))
    assert room.withdraw("dp", 1)
    assert not room.withdraw("dp", 1)
    assert not room.withdraw("another", 2)
    room.withdraw_all("dp")
    assert len(room) == 0


@settings(max_examples=50, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(["offer", "serve", "withdraw", "expire"]), st.integers(0, 3), st.integers(-1, 1)), max_size=80
    )
)
def test_everybody_leaves_exactly_once_and_the_room_is_never_fuller_than_its_bound(steps: list[tuple[str, int, int]]) -> None:
    room = WaitingRoom(waiting_max=6, wait_s_max=3.0)
    inside: set[int] = set()
    left: Counter[int] = Counter()
    now = 0.0
    for number, (step, tenant, priority) in enumerate(steps):
        if step == "offer":
            if offer(room, number, asked(str(tenant), priority), now) is None:
                inside.add(number)
        elif step == "serve":
            waiting = room.next(MODEL)
            if waiting is not None:
                room.served(waiting)
                left[waiting.question_id] += 1
        elif step == "withdraw":
            if room.withdraw("dp", number - tenant):
                left[number - tenant] += 1
        else:
            now += tenant
            left.update(waiting.question_id for waiting in room.expire(now))
        assert len(room) == len(inside) - len(left) <= 6
    left.update(served_order(room))
    assert left == Counter(inside)
