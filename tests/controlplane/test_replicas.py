"""Control planes beside each other: what they tell, what becomes of it, and that nothing is counted twice or for ever."""

from __future__ import annotations

from collections.abc import Iterable
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contract.keyspace import CodecError
from contract.outcome import End
from contract.replicas import ALONE_S, PEER_S_MAX, SAY_S, WHOLE_S, Message, Order, decode, encode
from controlplane.breaker import BreakerState
from controlplane.endpoint import Endpoint
from controlplane.ledger import Claim
from controlplane.orders import Orders
from controlplane.question import Decision, Ended
from controlplane.self_check import SAMPLES_MIN
from tests.controlplane.parts import BLOCK, MODEL, Plant, hashes, question, replicas_of

WORKERS = 4


class Replica:
    """A control plane of the fleet: its cores, and the data planes whose streams are open."""

    def __init__(self, name: str, workers: Iterable[int] = range(WORKERS), **parts: object) -> None:
        self.plant = Plant(workers=0, **parts)  # type: ignore[arg-type]
        for number in workers:
            self.plant.join(f"w{number}")
        self.owners: list[str] = []
        self.questions = 0
        self.replicas = replicas_of(self.plant, name, lambda: self.owners)

    def arrived(self, owner: str, claims: Iterable[Claim] = ()) -> None:
        self.owners.append(owner)
        self.plant.director.arrived(owner, claims, self.plant.now)
        self.replicas.arrived(owner)

    def departed(self, owner: str) -> None:
        self.owners.remove(owner)
        self.plant.director.departed(owner, self.plant.now)

    def place(self, *blocks: int, owner: str, tokens: int | None = None) -> Decision:
        self.questions += 1
        return self.plant.place(question(*blocks, tokens=tokens), owner=owner, question_id=self.questions)

    def held(self, owner: str) -> list[Claim]:
        """What this data plane would claim elsewhere."""
        return [
            Claim(one.decision_id, one.url, one.uncached_tokens, one.input_tokens, one.first_byte_seen)
            for one in self.plant.ledger
            if one.owner == owner
        ]

    def end_all(self) -> None:
        for one in list(self.plant.ledger):
            self.plant.director.ended(ended(one.decision_id), self.plant.now)

    def active(self, worker: str) -> int:
        return self.plant.endpoint(worker).stands(self.plant.now).active

    def foreign(self) -> int:
        loads = self.plant.ledger.loads.values()
        return sum(load.foreign.active for load in loads if load.foreign is not None)


def ended(decision_id: int, end: End = End.COMPLETE) -> Ended:
    return Ended(decision_id=decision_id, end=end)


class Fleet:
    """Several, and the channel between them. Decision ids are apart, as real ones are."""

    def __init__(self, count: int = 2, **parts: object) -> None:
        self.all = [Replica(f"cp-{number}", **parts) for number in range(count)]  # type: ignore[arg-type]
        for number, one in enumerate(self.all):
            one.plant.director._next_id = (number + 1) << 40
        self.messages = 0
        self.cut: set[Replica] = set()

    def pass_time(self, seconds: float, *, step_s: float = SAY_S) -> None:
        """Whoever has something to say says it, and all that are not cut off hear it."""
        for _ in range(max(1, round(seconds / step_s))):
            for one in self.all:
                one.plant.now += step_s
            for one in self.all:
                if one in self.cut:
                    continue
                message = one.replicas.say(one.plant.now)
                if message is None:
                    continue
                self.messages += 1
                heard = decode(encode(message))
                for other in self.all:
                    if other not in self.cut:
                        other.replicas.hear(heard, other.plant.now)
            for one in self.all:
                one.replicas.tick(one.plant.now)


@pytest.fixture
def fleet() -> Fleet:
    made = Fleet()
    made.all[0].arrived("dp-0")
    made.all[1].arrived("dp-1")
    made.pass_time(2 * ALONE_S)
    return made


def test_alone_it_says_little_and_nothing_hangs_at_any_load() -> None:
    fleet = Fleet(1)
    (only,) = fleet.all
    only.arrived("dp")
    only.place(1, 2, owner="dp")
    fleet.pass_time(10.0)
    assert fleet.messages <= 10.0 / ALONE_S + 1
    assert only.foreign() == 0
    assert all(load.foreign is None for load in only.plant.ledger.loads.values())


