"""A data-parallel rank that hangs is left, and the others of its engine serve on; what fails at the address fails for all."""

from __future__ import annotations

from pathlib import Path

import pytest

from contract.keyspace import RankFigures
from contract.outcome import End
from contract.routing import numbered
from controlplane.breaker import FAILURES, Breaker, BreakerBounds, BreakerState
from controlplane.endpoint import Endpoint
from controlplane.fleet_view import FleetWatch
from controlplane.progress import HUNG_AFTER_S
from controlplane.question import Decision, Ended, Shed
from controlplane.rank_breaker import OF_THE_ADDRESS, OF_THE_RANK, RankBreaker
from controlplane.replicas import Replicas
from proto import fleet_pb2
from tests.controlplane.parts import Plant, question, replicas_of, report
from tests.controlplane.served import serve
from tests.controlplane.test_ranks import join

CLOSED, OPEN, HALF_OPEN = BreakerState.CLOSED, BreakerState.OPEN, BreakerState.HALF_OPEN


@pytest.fixture
def plant() -> Plant:
    """One engine of two ranks, one request at each."""
    made = Plant(workers=0, policy="least_load")
    join(made, "w0", 2)
    return made


def views(plant: Plant) -> list[BreakerState]:
    return [one.breaker.view(plant.now) for one in plant.snapshot.endpoints()]


def pass_time(plant: Plant, seconds: float, *moving: int) -> None:
    """Reports and looks as they come; the engine makes tokens at these ranks."""
    made = [0, 0]
    for _ in range(round(seconds / 0.25)):
        plant.now += 0.25
        for rank in moving:
            made[rank] += 5
        figures = tuple(RankFigures(1, 0, 0.1, 1_000 * round(plant.now) * (rank in moving) + made[rank]) for rank in range(2))
        plant.snapshot.worker_reported(report("w0", ranks=figures), plant.now)
        plant.director.tick(plant.now, connected=True)


def at(plant: Plant, rank: int, question_id: int) -> Decision:
    """A request that was placed there."""
    other = numbered(0, 1 - rank)
    return plant.place(question(1, exclude=(other,)), question_id=question_id)


def fail(plant: Plant, rank: int, end: End, times: int = 5) -> None:
    for number in range(times):
        plant.end(at(plant, rank, 100 + number), end)


class TestWhatAnEndSays:
    @pytest.mark.parametrize("end", sorted(OF_THE_ADDRESS))
    def test_failures_of_the_server_open_all_ranks(self, plant: Plant, end: End) -> None:
        fail(plant, 1, end)
        assert views(plant) == [OPEN, OPEN]

    def test_time_outs_open_the_rank_alone(self, plant: Plant) -> None:
        fail(plant, 1, End.TIMED_OUT)
        assert views(plant) == [CLOSED, OPEN]
        assert {plant.place(question_id=n).candidate.endpoint.rank for n in range(4)} == {0}

    def test_every_failure_is_one_or_the_other(self) -> None:
        assert OF_THE_ADDRESS | OF_THE_RANK == FAILURES
        assert not OF_THE_ADDRESS & OF_THE_RANK

    def test_time_outs_at_a_rank_that_nobody_named_are_the_addresss(self, plant: Plant) -> None:
        for _ in range(5):
            plant.director.ended(Ended(decision_id=0, end=End.TIMED_OUT, url="http://w0:8000"), plant.now)
        assert views(plant) == [OPEN, OPEN]

    def test_a_good_end_at_another_rank_clears_nothing_of_one_that_times_out(self, plant: Plant) -> None:
        for number in range(4):
            plant.end(at(plant, 1, number), End.TIMED_OUT)
            plant.end(at(plant, 0, 50 + number))
        plant.end(at(plant, 1, 99), End.TIMED_OUT)
        assert views(plant) == [CLOSED, OPEN]

    def test_failures_in_a_row_are_counted_over_the_ranks(self, plant: Plant) -> None:
        for number in range(5):
            plant.end(at(plant, number % 2, number), End.RESET)
        assert views(plant) == [OPEN, OPEN]


