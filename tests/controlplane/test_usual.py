"""The short way and the director, held against each other: the same messages, the same answers and all that follows."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from random import Random

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contract.outcome import End, Outcome
from contract.routing import Answer, Asked, pack, unpack_answers
from controlplane import packed, ranking, wire
from controlplane.director import Director
from controlplane.endpoint import features
from controlplane.explain import Foretold, Placed, Trace
from controlplane.foreign import Foreign, Part
from controlplane.index_state import IndexState
from controlplane.ledger import Claim
from controlplane.predictor import ALONE_MAX, Forecaster, Predictor, residuals
from controlplane.profiles import NAMES, build
from controlplane.question import Decided, Ended, Request
from controlplane.rankers import RATIO_MAX, Layered, LeastPredicted
from controlplane.usual import TOGETHER_MAX, UsualDirector
from prediction import predictor
from proto import routing_pb2 as pb
from tests.controlplane.models import linear
from tests.controlplane.parts import BLOCK, MODEL, Plant, hashes, report
from tests.trainer.traffic import samples
from trainer.train import train

MESSAGES = 250
SHORT = [profile.name for profile in build().values() if profile.short]
SAME = 1e-9
"""Predictions of both ways, relative: the last bits of logarithms differ."""
USUAL = [End.COMPLETE] * 12
ODD = [End.RESET, End.CLIENT_GONE, End.BACK_PRESSURE, End.TIMED_OUT]


@cache
def model(kind: str) -> Predictor:
    """One that has a short way for few rows, and one that has none."""
    if kind == "linear":
        return predictor.load(linear(per="prefill_tokens"))
    return train(samples(600, 1), kind=kind, model_id=kind, seed=1, now_unix=0.0).predictor


class Pair:
    """Two plants of which one takes the short way where it can; whatever is done is done to both."""

    def __init__(
        self, policy: str, seed: int, *, exact: bool, active_max: int = 4, most: int = 6, ratio_max: float = RATIO_MAX
    ) -> None:
        """most: questions of a message; ratio_max: of a p90 over its median."""
        self.rng = Random(seed)
        self.most = most
        self.rankers = [(LeastPredicted(Forecaster(), ratio_max=ratio_max), Layered(low_s=0.017, high_s=0.5)) for _ in range(2)]
        self.plants = [
            Plant(
                0,
                policy=policy,
                waiting_max=4,
                settle_s=0.1,
                seed=seed,
                profiles=build(active_max, predicted=predicted, layered=layered),
                predicted=predicted,
                director=kind,
            )
            for kind, (predicted, layered) in zip((Director, UsualDirector), self.rankers, strict=True)
        ]
        self.exact = exact
        for number in range(4):
            self.join(f"w{number}")
        self.questions = 0
        self.under_way: list[int] = []
        lengths = [6] * 9 + [30] * 3  # what is read as a tuple, and what is not
        self.prompts = [tuple(self.rng.getrandbits(64) for _ in range(length)) for length in lengths]

    def join(self, worker: str, **fields: object) -> None:
        for plant in self.plants:
            slot = plant.join(worker, **fields)
            plant.index.attach(slot, capacity_blocks=40, exact=self.exact)
            if self.exact:
                plant.index.set_state(slot, IndexState.EXACT)

    def asked(self) -> Asked:
        rng = self.rng
        self.questions += 1
        prompt = rng.choice(self.prompts)
        blocks = prompt[: rng.randint(0, len(prompt))] if rng.random() < 0.8 else (rng.getrandbits(64),) * 1
        odd = rng.random()
        request = Request(
            model="other" if odd < 0.03 else MODEL,
            input_tokens=BLOCK * len(blocks) + rng.choice((0, 0, 5)),
            exact_tokens=rng.random() < 0.9,
            max_tokens=5000 if 0.03 < odd < 0.05 else rng.choice((0, 64)),
            slo_ttft_ms=50.0 if 0.05 < odd < 0.08 else 0.0,
            exclude=(rng.randrange(4),) if 0.08 < odd < 0.12 else (),
            request_id=f"r{self.questions}",
        )
        chain = hashes(*blocks).tobytes()
        chains = ((BLOCK, chain),) if odd < 0.9 else ((BLOCK, chain[:-1]),) if odd < 0.93 else ((8, chain), (BLOCK, chain))
        question_id = self.questions if rng.random() < 0.98 else max(1, self.questions - 3)  # as no data plane does
        return Asked(question_id, request, chains if rng.random() < 0.9 else ())

    def ended(self, decision_id: int) -> Ended:
        rng = self.rng
        end = rng.choice(USUAL if rng.random() < 0.9 else ODD)
        times = {"ttft_s": rng.random() / 10, "itl_s": 0.01, "e2e_s": 0.5} if rng.random() < 0.5 else {}
        cached = rng.choice((-1, 0, BLOCK, 3 * BLOCK))
        output = rng.choice((0, 1, 30))
        return Ended(decision_id=decision_id, end=end, cached_tokens=cached, output_tokens=output, **times)

    def message(self) -> None:
        rng = self.rng
        asked = [self.asked() for _ in range(rng.randint(0, self.most))]
        rng.shuffle(self.under_way)
        count = rng.randint(0, min(self.most + 2, len(self.under_way)))
        ended = [self.ended(self.under_way.pop()) for _ in range(count)]
        if ended and rng.random() < 0.1:
            ended.append(ended[0])
        begun = rng.sample(self.under_way, min(2, len(self.under_way)))
        first_bytes = [(decision_id, rng.choice((0.01, 0.02, 0.02, 0.03))) for decision_id in begun]
        step_s = rng.choice((0.0, 0.001, 0.3))
        owner = "dp" if rng.random() < 0.8 else "other"
        said: list[list[Answer]] = []
        for plant in self.plants:
            plant.now += step_s
            director, now = plant.director, plant.now
            director.tokens_came([(0, 0.0001), (2, 0.2)] if step_s else [], now)
            for decision_id, ttft_s in first_bytes:
                director.first_byte(decision_id, ttft_s, now)
            director.ended_all(ended, now)
            later = [packed.answer(one.result, one.question_id, director.policy) for one in director.answers(now)]
            said.append(later + unpack_answers(pack(director.answer_all(asked, now, owner=owner))))
        assert said[0] == said[1]
        self.under_way += [answer.decision_id for answer in said[0] if answer.decision_id and answer.refusal is None]

    def incident(self) -> None:
        """Something else that happens to a fleet."""
        rng = self.rng
        worker, blocks = f"w{rng.randrange(4)}", hashes(*rng.choice(self.prompts)[: rng.randint(1, 30)])
        kind, flag = rng.randrange(12), rng.random() < 0.5
        if kind == 11:
            self.serve(rng.choice(("", "", "linear", "lightgbm")))
        policy, cancelled = rng.choice(NAMES), rng.randint(1, self.questions + 1)
        elsewhere = rng.randint(1, 4)
        for plant in self.plants:
            slot = plant.snapshot.slot_of(worker)
            assert slot is not None
            if kind == 0:
                plant.snapshot.drain(worker, flag)
            elif kind == 1:
                plant.snapshot.worker_reported(report(worker, running=3, waiting=2 * flag, kv_usage=0.4), plant.now)
            elif kind == 2 and self.exact:
                (plant.index.store if flag else plant.index.remove)(slot, blocks)
            elif kind == 3:
                plant.endpoint(worker).credit = flag
            elif kind == 4:
                plant.director.cancel("dp", cancelled, plant.now)
            elif kind == 5:
                plant.director.tick(plant.now, connected=True)
                plant.index.expire(plant.now)
            elif kind == 6 and flag:
                plant.director.set_policy(policy)
            elif kind == 8:  # another control plane has requests there, or no more
                load = plant.endpoint(worker).load
                part = Part(elsewhere, 2, 700, 350.0 * 700, 900, plant.now - 0.1, plant.now, 300, 400)
                load.foreign = Foreign((part,)) if flag else None
                load.changes += 1
            elif kind == 7 and flag:
                plant.join("w0", epoch=int(plant.now * 1000), max_num_seqs=8)
            elif kind == 9:
                plant.director.departed("other", plant.now)
            elif kind == 10:
                plant.director.arrived("other", self.claims(plant, flag), plant.now)
            for one in plant.snapshot.endpoints():
                plant.snapshot.worker_registered(one.record, plant.now)

    def serve(self, kind: str) -> None:
        """Another model from the next message on, or none."""
        served = model(kind) if kind else None
        for predicted, _ in self.rankers:
            forecaster = predicted.forecaster
            forecaster.swap(served, kind, residuals(served, forecaster.recent()) if served is not None else ())

    def claims(self, plant: Plant, some: bool) -> list[Claim]:
        """Of a data plane that comes back: what it holds, or every second one of them."""
        held = [one for one in plant.ledger if one.owner == "other"]
        claims = [Claim(one.decision_id, one.url, one.uncached_tokens, one.input_tokens, False) for one in held]
        return claims[:: 1 + some]

    def compare(self) -> None:
        general, usual = self.plants
        assert len(general.ledger) == len(usual.ledger)
        assert_alike(general.outcomes, usual.outcomes)
        for one, other in zip(*self.rankers, strict=True):
            assert one.tally == other.tally
        assert general.director._turn.rng.getstate() == usual.director._turn.rng.getstate()
        for name in ("decisions", "sheds", "ends", "input_tokens", "matched_tokens", "duplicates", "breakers_opened"):
            assert getattr(general.director.tally, name) == getattr(usual.director.tally, name), name
        assert general.self_check.ratios() == usual.self_check.ratios()
        for one, other in zip(general.snapshot.endpoints(), usual.snapshot.endpoints(), strict=True):
            assert (one.requests, one.failures, one.credit) == (other.requests, other.failures, other.credit)
            assert one.breaker.view(general.now) == other.breaker.view(usual.now)
            assert _load(one) == _load(other)
            for rate in one.rates.__slots__:
                assert getattr(one.rates, rate) == getattr(other.rates, rate), rate
            guesses, others = general.index._slots[one.slot].guesses, usual.index._slots[other.slot].guesses
            assert list(guesses.made_at.items()) == list(others.made_at.items())
        owners, others = general.ledger._owners, usual.ledger._owners
        assert {name: sorted(owner.held) for name, owner in owners.items() if owner.held} == {
            name: sorted(owner.held) for name, owner in others.items() if owner.held
        }
        taught, also = [
            [(one.decision_id, features(one.candidate), ttft_s) for one, ttft_s, _ in plant.director.ends._samples]
            for plant in self.plants
        ]
        assert taught == also
        for decision_id in range(1, general.director._next_id):
            explained = [plant.ring.get(decision_id) for plant in self.plants]
            assert explained[0] is not None
            assert explained[1] is not None
            assert_explained_alike(wire.explanation(explained[0]), wire.explanation(explained[1]))


def assert_alike(some: Sequence[Outcome], others: Sequence[Outcome]) -> None:
    """Records; what was predicted to the last bits but some."""
    assert len(some) == len(others)
    for one, other in zip(some, others, strict=True):
        predicted = {name: pytest.approx(getattr(one, name), rel=SAME) for name in ("predicted_ttft_s", "predicted_p90_s")}
        assert {name: getattr(other, name) for name in predicted} == predicted
        exact = dict.fromkeys(predicted, 0.0)
        assert msgspec.structs.replace(one, **exact) == msgspec.structs.replace(other, **exact)


def assert_explained_alike(one: pb.Explanation, other: pb.Explanation) -> None:
    for first, second in zip(one.candidates, other.candidates, strict=True):
        for name in ("predicted_ttft_s", "predicted_p90_s"):
            assert getattr(second, name) == pytest.approx(getattr(first, name), rel=SAME)
            second.ClearField(name)  # type: ignore[arg-type]
            first.ClearField(name)  # type: ignore[arg-type]
    assert one == other


def _load(one: object) -> object:
    load = one.load  # type: ignore[attr-defined]
    numbers = load.active, load.no_first_byte, load.prefill_tokens, load.prefill_pairs, load.context_tokens
    moments = load.prefill_since if load.queue else 0.0, load.moved_at if load.active else 0.0, load.token_at
    return numbers, moments, list(load.queue), load.ends


def test_every_policy_that_predicts_has_a_short_way() -> None:
    assert {"linear_online", "predictive", "hierarchical"} < set(SHORT)


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("policy", SHORT)
def test_both_ways_say_and_do_the_same(policy: str, exact: bool) -> None:
    pair = Pair(policy, seed=sum(policy.encode()), exact=exact)
    for number in range(MESSAGES):
        pair.message()
        if number % 10 == 9:
            pair.incident()
            if pair.rng.random() < 0.5:
                for plant in pair.plants:
                    plant.director.set_policy(policy)
    pair.compare()
    usual = pair.plants[1].ring
    short = sum(isinstance(entry, Placed) for entry in usual._entries)
    assert short > len(usual) / 10, f"{short} of {len(usual)} decisions took the short way"


@pytest.mark.parametrize("policy", SHORT)
def test_and_where_one_worker_has_far_more_to_do_than_the_others(policy: str) -> None:
    pair = Pair(policy, seed=7, exact=False, active_max=300)
    for _ in range(MESSAGES // 4):
        pair.message()  # so that it holds something
    before = pair.plants[1].director._next_id
    for _ in range(MESSAGES // 2):
        for plant in pair.plants:
            plant.snapshot.worker_reported(report("w0", running=120), plant.now)
        pair.message()
    pair.compare()
    placed = [entry for entry in pair.plants[1].ring._entries if isinstance(entry, Placed)]
    assert "w0" in [entry.row.endpoint.worker for entry in placed if entry.decision_id < before]
    chosen = [entry.row.endpoint.worker for entry in placed if entry.decision_id >= before]
    assert len(chosen) > MESSAGES // 4
    if policy == "cache_aware":
        assert "w0" not in chosen, "it is out of balance, whatever it holds"


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 1 << 32),
    policy=st.sampled_from(SHORT),
    exact=st.booleans(),
    active_max=st.sampled_from([2, 6, 100]),
    most=st.sampled_from([1, 4, TOGETHER_MAX + 16]),
)
def test_whatever_is_asked_and_whatever_happens_meanwhile(
    seed: int, policy: str, exact: bool, active_max: int, most: int
) -> None:
    pair = Pair(policy, seed, exact=exact, active_max=active_max, most=most)
    for _ in range(25):
        pair.message()
        if pair.rng.random() < 0.3:
            pair.incident()
    pair.compare()


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("policy", ["linear_online", "predictive", "hierarchical"])
def test_and_where_a_policy_learns_what_it_predicts_by(policy: str, exact: bool) -> None:
    """A model comes, another, and none is left; first tokens teach with every tick."""
    pair = Pair(policy, seed=11, exact=exact, active_max=30)
    for number in range(MESSAGES):
        if number % 50 == 10:
            pair.serve(("lightgbm", "", "linear", "lightgbm", "")[number // 50])
        pair.message()
        if number % 5 == 4:
            for plant in pair.plants:
                plant.director.tick(plant.now, connected=True)
                plant.snapshot.worker_reported(report("w2", running=number % 7), plant.now)
    pair.compare()
    placed = [entry for entry in pair.plants[1].ring._entries if isinstance(entry, Placed)]
    told = {entry.fell_back for entry in placed}
    assert len({entry.row.at for entry in placed}) == 4
    if policy == "linear_online":
        assert told == {""}
    elif policy == "hierarchical":
        assert told == {ranking.UNLEARNED, ranking.OUTSIDE, ""}
    else:
        assert told >= {ranking.NO_MODEL, ranking.UNSTEADY, ""}


@pytest.mark.parametrize("waits", [1, 2000])
def test_before_a_fleet_has_shown_its_speed_the_model_need_not_be_asked(waits: int) -> None:
    """And is, where a prompt might wait for so long that a p90 is cut to what is served."""
    pair = Pair("predictive", seed=1, exact=False, active_max=1000)
    pair.serve("lightgbm")
    for message in range(3):
        asked = []
        for number in range(1, 20):
            tokens = 3 * BLOCK + number % 7 if number % 5 else 3500 * waits
            asked.append(Asked(100 * message + number, Request(model=MODEL, input_tokens=min(tokens, 4000), request_id="r")))
        said = []
        for plant in pair.plants:
            plant.now += 0.1
            if waits > 1:
                load = plant.endpoint("w1").load
                load.foreign = Foreign((Part(9, 1, 3000 * waits, 1e6 * waits, 900, plant.now, plant.now, 3000, 3000),))
                load.changes += 1
            said.append(unpack_answers(pack(plant.director.answer_all(asked, plant.now, owner="dp"))))
        assert said[0] == said[1]
    placed = [entry for entry in pair.plants[1].ring._entries if isinstance(entry, Foretold)]
    assert {entry.fell_back for entry in placed} == {ranking.WIDE}
    unseen, count = sum([entry.judged[0] != entry.judged[0] for entry in placed]), len(placed)
    assert unseen == (count if waits == 1 else 0)
    pair.under_way = [one.decision_id for one in placed]
    pair.message()
    pair.compare()


@pytest.mark.parametrize(
    ("ratio_max", "shown", "asked_for"),
    [(1.001, True, True), (1e4, True, False), (1e4, False, False), (25.0, False, True), (1.0, False, True)],
)
def test_p90s_are_asked_for_where_one_could_be_too_wide(ratio_max: float, shown: bool, asked_for: bool) -> None:
    """shown: endpoints have shown their speed; if not, this model's p90 is 30 times its median at least. Whether or not one
    was asked for, records, reasons and explanations have it."""
    pair = Pair("predictive", seed=7, exact=False, active_max=1000, ratio_max=ratio_max)
    pair.serve("lightgbm")
    for plant in pair.plants:
        for one in plant.snapshot.endpoints():
            one.rates.prefill_tokens_per_s = (3000.0 + 500.0 * one.slot) * shown
        load = plant.endpoint("w1").load
        load.foreign = Foreign((Part(9, 1, 5_000_000, 1e9, 900, plant.now, plant.now, 3000, 3000),))
        load.changes += 1
    for message in range(4):
        asked = [
            Asked(100 * message + number, Request(model=MODEL, input_tokens=50 + 37 * (number % 9), request_id="r"))
            for number in range(1, 20)
        ]
        said = []
        for plant in pair.plants:
            plant.now += 0.1
            said.append(unpack_answers(pack(plant.director.answer_all(asked, plant.now, owner="dp"))))
        assert said[0] == said[1]
        pair.under_way += [answer.decision_id for answer in said[0]]
        pair.message()
    placed = [entry for entry in pair.plants[1].ring._entries if isinstance(entry, Foretold)]
    seen = [entry.judged[1] == entry.judged[1] for entry in placed if entry.judged[0] == entry.judged[0]]
    assert set(seen) <= {asked_for}
    assert all(0.0 < entry.predicted_ttft_s <= entry.predicted_p90_s for entry in placed)
    told = {entry.fell_back for entry in placed}
    assert (ranking.WIDE in told) == asked_for
    pair.compare()


@pytest.mark.parametrize("policy", ["lmetric", "linear_online", "predictive"])
@pytest.mark.parametrize("lengths", [1, 3])
def test_a_row_made_later_is_the_row_as_it_was(policy: str, lengths: int) -> None:
    """Of each decision of one message, whatever came after it; also where the next one asks for as much as the one before."""
    pair = Pair(policy, seed=5, exact=False, active_max=1000, most=1)
    pair.serve("lightgbm")
    asked = []
    for number in range(1, 40):
        tokens, bound = 3 * BLOCK + 5 + number % lengths, number // 20
        request = Request(model=MODEL, input_tokens=tokens, max_tokens=bound, request_id="r")
        asked.append(Asked(number, request, ((BLOCK, hashes(number if number % 5 else 1, 2, 3).tobytes()),)))
    for plant in pair.plants:
        plant.director.answer_all(asked, plant.now, owner="dp")
    general, usual = ([entry.candidate for entry in _decisions(plant)] for plant in pair.plants)
    assert all(isinstance(entry, Placed) for entry in pair.plants[1].ring._entries)
    before = [features(row) for row in usual]
    assert before == [features(row) for row in general]
    for plant in pair.plants:
        plant.now += 1.0
        for number in range(1, 30):
            plant.director.ended_all([Ended(decision_id=number, end=End.COMPLETE)], plant.now)
        plant.director.answer_all(asked[:5], plant.now, owner="dp")
    assert [features(entry.candidate) for entry in _decisions(pair.plants[1])[: len(before)]] == before
    pair.compare()


@pytest.mark.parametrize(
    ("workers", "questions", "short"),
    [(4, 1, True), (5, 1, False), (5, 2, True), (ALONE_MAX, 8, True), (ALONE_MAX + 1, 8, False)],
)
def test_a_model_takes_the_short_way_where_that_is_shorter(workers: int, questions: int, short: bool) -> None:
    pair = Pair("predictive", seed=3, exact=False, active_max=1000)
    for number in range(4, workers):
        pair.join(f"w{number}")
    pair.serve("lightgbm")
    asked = [Asked(number, Request(model=MODEL, input_tokens=50 + number, request_id="r")) for number in range(questions)]
    said = [plant.director.answer_all(asked, plant.now, owner="dp") for plant in pair.plants]
    assert unpack_answers(pack(said[0])) == unpack_answers(pack(said[1]))
    assert {isinstance(entry, Placed) for entry in pair.plants[1].ring._entries} == {short}
    pair.compare()


@pytest.mark.parametrize("policy", ["lmetric", "linear_online", "predictive"])
def test_questions_for_two_fleets_in_turn(policy: str) -> None:
    """In one message: none of them sees rows of the other fleet."""
    pair = Pair(policy, seed=3, exact=False, active_max=1000)
    for worker in ("x0", "x1"):
        pair.join(worker, models=("other-model",))
    pair.serve("lightgbm")
    for plant in pair.plants:
        for one in plant.snapshot.endpoints():
            one.rates.prefill_tokens_per_s = 3000.0 + 500.0 * one.slot
    models = [MODEL, "other-model", "other-model", MODEL, MODEL, "other-model"] * 3
    asked = [
        Asked(number, Request(model=name, input_tokens=50 + number % 2, request_id="r")) for number, name in enumerate(models)
    ]
    said = [unpack_answers(pack(plant.director.answer_all(asked, plant.now, owner="dp"))) for plant in pair.plants]
    assert said[0] == said[1]
    assert {isinstance(entry, Placed) for entry in pair.plants[1].ring._entries} == {True}
    pair.compare()


def _decisions(plant: Plant) -> list[Decided]:
    return [entry.result if isinstance(entry, Trace) else entry for entry in plant.ring._entries]  # type: ignore[misc]