def test_what_one_places_the_other_counts_within_a_moment(fleet: Fleet) -> None:
    one, other = fleet.all
    decision = one.place(1, 2, 3, owner="dp-0")
    worker = decision.candidate.endpoint.worker
    fleet.pass_time(SAY_S)
    row = other.plant.endpoint(worker).stands(other.plant.now)
    assert (row.active, row.no_first_byte, row.prefill_tokens) == (1, 1, decision.candidate.uncached_tokens)
    assert other.plant.endpoint(worker).load.active == 0
    one.plant.director.first_byte(decision.decision_id, 0.1, one.plant.now)
    fleet.pass_time(SAY_S)
    row = other.plant.endpoint(worker).stands(other.plant.now)
    assert (row.active, row.no_first_byte, row.prefill_tokens) == (1, 0, 0)
    one.end_all()
    fleet.pass_time(SAY_S)
    assert other.foreign() == 0


def test_a_burst_that_meets_two_of_them_is_spread_as_by_one(fleet: Fleet) -> None:
    one, other = fleet.all
    for number in range(10):
        for replica, owner in ((one, "dp-0"), (other, "dp-1")):
            for _ in range(2):
                replica.place(100 + number, owner=owner)
        fleet.pass_time(SAY_S)
    together = [one.plant.endpoint(f"w{n}").load.active + other.plant.endpoint(f"w{n}").load.active for n in range(WORKERS)]
    assert sum(together) == 40
    assert max(together) - min(together) <= 4  # what is placed between two words


def test_nothing_is_said_twice_and_guesses_are_not_echoed(fleet: Fleet) -> None:
    one, other = fleet.all
    one.plant.now += SAY_S / 2
    decision = one.place(1, 2, 3, owner="dp-0")
    fleet.pass_time(SAY_S)
    slot = other.plant.endpoint(decision.candidate.endpoint.worker).slot
    assert other.plant.index.match(hashes(1, 2, 3)) == {slot: 3}
    before = fleet.messages
    fleet.pass_time(1.0)
    assert fleet.messages - before <= 2 * (1.0 / WHOLE_S + 1)  # the whole ones alone
    assert not other.replicas._guesses
    assert other.replicas.guesses_left_out == 0


def test_one_that_is_gone_is_forgotten_in_time(fleet: Fleet) -> None:
    one, other = fleet.all
    one.place(1, owner="dp-0")
    fleet.pass_time(SAY_S)
    assert other.foreign() == 1
    fleet.cut.add(one)
    fleet.pass_time(PEER_S_MAX + 2 * SAY_S)
    assert (other.foreign(), len(other.replicas)) == (0, 0)


def test_whoever_goes_over_is_counted_once_even_if_the_former_died() -> None:
    fleet = Fleet()
    one, other = fleet.all
    one.arrived("dp")
    fleet.pass_time(1.0)
    for number in range(6):
        one.place(number, owner="dp")
    fleet.pass_time(SAY_S)
    fleet.cut.add(one)  # killed
    other.arrived("dp", one.held("dp"))
    assert sum(other.active(f"w{n}") for n in range(WORKERS)) == 6
    fleet.pass_time(1.0)
    assert sum(other.active(f"w{n}") for n in range(WORKERS)) == 6


def test_whoever_goes_over_is_let_go_by_a_former_one_that_lives() -> None:
    fleet = Fleet()
    one, other = fleet.all
    one.arrived("dp")
    fleet.pass_time(1.0)
    for number in range(6):
        one.place(number, owner="dp")
    claims = one.held("dp")
    one.departed("dp")
    other.arrived("dp", claims)
    fleet.pass_time(2 * SAY_S)
    assert (len(one.plant.ledger), one.foreign()) == (0, 6)
    assert (len(other.plant.ledger), other.foreign()) == (6, 0)
    fleet.pass_time(20.0)
    one.plant.director.tick(one.plant.now, connected=True)
    assert not one.plant.outcomes  # nothing was lost: it is elsewhere
    other.end_all()
    fleet.pass_time(0.1)
    assert one.foreign() == other.foreign() == len(other.plant.ledger) == 0


def test_what_a_data_plane_left_behind_is_told_of_no_more(fleet: Fleet) -> None:
    one, other = fleet.all
    one.arrived("dp")
    for number in range(4):
        one.place(number, owner="dp")
    one.place(9, owner="dp-0")
    fleet.pass_time(SAY_S)
    assert other.foreign() == 5
    one.departed("dp")
    fleet.pass_time(SAY_S)
    assert other.foreign() == 1
    assert len(one.plant.ledger) == 5  # the grace period: it may come back
    one.arrived("dp", one.held("dp"))
    fleet.pass_time(2 * WHOLE_S)
    assert other.foreign() == 5


