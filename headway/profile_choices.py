"""The same request at every worker: what each of them would have been, in virtual time.

A data set of what happened has one worker's TTFT for each request: the one that was chosen. How often a model puts the truly
fastest first can only be asked of requests whose TTFT is known everywhere. In a simulation it can be had: at a drawn
decision the process is forked, once for each worker; the copy sends the request there, lives on (whatever arrives later
arrives there, too) until its first token, says when that came, and ends. The run itself goes on as if nothing had been asked.
"""

from __future__ import annotations

import contextlib
import gc
import os
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from typing import NoReturn

import pyarrow as pa

from contract.features import FEATURES, VERSION
from controlplane.endpoint import Candidate, Endpoint, features
from controlplane.ledger import Ledger, Reservation
from controlplane.predictor import Sample
from controlplane.profiles import Profile
from controlplane.ranking import Ranking
from headway.errors import UsageError
from loadgen.sweep import Step
from prediction import choices, dataset
from runtime import rng as streams
from simulation.control import Parts

_SECONDS = struct.Struct("d")
FILE = "choices.parquet"


class _Telling(Ledger):
    """Tells of first bytes."""

    def __init__(self, tell: Callable[[Reservation, float], None]) -> None:
        super().__init__()
        self._tell = tell

    def first_byte(self, decision_id: int, now: float) -> Reservation | None:
        reservation = super().first_byte(decision_id, now)
        if reservation is not None:
            self._tell(reservation, now)
        return reservation


@dataclass(eq=False)
class Chooser:
    """A ranker that leaves every decision to its profile's scorers, and asks of some what the others would have been.

    share: of the decisions, drawn; skipped: of the first ones, which warm the fleet up, none; workers: only decisions among all
    of them are asked of."""

    workers: int
    share: float
    rng: Random
    skipped: int
    found: list[tuple[Candidate, float]] = field(default_factory=list)
    """Every candidate of every choice, in their order, with its TTFT, seconds."""
    _forced: Candidate | None = None
    """In a copy: where the request goes."""
    _pipe: int = -1

    def parts(self, parts: Parts, policy: str) -> Parts:
        """With itself in that policy. UsageError: it has a ranker of its own."""

        def profiles() -> dict[str, Profile]:
            built = parts.profiles()
            if built[policy].ranker is not None:
                raise UsageError(f"profile: --choices: {policy} ranks by itself; take a policy that scores, such as lmetric")
            return built | {policy: replace(built[policy], ranker=self)}

        return replace(parts, profiles=profiles, ledger=lambda: _Telling(self._first_byte))

    @contextlib.contextmanager
    def contained(self) -> Iterator[None]:
        """Around a run: no copy of this process comes out of it."""
        try:
            yield
        finally:
            if self._forced is not None:
                os._exit(1)

    # ------------------------------------------------------------------------------------------------------- as a ranker

    def rank(self, candidates: Sequence[Candidate]) -> Ranking:
        self.skipped -= 1
        if self.skipped >= 0 or self._forced is not None or len(candidates) < self.workers or self.rng.random() >= self.share:
            return Ranking()
        times = []
        for place, candidate in enumerate(candidates):
            ttft_s = self._asked(candidate)
            if ttft_s is None:
                return Ranking([float(other != place) for other in range(len(candidates))])
            times.append(ttft_s)
        if min(times) > 0:
            self.found += zip(candidates, times, strict=True)
        return Ranking()

    def learn(self, samples: Sequence[Sample]) -> None: ...

    def forget(self, endpoint: Endpoint) -> None: ...

    # ------------------------------------------------------------------------------------------------------------- inside

    def _asked(self, candidate: Candidate) -> float | None:
        """The TTFT there, 0 where its first token never came. None: this is the copy, in which the request is to go there."""
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            gc.disable()  # a collection would touch, and so copy, all that is shared
            os.close(read)
            self._forced, self._pipe = candidate, write
            return None
        os.close(write)
        said = os.read(read, _SECONDS.size)
        os.close(read)
        os.waitpid(child, 0)
        return float(_SECONDS.unpack(said)[0]) if len(said) == _SECONDS.size else 0.0

    def _first_byte(self, reservation: Reservation, now: float) -> None:
        decision = reservation.decision
        if self._forced is not None and decision is not None and decision.candidate is self._forced:
            self._say(now - reservation.reserved_at)

    def _say(self, ttft_s: float) -> NoReturn:
        os.write(self._pipe, _SECONDS.pack(ttft_s))
        os._exit(0)


@dataclass
class Choices:
    """Of a whole profile. a_step: decisions to ask of, about, in each step; directory: of the run."""

    a_step: int
    directory: Path

    def chooser(self, step: Step, *, workers: int, skipped: int) -> Chooser:
        share = min(1.0, self.a_step / max(1, step.requests))
        return Chooser(workers, share, streams.stream(step.seed, "choices"), skipped)

    def keep(self, step: Step, chooser: Chooser) -> None:
        """Of one step. OSError."""
        parts = self.directory / "choices"
        parts.mkdir(parents=True, exist_ok=True)
        if chooser.found:
            dataset.write(_table(step, chooser), parts / f"{step.index:05}.parquet")

    def finish(self) -> int:
        """Writes choices.parquet of all steps; how many choices are in it. OSError, DatasetError: there are none."""
        made = choices.read(self.directory / "choices")
        dataset.write(made.table, self.directory / FILE)
        return len(made)


def _table(step: Step, chooser: Chooser) -> pa.Table:
    """In prediction.choices.SCHEMA."""
    found, workers = chooser.found, chooser.workers
    rows = [features(candidate) for candidate, _ in found]
    columns = [pa.array([row[place] for row in rows], pa.float64()) for place in range(len(FEATURES))]
    first = step.index << 20
    return pa.Table.from_arrays(
        [
            *columns,
            pa.array([first + place // workers for place in range(len(found))], pa.int64()),
            pa.array([candidate.endpoint.worker for candidate, _ in found], pa.string()),
            pa.array([ttft_s for _, ttft_s in found], pa.float64()),
            pa.array([step.level] * len(found), pa.float64()),
            pa.array([VERSION] * len(found), pa.int32()),
        ],
        schema=choices.SCHEMA,
    )