class TestProbes:
    def test_an_address_that_failed_gets_one_probe_over_all_ranks(self, plant: Plant) -> None:
        fail(plant, 1, End.CONNECT_FAILED)
        plant.now += 1.0
        assert views(plant) == [HALF_OPEN, HALF_OPEN]
        probe = plant.place(question_id=1)
        assert isinstance(plant.ask(question(1), question_id=2), Shed)
        plant.director.first_byte(probe.decision_id, 0.1, plant.now)
        assert views(plant) == [CLOSED, CLOSED]

    def test_a_rank_that_hung_gets_a_probe_of_its_own_while_others_serve(self, plant: Plant) -> None:
        fail(plant, 1, End.TIMED_OUT)
        plant.now += 1.0
        probe = at(plant, 1, 1)
        assert isinstance(plant.ask(question(1, exclude=(numbered(0, 0),)), question_id=2), Shed)
        assert plant.place(question_id=3).candidate.endpoint.rank == 0
        plant.end(probe, End.TIMED_OUT)
        assert views(plant) == [CLOSED, OPEN]
        plant.now += 2.0
        plant.end(at(plant, 1, 4))
        assert views(plant) == [CLOSED, CLOSED]

    def test_an_end_that_says_nothing_of_one_of_them_frees_its_place(self) -> None:
        address, own = Breaker(BreakerBounds()), Breaker(BreakerBounds())
        breaker = RankBreaker(address, own)
        address.suspect(0.0, "a test says so")
        own.suspect(0.0, "a test says so")
        breaker.began(2.0, 7)
        assert not breaker.admits(2.0)
        assert not breaker.ended(2.0, 7, End.CLIENT_GONE)
        assert breaker.admits(2.0)
        breaker.began(2.0, 8)
        assert breaker.ended(2.0, 8, End.TIMED_OUT)
        assert (address.view(2.0), own.view(2.0)) == (HALF_OPEN, OPEN)
        assert address.admits(2.0)
        assert not breaker.admits(2.0)
        breaker.reset()
        assert breaker.closed

    def test_a_new_run_of_the_engine_starts_with_both_closed(self, plant: Plant) -> None:
        fail(plant, 1, End.TIMED_OUT)
        fail(plant, 0, End.RESET)
        join(plant, "w0", 2, epoch=2)
        assert views(plant) == [CLOSED, CLOSED]

    def test_an_engine_that_has_one_rank_now_keeps_what_is_known_of_the_address(self, plant: Plant) -> None:
        fail(plant, 0, End.RESET)
        join(plant, "w0", 1)
        assert plant.endpoint().breaker.view(plant.now) == OPEN
        assert isinstance(plant.endpoint().breaker, Breaker)


class TestHanging:
    def test_a_rank_that_hangs_is_left_and_the_others_serve_on(self, plant: Plant) -> None:
        placed = [plant.place(question_id=number) for number in range(2)]
        assert [one.candidate.endpoint.rank for one in placed] == [0, 1]
        pass_time(plant, HUNG_AFTER_S + 1, 0)
        assert views(plant) == [CLOSED, OPEN]
        assert "hung" in plant.snapshot.endpoints()[1].breaker.reason
        assert plant.place(question_id=9).candidate.endpoint.rank == 0

    @pytest.mark.parametrize(("elsewhere", "view"), [(1, CLOSED), (0, OPEN)])
    def test_one_whose_requests_are_at_another_rank_does_not_hang(
        self, plant: Plant, elsewhere: int, view: BreakerState
    ) -> None:
        """The engine placed them by itself. Not so where they are nowhere: it hung before they came."""
        for number in range(2):
            plant.place(question_id=number)
        for step in range(round(HUNG_AFTER_S / 0.25) + 4):
            plant.now += 0.25
            figures = (RankFigures(1 + elsewhere, 0, 0.1, 5 * step), RankFigures())
            plant.snapshot.worker_reported(report("w0", ranks=figures), plant.now)
            plant.director.tick(plant.now, connected=True)
        assert views(plant) == [CLOSED, view]

    def test_where_none_of_them_moves_all_are_left(self, plant: Plant) -> None:
        for number in range(2):
            plant.place(question_id=number)
        pass_time(plant, HUNG_AFTER_S + 1)
        assert views(plant) == [OPEN, OPEN]

    def test_data_planes_are_told_which_rank_is_stuck(self, plant: Plant) -> None:
        for number in range(2):
            plant.place(question_id=number)
        watch = FleetWatch(plant.snapshot, plant.director, first_version=1)
        before = watch.view(plant.now).version
        pass_time(plant, HUNG_AFTER_S + 1, 0)
        (there,) = watch.view(plant.now).endpoints
        assert (there.available, there.stuck, list(there.stuck_ranks)) == (True, False, [1])
        assert watch.view(plant.now).version > before
        plant.snapshot.endpoints()[0].breaker.suspect(plant.now, "so does this one")
        (there,) = watch.view(plant.now).endpoints
        assert (there.available, there.stuck) == (False, True)

    def test_who_waited_there_may_go_to_another_rank_of_the_same_engine(self, plant: Plant) -> None:
        for number in range(2):
            plant.place(question_id=number)
        pass_time(plant, HUNG_AFTER_S + 3, 0)
        assert views(plant)[1] in (HALF_OPEN, OPEN)
        for number in range(4):  # not even as a probe back to where it waited
            again = plant.place(question(1, exclude=(numbered(0, 1),), attempt=1), question_id=10 + number)
            assert again.candidate.endpoint.rank == 0

    async def test_operators_see_which_one_it_is(self, short_dir: Path) -> None:
        async with serve(short_dir, workers=0) as served:
            plant = served.plant
            join(plant, "w0", 2)
            plant.snapshot.endpoints()[1].breaker.suspect(plant.now, "engine hung: 3 requests there")
            (status,) = (await served.fleet.ListWorkers(fleet_pb2.ListWorkersRequest())).workers
            assert status.breaker == fleet_pb2.CLOSED
            assert [rank.breaker for rank in status.ranks] == [fleet_pb2.CLOSED, fleet_pb2.OPEN]
            assert status.alarm.startswith("rank 1: breaker open: engine hung")
            assert not status.ranks[0].alarm