def test_a_word_that_was_overtaken_says_nothing(fleet: Fleet) -> None:
    one, other = fleet.all
    one.place(1, owner="dp-0")
    one.plant.now += SAY_S
    older = one.replicas.say(one.plant.now)
    one.end_all()
    one.plant.now += SAY_S
    newer = one.replicas.say(one.plant.now)
    assert older is not None
    assert newer is not None
    for message in (newer, older):
        other.replicas.hear(message, other.plant.now)
    assert other.foreign() == 0


def test_while_redis_is_away_each_counts_its_own_and_the_grace_period_ends_the_rest() -> None:
    fleet = Fleet()
    one, other = fleet.all
    one.arrived("dp")
    one.place(1, owner="dp")
    fleet.pass_time(1.0)
    fleet.cut |= {one, other}
    claims = one.held("dp")
    one.departed("dp")
    other.arrived("dp", claims)
    fleet.pass_time(PEER_S_MAX + 2 * SAY_S)
    assert one.foreign() == other.foreign() == 0
    fleet.pass_time(10.0, step_s=0.25)
    one.plant.director.tick(one.plant.now, connected=False)
    assert len(one.plant.ledger) == 0
    assert len(other.plant.ledger) == 1


def test_a_breaker_opens_for_all_and_closes_for_all(fleet: Fleet) -> None:
    one, other = fleet.all
    breaker, told = one.plant.endpoint("w1").breaker, other.plant.endpoint("w1").breaker
    for number in range(5):
        breaker.ended(one.plant.now, number + 1, End.RESET)
    fleet.pass_time(SAY_S)
    assert told.view(other.plant.now) is BreakerState.OPEN
    assert "5 failures in a row" in told.reason
    fleet.pass_time(1.0)
    assert told.view(other.plant.now) is BreakerState.HALF_OPEN
    assert breaker.openings == 1
    assert not told.openings  # it does not tell of it as its own
    breaker.began(one.plant.now, 77)
    breaker.first_byte(one.plant.now, 77)
    fleet.pass_time(2 * WHOLE_S)
    assert told.closed


def test_a_probe_here_closes_a_breaker_that_another_one_has_open(fleet: Fleet) -> None:
    one, other = fleet.all
    breaker, told = one.plant.endpoint("w1").breaker, other.plant.endpoint("w1").breaker
    for number in range(5):
        breaker.ended(one.plant.now, number + 1, End.RESET)
    fleet.pass_time(1.0 + SAY_S)
    told.began(other.plant.now, 5)
    told.first_byte(other.plant.now, 5)
    fleet.pass_time(1.0)
    assert told.closed  # it is not opened by the same opening again
    assert not breaker.closed


def test_withheld_credit_is_withheld_by_all_until_one_knows_better(fleet: Fleet) -> None:
    one, other = fleet.all
    there: list[Endpoint] = [each.plant.endpoint("w2") for each in (one, other)]
    for _ in range(SAMPLES_MIN):
        there[0].credit = one.plant.self_check.compare("w2", there[0].record.epoch, MODEL, 5 * BLOCK, 0)
    assert not there[0].credit
    fleet.pass_time(2 * WHOLE_S)
    assert not there[1].credit
    for number in range(SAMPLES_MIN):
        stands = other.plant.self_check.compare("w2", there[1].record.epoch, MODEL, 5 * BLOCK, 5 * BLOCK)
        assert stands == (number + 1 >= SAMPLES_MIN)


def test_orders_hold_on_all_and_for_one_that_starts_late(fleet: Fleet) -> None:
    one, other = fleet.all
    one.plant.director.set_policy("prefix")
    one.replicas.orders.set_policy("prefix", 1_000)
    other.plant.snapshot.drain("w3", True)
    other.replicas.orders.set_draining("w3", True, 2_000)
    fleet.pass_time(3 * WHOLE_S)
    late = Replica("late", workers=())
    late.plant.now = one.plant.now
    fleet.all.append(late)
    fleet.pass_time(1.0)
    late.plant.join("w3")
    fleet.pass_time(SAY_S)
    for each in fleet.all:
        assert each.plant.director.policy == "prefix"
        assert each.plant.endpoint("w3").draining
    late.replicas.orders.set_draining("w3", False, 1)  # its clock is behind: it is the latest word all the same
    fleet.pass_time(1.0)
    assert not any(each.plant.endpoint("w3").draining for each in fleet.all)


