"""Parts of a control plane in virtual time, put together the way `__main__` does, for the tests of this folder."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Collection
from math import inf
from random import Random

from contract.keyspace import EngineReport, EngineState, ModelCard, WorkerRecord
from contract.outcome import End, Outcome
from controlplane.admission import WaitingRoom
from controlplane.breaker import Breaker, BreakerBounds
from controlplane.director import Director
from controlplane.endpoint import Candidate, Endpoint, Standing
from controlplane.explain import DecisionRing
from controlplane.index_state import IndexState
from controlplane.ledger import Ledger, Load
from controlplane.prefix_index import PrefixIndex
from controlplane.profiles import Profile, build
from controlplane.question import Decision, Ended, Question, Request, Shed
from controlplane.queue_plan import Beginning
from controlplane.rankers import LeastPredicted
from controlplane.rates import Rates
from controlplane.replicas import Replicas
from controlplane.self_check import SelfCheck
from controlplane.snapshot import FleetSnapshot

MODEL = "m"
BLOCK = 16
UNIX = 1_700_000_000.0


def record(worker: str = "w0", *, epoch: int = 1, models: tuple[str, ...] = (MODEL,), **fields: object) -> WorkerRecord:
    defaults: dict[str, object] = {
        "url": f"http://{worker}:8000",
        "block_size": BLOCK,
        "cache_blocks": 1000,
        "sends_kv_events": True,
        "accelerator": "cpu",
        "tokenizer": "tiny",
    }
    cards = tuple(ModelCard(name, models[0], name, 4096) for name in models)
    return WorkerRecord(worker=worker, epoch=epoch, models=cards, **(defaults | fields))  # type: ignore[arg-type]


def report(worker: str = "w0", *, epoch: int = 1, state: EngineState = EngineState.READY, **fields: object) -> EngineReport:
    return EngineReport(worker=worker, epoch=epoch, sequence=1, state=state, scrape_age_s=0.0, **fields)  # type: ignore[arg-type]


def endpoint(slot: int = 0, **fields: object) -> Endpoint:
    worker = f"w{slot}"
    made = Endpoint(
        slot=slot, record=record(worker), load=Load(), breaker=Breaker(BreakerBounds()), rates=Rates(), last_seen=0.0
    )
    for name, value in fields.items():
        setattr(made, name, value)
    return made


def candidate(
    slot: int = 0,
    *,
    input_tokens: int = 100,
    matched_tokens: int = 0,
    max_tokens: int = 0,
    active: int = 0,
    admits: bool = True,
    prefill_wait_s: float | None = None,
    report_age_s: float = 0.0,
    begins_s: float = 0.0,
    step_age_s: float | None = None,
    **fields: object,
) -> Candidate:
    """As it is at 0."""
    standing: dict[str, object] = {
        "endpoint": endpoint(slot),
        "slot": slot,
        "changes": 0,
        "active": active,
        "no_first_byte": 0,
        "prefill_tokens": 0,
        "prefill_pairs": 0.0,
        "queued_since": inf if prefill_wait_s is None else -prefill_wait_s,
        "moved_at": inf if step_age_s is None else -step_age_s,
        "head_tokens": 0,
        "context_tokens": 0,
        "running": 0,
        "waiting": 0,
        "kv_usage": 0.0,
        "reported_at": -report_age_s,
        "prefill_tokens_per_s": 0.0,
        "decode_itl_s": 0.0,
        "ttft_ewma_s": 0.0,
        "cache_tokens": 16_000,
        "seats": 0,
        "hold_s": 0.0,
        "step_s": 0.0,
        "head_input_tokens": 0,
        "planned": Beginning(0.0, begins_s),
        "batch": active,
    }
    made = Standing(**(standing | fields))  # type: ignore[arg-type]
    return Candidate(made, input_tokens, matched_tokens, input_tokens - matched_tokens, max_tokens, 0.0, admits)


def hashes(*blocks: int) -> array[int]:
    return array("Q", blocks)


def question(*blocks: int, model: str = MODEL, tokens: int | None = None, **fields: object) -> Question:
    """A prompt of these blocks and half a block more."""
    length = BLOCK * len(blocks) + BLOCK // 2 if tokens is None else tokens
    request = Request(model=model, input_tokens=length, **fields)  # type: ignore[arg-type]
    return Question(request, {BLOCK: hashes(*blocks)})


class Plant:
    """Every core of a control plane on a clock that the test moves."""

    def __init__(
        self,
        workers: int = 2,
        *,
        policy: str = "lmetric",
        active_max: int = 100,
        waiting_max: int = 100,
        wait_s_max: float = 5.0,
        grace_s_max: float = 10.0,
        seed: int = 1,
        profiles: dict[str, Profile] | None = None,
        predicted: LeastPredicted | None = None,
        settle_s: float = 0.0,
        director: type[Director] = Director,
    ) -> None:
        self.now = 100.0
        self.ledger = Ledger(grace_s_max=grace_s_max)
        self.snapshot = FleetSnapshot(self.ledger, BreakerBounds())
        self.index = PrefixIndex()
        self.waiting = WaitingRoom(waiting_max=waiting_max, wait_s_max=wait_s_max)
        self.ring = DecisionRing()
        self.self_check = SelfCheck()
        self.outcomes: list[Outcome] = []
        self.director = director(
            snapshot=self.snapshot,
            ledger=self.ledger,
            index=self.index,
            waiting=self.waiting,
            ring=self.ring,
            self_check=self.self_check,
            profiles=build(active_max) if profiles is None else profiles,
            policy=policy,
            rng=Random(seed),
            record=self.outcomes.append,
            unix_offset_s=UNIX,
            predicted=predicted,
            settle_s=settle_s,
        )
        self.director.warm = True
        for number in range(workers):
            self.join(f"w{number}")

    def join(self, worker: str, **fields: object) -> int:
        slot = self.snapshot.worker_registered(record(worker, **fields), self.now)  # type: ignore[arg-type]
        self.index.attach(slot, capacity_blocks=1000, exact=True)
        self.index.set_state(slot, IndexState.EXACT)
        return slot

    def ask(self, asked: Question, *, owner: str = "dp", question_id: int = 1) -> Decision | Shed | None:
        return self.director.ask(asked, self.now, owner=owner, question_id=question_id)

    def place(self, asked: Question | None = None, *, owner: str = "dp", question_id: int = 1) -> Decision:
        """A question that must be placed."""
        result = self.ask(question(1, 2) if asked is None else asked, owner=owner, question_id=question_id)
        assert isinstance(result, Decision), result
        return result

    def end(self, decision: Decision, end: End = End.COMPLETE, **fields: object) -> bool:
        return self.director.ended(Ended(decision_id=decision.decision_id, end=end, **fields), self.now)  # type: ignore[arg-type]

    def endpoint(self, worker: str = "w0") -> Endpoint:
        slot = self.snapshot.slot_of(worker)
        assert slot is not None
        found = self.snapshot.at_slot(slot)
        assert found is not None
        return found

    def pass_time(self, seconds: float, *, step_s: float = 0.25, silent: tuple[str, ...] = ()) -> None:
        """Ticks and reports as they come, from all workers but the silent ones."""
        end = self.now + seconds
        while self.now < end - 1e-9:
            self.now = min(end, self.now + step_s)
            for one in self.snapshot.endpoints():
                if one.worker not in silent:
                    self.snapshot.worker_reported(report(one.worker, epoch=one.record.epoch), self.now)
            self.director.tick(self.now, connected=True)


def replicas_of(plant: Plant, name: str, owners: Callable[[], Collection[str]]) -> Replicas:
    """What a control plane with these cores tells others, and hears of them. owners: whose streams are open."""
    return Replicas(
        name,
        director=plant.director,
        snapshot=plant.snapshot,
        ledger=plant.ledger,
        index=plant.index,
        self_check=plant.self_check,
        owners=owners,
    )