@pytest.mark.parametrize(("rank", "end", "there"), [(0, End.TIMED_OUT, [OPEN, CLOSED]), (1, End.TIMED_OUT, [CLOSED, OPEN]),
                                                     (1, End.RESET, [OPEN, OPEN])])  # fmt: skip
def test_another_control_plane_opens_the_same_and_closes_it_again(rank: int, end: End, there: list[BreakerState]) -> None:
    plants = [Plant(workers=0, policy="least_load") for _ in range(2)]
    for plant in plants:
        join(plant, "w0", 2)
    one, other = (replicas_of(plant, f"cp-{number}", lambda: ["dp"]) for number, plant in enumerate(plants))
    tell(one, other, plants)  # they have heard of each other
    fail(plants[0], rank, end)
    tell(one, other, plants)
    assert views(plants[1]) == there == views(plants[0])
    assert [shown(each) for each in plants[1].snapshot.endpoints()] == [end.name if state is OPEN else "" for state in there]
    for plant in plants:
        plant.now += 1.5
    plants[0].end(at(plants[0], rank, 1))
    tell(one, other, plants)
    assert views(plants[1]) == [CLOSED, CLOSED]


def tell(one: Replicas, other: Replicas, plants: list[Plant]) -> None:
    """Each its whole word."""
    for plant in plants:
        plant.now += 0.6
    for speaker, hearer in ((one, other), (other, one)):
        message = speaker.say(plants[0].now)
        assert message is not None
        assert message.whole
        hearer.hear(message, plants[0].now)


def shown(endpoint: Endpoint) -> str:
    return endpoint.breaker.reason.rpartition(" ")[2]


def test_a_worker_that_was_forgotten_and_came_back_has_its_openings_taken_over_again() -> None:
    """Its breaker there is a new one, which counts from 1."""
    plants = [Plant(workers=1) for _ in range(2)]
    one, other = (replicas_of(plant, f"cp-{number}", lambda: ["dp"]) for number, plant in enumerate(plants))
    tell(one, other, plants)
    for _ in range(2):
        breaker = plants[0].endpoint().breaker
        assert isinstance(breaker, Breaker)
        for times in range(2):
            breaker.suspect(plants[0].now, "a test says so")
            tell(one, other, plants)
            assert plants[1].endpoint().breaker.view(plants[1].now) is OPEN, times
            breaker.reset()
            plants[1].now += 30.0
            plants[0].now += 30.0
            tell(one, other, plants)
            assert plants[1].endpoint().breaker.closed, times
        plants[0].endpoint().breaker = Breaker(BreakerBounds())
