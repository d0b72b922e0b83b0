"""Small workloads that end within a second, and broken parts that the checkers have to notice."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import replace
from random import Random

from controlplane import picker, profiles
from controlplane.endpoint import Candidate
from controlplane.ledger import Ledger, Reservation
from controlplane.picker import Turn
from controlplane.prefix_index import BlockChange, PrefixIndex
from controlplane.profiles import Profile
from loadgen.rows import Row, own_blocks
from loadgen.workload import Shape
from simulation import faults
from simulation.faults import Fault
from simulation.workload import Job, jobs
from simulation.world import Setup

SHAPE = Shape(model="tiny")


def chats(count: int, *, seed: int = 0, rate: float = 8.0) -> list[Job]:
    """Prompts of 64 to 1,500 tokens in families that share their beginnings, answers of 1 to 60 tokens."""
    rng = Random(seed)
    rows = []
    for number in range(count):
        family = (range(100 * rng.randrange(6), 100 * rng.randrange(6) + 2),)
        shared = tuple(span for span in family if span) if rng.random() < 0.8 else ()
        tokens = rng.randint(64, 1_500)
        shared = tuple(range(span.start, span.start + min(len(span), tokens // 128)) for span in shared)
        blocks = own_blocks(number, tokens, 128, shared=tuple(span for span in shared if span))
        rows.append(Row(0.0, blocks, rng.randint(1, 60)))
    times = []
    at_s = 0.0
    for _ in rows:
        at_s += rng.expovariate(rate)
        times.append(at_s)
    kept, unfit = jobs(rows, iter(times), SHAPE, model_len_max=4_096)
    assert unfit == 0
    return kept


def impatient(arriving: Sequence[Job], *, every: int, leaves_s: float) -> list[Job]:
    """Every so many-th client goes away after `leaves_s`."""
    return [replace(job, leaves_s=leaves_s) if job.index % every == 0 else job for job in arriving]


def setup(policy: str = "lmetric", *, count: int = 60, seed: int = 1, workers: int = 3, plan: tuple[Fault, ...] = ()) -> Setup:
    return Setup(
        jobs=chats(count, seed=seed),
        shape=SHAPE,
        policy=policy,
        presets=("tiny-cpu",) * workers,
        seed=seed,
        faults=plan,
        deep=True,
    )


def drawn(seed: int, *, workers: int = 3, count: int = 10, duration_s: float = 8.0) -> tuple[Fault, ...]:
    return faults.draw(Random(seed), workers=workers, duration_s=duration_s, count=count)


# ------------------------------------------------------------------------------------------------------------ broken parts


class LedgerThatKeepsTokens(Ledger):
    """Forgets to refund the prefill tokens when the first byte comes."""

    def first_byte(self, decision_id: int, now: float) -> Reservation | None:
        reservation = super().first_byte(decision_id, now)
        if reservation is not None:
            self.load(reservation.url).prefill_tokens += reservation.uncached_tokens
        return reservation


class LedgerThatLeaks(Ledger):
    """Forgets every seventh release."""

    def __init__(self) -> None:
        super().__init__()
        self._released = 0

    def release(self, decision_id: int, now: float) -> Reservation | None:
        self._released += 1
        return None if self._released % 7 == 0 else super().release(decision_id, now)


class IndexThatNeverForgets(PrefixIndex):
    """Believes in every block that was ever announced."""

    def apply(self, changes: Sequence[BlockChange]) -> None:
        super().apply([replace(change, removed=array("Q")) for change in changes])


class IndexThatMissesBlocks(PrefixIndex):
    """Drops the last block of every announcement."""

    def apply(self, changes: Sequence[BlockChange]) -> None:
        super().apply([replace(change, added=change.added[:-1]) for change in changes])


def careless_profiles() -> dict[str, Profile]:
    """`lmetric` without filters: it retries where it has just failed, and sends through open breakers."""
    built = profiles.build()
    built["lmetric"] = replace(built["lmetric"], filters=())
    return built


def _first(candidates: Sequence[Candidate], totals: Sequence[float], model: str, turn: Turn) -> int:
    return min(range(len(candidates)), key=lambda position: candidates[position].slot)


def herding_profiles() -> dict[str, Profile]:
    """`random` that always draws the lowest slot."""
    built = profiles.build()
    assert built["random"].pick is picker.uniform
    built["random"] = replace(built["random"], pick=_first)
    return built
