"""Whatever data planes, engines and operators do, in whatever order: when everybody has gone nothing is counted anywhere."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from contract.keyspace import EngineState
from contract.outcome import End
from controlplane.ledger import Claim
from controlplane.question import Decision, Ended
from controlplane.usual import UsualDirector
from tests.controlplane.parts import Plant, question, report
from tests.controlplane.test_ranks import join

OWNERS = ("one", "other")
STEPS = (
    *("ask", "ask", "ask", "again", "first byte", "end", "fail", "time out", "cancel", "twice"),
    *("arrive", "arrive with all", "depart", "move", "tick", "long tick", "answers", "restart", "silent", "drain", "policy"),
)


@given(
    steps=st.lists(st.tuples(st.sampled_from(STEPS), st.integers(0, 11)), max_size=60),
    ranks=st.lists(st.integers(1, 3), min_size=1, max_size=3),
    active_max=st.sampled_from([0, 2, 100]),
    usual=st.booleans(),
)
@settings(max_examples=150, deadline=None)
def test_nothing_is_left(steps: list[tuple[str, int]], ranks: list[int], active_max: int, usual: bool) -> None:
    plant = Plant(0, active_max=active_max, grace_s_max=5.0, settle_s=0.25)
    if usual:
        plant = Plant(0, active_max=active_max, grace_s_max=5.0, settle_s=0.25, director=UsualDirector)
    director = plant.director
    for number, count in enumerate(ranks):
        join(plant, f"w{number}", count)
    placed: dict[int, tuple[str, int, Decision]] = {}
    epochs = [1] * len(ranks)
    for number, (step, pick) in enumerate(steps):
        plant.now += 0.02
        owner = OWNERS[pick % 2]
        live = [decision_id for decision_id in placed if decision_id in plant.ledger.reservations]
        one = live[pick % len(live)] if live else None
        match step:
            case "ask" | "again":
                question_id = pick if step == "again" else number
                result = director.ask(question(pick, pick + 1), plant.now, owner=owner, question_id=question_id)
                if isinstance(result, Decision):
                    placed[result.decision_id] = owner, question_id, result
            case "first byte" if one is not None:
                director.first_byte(one, 0.02, plant.now)
            case "end" | "fail" | "time out" | "twice" if one is not None:
                end = {"fail": End.RESET, "time out": End.TIMED_OUT}.get(step, End.COMPLETE)
                ended = Ended(decision_id=one, end=end, ttft_s=0.01, e2e_s=0.02, output_tokens=20, prompt_tokens=-1)
                director.ended_all([ended] * (2 if step == "twice" else 1), plant.now)
            case "cancel":
                director.cancel(owner, pick, plant.now)
            case "arrive" | "arrive with all":
                held = [
                    Claim(decision_id, one.url, one.uncached_tokens, one.input_tokens, bool(pick % 3))
                    for decision_id, one in plant.ledger.reservations.items()
                    if step == "arrive with all" and one.owner == owner
                ]
                director.arrived(owner, [*held, Claim(0, "", 0, 0, False)], plant.now)
            case "depart":
                director.departed(owner, plant.now)
            case "move":
                director.moved(owner, plant.now)
            case "tick" | "long tick":
                plant.now += 7.0 if step == "long tick" else 0.25
                director.tick(plant.now, connected=bool(pick % 4))
            case "answers":
                for answer in director.answers(plant.now):
                    if isinstance(answer.result, Decision):
                        placed[answer.result.decision_id] = answer.owner, answer.question_id, answer.result
            case "restart":
                worker = pick % len(ranks)
                epochs[worker] += 1
                join(plant, f"w{worker}", 1 + pick % 3, epoch=epochs[worker])
            case "silent":
                state = EngineState.UNREACHABLE if pick % 2 else EngineState.READY
                worker = pick % len(ranks)
                plant.snapshot.worker_reported(report(f"w{worker}", epoch=epochs[worker], state=state), plant.now)
            case "drain":
                plant.snapshot.drain(f"w{pick % len(ranks)}", bool(pick % 2))
            case "policy":
                director.set_policy(("lmetric", "round_robin", "prefix", "least_load")[pick % 4])
        by_place: dict[str, int] = {}
        for reservation in plant.ledger:
            by_place[reservation.url] = by_place.get(reservation.url, 0) + 1
        assert {place: load.active for place, load in plant.ledger.loads.items() if load.active} == by_place
        held = sum(len(plant.ledger.held(name)) for name in OWNERS)
        assert held == len(plant.ledger), "each is held by its owner"
    for owner in OWNERS:
        director.departed(owner, plant.now)
    plant.now += 6.0
    director.tick(plant.now, connected=True)
    assert len(plant.ledger) == len(plant.waiting) == len(director.settling) == 0
    for load in plant.ledger.loads.values():
        assert (load.active, load.no_first_byte, load.prefill_tokens, load.context_tokens) == (0, 0, 0, 0)
        assert not load.queue
        assert not load.ends
    assert director.at_rest