def test_speeds_are_known_to_whoever_stands_by() -> None:
    fleet = Fleet()
    one, other = fleet.all
    one.arrived("dp")
    one.plant.endpoint("w0").rates.gap(0.02)
    fleet.pass_time(2.5)
    assert other.plant.endpoint("w0").rates.decode_itl_s == 0.02
    other.arrived("dp-1")
    other.plant.endpoint("w0").rates.gap(0.04)
    fleet.pass_time(2.5)
    assert other.plant.endpoint("w0").rates.decode_itl_s > 0.02


def test_what_is_no_message_is_refused() -> None:
    for data in (b"", b"\xc0", encode(Message(replica="a", sequence=1, whole=True))[:-3]):
        with pytest.raises(CodecError):
            decode(data)


# ----------------------------------------------------------------------------------------------------------- properties

ORDERS = st.lists(
    st.builds(
        Order,
        st.sampled_from(["policy", "drain:w0", "drain:w1"]),
        st.integers(0, 3),
        st.sampled_from("ab"),
        st.sampled_from(["", "1"]),
    ),
    max_size=12,
)


@given(ORDERS, st.randoms(use_true_random=False))
def test_all_come_to_the_same_orders_whatever_reached_them_first(orders: list[Order], rng: Random) -> None:
    ones, others = Orders("x"), Orders("y")
    ones.take(orders)
    shuffled = [*orders, *rng.sample(orders, len(orders) // 2)]
    rng.shuffle(shuffled)
    for order in shuffled:
        others.take([order])
    assert set(ones.listed()) == set(others.listed())
    assert not ones.take(others.listed())


STEPS = st.lists(st.tuples(st.sampled_from("aabbfegmrclt"), st.integers(0, 1), st.integers(1, 6)), max_size=60)


@settings(max_examples=150)
@given(STEPS)
def test_rows_add_up_and_nothing_is_left_whatever_happens(steps: list[tuple[str, int, int]]) -> None:
    """Two control planes, a data plane that goes to and fro and one on each: after a quiet moment every row is what is in
    flight anywhere, and when all has ended nothing is counted."""
    fleet = Fleet()
    ones = fleet.all
    home = {"roving": 0, "dp-0": 0, "dp-1": 1}
    for owner, number in home.items():
        ones[number].arrived(owner)
    fleet.pass_time(1.0)
    block = 0
    for what, which, count in steps:
        replica = ones[which]
        if what in "ab":
            owner = f"dp-{which}" if what == "a" else "roving"
            for _ in range(count):
                block += 1
                ones[home[owner]].place(block, owner=owner)
        elif what == "f":
            for one in list(replica.plant.ledger)[:count]:
                replica.plant.director.first_byte(one.decision_id, 0.05, replica.plant.now)
        elif what == "e":
            for one in list(replica.plant.ledger)[:count]:
                if one.owner in replica.owners:
                    replica.plant.director.ended(ended(one.decision_id), replica.plant.now)
        elif what in "gm" and home["roving"] != which:
            former = ones[home["roving"]]
            claims = former.held("roving")
            if what == "g":  # its stream broke
                former.departed("roving")
            replica.arrived("roving", claims)
            if what == "m":  # it came back by choice, and says so a little later
                former.plant.director.moved("roving", former.plant.now)
                former.departed("roving")
            home["roving"] = which
        elif what == "c":
            fleet.cut ^= {replica}
        elif what == "l":
            fleet.pass_time(PEER_S_MAX * count / 2)
        else:
            fleet.pass_time(SAY_S * count)
    fleet.cut.clear()
    fleet.pass_time(2 * ALONE_S)
    for number in range(WORKERS):
        loads = [one.plant.endpoint(f"w{number}").load for one in ones]
        there = sum(load.active for load in loads), sum(load.prefill_tokens for load in loads)
        for one in ones:
            row = one.plant.endpoint(f"w{number}").stands(one.plant.now)
            assert (row.active, row.prefill_tokens) == there
    in_flight = {reservation.decision_id for one in ones for reservation in one.plant.ledger}
    assert len(in_flight) == sum(len(one.plant.ledger) for one in ones), "counted at both"
    for one in ones:
        one.end_all()
    fleet.pass_time(2 * WHOLE_S)
    for one in ones:
        assert one.foreign() == len(one.plant.ledger) == 0
        assert all(one.active(f"w{number}") == 0 for number in range(WORKERS))
