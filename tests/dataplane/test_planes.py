"""Which of several control planes decides: the choice alone, in time that the test makes pass."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dataplane.planes import FIRST_S, REST_S_MAX, REST_S_MIN, SILENT_S, STEADY_S_MIN, Plane, Planes
from proto import routing_pb2 as pb

WARM = pb.FleetView(warm=True)
COLD = pb.FleetView(warm=False)
BEHIND = pb.FleetView(warm=True, catching_up=True)


def heard(planes: Planes, now: float, *views: pb.FleetView | None) -> None:
    for plane, view in zip(planes, views, strict=True):
        if view is not None:
            planes.heard(plane, view, now)


def steady(planes: Planes, since: float, until: float, *views: pb.FleetView | None) -> None:
    """Views once a second."""
    now = since
    while now <= until:
        heard(planes, now, *views)
        now += 1.0


def two() -> tuple[Planes, Plane, Plane]:
    planes = Planes(("a", "b"), 0.0)
    first, second = planes
    return planes, first, second


def failed_over() -> tuple[Planes, Plane, Plane]:
    """At 10 s: the first broke, the second was taken."""
    planes, first, second = two()
    steady(planes, 0.0, 10.0, WARM, WARM)
    planes.taken(first, 0.0)
    planes.failed(first, 10.0)
    planes.unwatched(first)
    planes.taken(second, 10.0)
    return planes, first, second


def test_the_first_of_the_list_is_taken_and_waited_for_at_the_start() -> None:
    planes, first, _ = two()
    heard(planes, 0.1, None, WARM)
    assert planes.next(0.1) is None
    heard(planes, 0.2, WARM, None)
    assert planes.next(0.2) is first


def test_without_the_first_the_next_is_taken_soon() -> None:
    planes, _, second = two()
    heard(planes, 0.1, None, WARM)
    assert planes.rest_s(0.1) <= FIRST_S
    assert planes.next(0.1 + planes.rest_s(0.1)) is second


def test_the_next_is_there_at_once_when_the_first_breaks() -> None:
    planes, first, second = two()
    heard(planes, 1.0, WARM, WARM)
    planes.taken(first, 1.0)
    planes.failed(first, 5.0)
    heard(planes, 4.5, None, WARM)
    assert planes.next(5.0) is second


def test_one_that_has_read_its_fleet_goes_before_one_that_has_not() -> None:
    planes, first, second = two()
    heard(planes, 1.0, COLD, WARM)
    assert planes.next(1.0) is second
    heard(planes, 1.0, COLD, COLD)
    assert planes.next(1.0) is first
    planes.taken(first, 1.0)
    assert planes.other(1.0) is None  # a cold one is no reason to leave another


def test_it_is_returned_to_when_it_has_been_steady() -> None:
    planes, first, _ = failed_over()
    steady(planes, 20.0, 20.0 + STEADY_S_MIN - 1.0, WARM, WARM)
    assert planes.better(20.0 + STEADY_S_MIN - 0.5) is None
    heard(planes, 20.0 + STEADY_S_MIN, WARM, WARM)
    assert planes.better(20.0 + STEADY_S_MIN) is first


def test_one_that_catches_up_is_not_returned_to_unless_the_other_does_too() -> None:
    planes, first, _ = failed_over()
    steady(planes, 20.0, 40.0, BEHIND, WARM)
    assert planes.better(40.0) is None
    heard(planes, 40.5, BEHIND, BEHIND)
    assert planes.better(40.5) is first


def test_a_pause_of_its_views_begins_the_wait_anew() -> None:
    planes, _, _ = failed_over()
    heard(planes, 20.0, WARM, WARM)
    heard(planes, 20.0 + SILENT_S, WARM, WARM)
    assert planes.better(20.0 + STEADY_S_MIN) is None


def test_a_relapse_doubles_the_wait_and_a_long_stay_ends_that() -> None:
    planes, first, second = failed_over()
    planes.taken(first, 30.0)
    planes.failed(first, 40.0)
    planes.taken(second, 40.0)
    steady(planes, 41.0, 41.0 + 2 * STEADY_S_MIN, WARM, WARM)
    assert planes.better(41.0 + STEADY_S_MIN) is None
    assert planes.better(41.0 + 2 * STEADY_S_MIN) is first
    planes.taken(first, 50.0)
    planes.failed(first, 500.0)
    assert first.steady_s == STEADY_S_MIN


def test_the_only_one_is_tried_again_and_again_with_growing_rests() -> None:
    planes = Planes(("a",), 0.0)
    (only,) = planes
    now, rests = 1.0, []
    for _ in range(8):
        heard(planes, now, WARM)
        assert planes.next(now) is only
        planes.taken(only, now)
        planes.failed(only, now)
        assert planes.next(now) is None
        rests.append(planes.rest_s(now))
        now += planes.rest_s(now)
    assert rests[0] == REST_S_MIN or abs(rests[0] - REST_S_MIN) < 1e-9
    assert rests == sorted(rests)
    assert abs(rests[-1] - REST_S_MAX) < 1e-9


STEPS = st.lists(st.tuples(st.sampled_from("hcbufnt"), st.integers(0, 2), st.floats(0.0, 5.0)), max_size=80)


@given(STEPS)
def test_whoever_is_next_answers_and_nobody_waits_without_an_end(steps: list[tuple[str, int, float]]) -> None:
    planes = Planes(("a", "b", "c"), 0.0)
    each = tuple(planes)
    now = 1.0
    for what, which, later in steps:
        now += later
        plane = each[which]
        if what in "hcb":
            planes.heard(plane, {"h": WARM, "c": COLD, "b": BEHIND}[what], now)
        elif what == "u":
            planes.unwatched(plane)
        elif what == "f":
            planes.failed(plane, now)
        elif (found := planes.next(now)) is not None:
            planes.taken(found, now)
        found = planes.next(now)
        assert found is None or found.answers(now)
        assert found is not None or 0.0 < planes.rest_s(now) <= REST_S_MAX + 1e-9
        better = planes.better(now)
        assert better is None or (better.answers(now) and planes.current is not None and better is not planes.current)
        assert better is None or each.index(better) < each.index(planes.current)  # type: ignore[arg-type]
        if any(one.answers(now) for one in each) and now >= FIRST_S:
            assert found is not None
