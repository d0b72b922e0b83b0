"""Predicted TTFT of every candidate of a decision: the feature rows, the model, and what its workers taught us since.

The rows of all candidates are filled in one go (see feature_rows), the model scores them in one call, and each worker's
correction is applied to its own. What comes back is a `Forecast`, in the order of the candidates. A few candidates take a
shorter way, where the model has one (see few_rows). Several decisions of one
moment are scored in one call ahead of the first (`foresee`): most of what a call costs, it costs for any number of rows. A
decision changes the row of the worker it chose, and that row is scored again, so that every forecast is what it would have been
alone. The truth comes a few times a second, in one batch over all requests that got their first token (`learn`). Pure; one
thread.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from operator import mul
from typing import Protocol

import msgspec
import numpy as np

from contract.keyspace import WorkerRecord
from controlplane.corrections import Correction, Corrections
from controlplane.endpoint import Candidate, Endpoint, Standing
from controlplane.feature_rows import WIDTH, Floats, Rows
from controlplane.few_rows import FEW_MAX, Still, still, write
from prediction.few import Few, Single
from prediction.predictor import Calibrated

ROW_BYTES = 8 * WIDTH
ALONE_MAX = 16
"""Candidates of a decision that is never scored together with others; among more, a call for several of them pays."""
RECENT_MAX = 1_024
"""First tokens remembered, to learn the corrections of a new model from."""


class Predictor(Protocol):
    """As prediction.predictor has it; `learn` of online models is their ranker's business."""

    def predict(self, rows: Floats) -> tuple[Floats, Floats]: ...


class Sample(msgspec.Struct, frozen=True, gc=False):
    """A first token: where and in which state its request was placed, what it took, and whose it is."""

    candidate: Candidate
    ttft_s: float
    record: WorkerRecord

    @property
    def current(self) -> bool:
        """Whether the endpoint is still the run, at the address, that this tells of."""
        now = self.candidate.endpoint.record
        return now is self.record or (now.epoch == self.record.epoch and now.url == self.record.url)


class Forecast(msgspec.Struct, frozen=True, gc=False):
    """Of the candidates of one decision, in their order; seconds, corrections included."""

    model_id: str
    p50_s: list[float]
    p90_s: list[float]
    corrections: list[Correction]
    factors: list[float]  # of the corrections, as they were


class _Known:
    """An endpoint's correction, and its latest standing as `few_rows` has it."""

    __slots__ = ("correction", "record", "standing", "still")

    def __init__(self, record: WorkerRecord, correction: Correction) -> None:
        self.record = record
        self.correction = correction
        self.standing: Standing | None = None
        self.still: Still | None = None


class Forecaster:
    """A predictor and its corrections. Without a predictor it forecasts nothing."""

    def __init__(self, predictor: Predictor | None = None, model_id: str = "") -> None:
        self._predictor = predictor
        self._few, self._single = _short(predictor)
        self.model_id = model_id
        self._corrections = Corrections()
        self._known: dict[Endpoint, _Known] = {}
        self._rows = Rows()
        self._foreseen: dict[bytes, tuple[float, float]] = {}
        self._recent: deque[Sample] = deque(maxlen=RECENT_MAX)

    @property
    def serving(self) -> bool:
        return self._predictor is not None

    # ------------------------------------------------------------------------------------------------------ decide

    @property
    def alone_max(self) -> int:
        """Decisions among so many candidates are scored each by itself: together they would cost more."""
        return 0 if self._few is None else ALONE_MAX

    def single(self, count: int) -> tuple[Single, Predictor] | None:
        """What answers row by row, and the model that it is of; None: none, or not for so many rows."""
        if self._single is None or self._predictor is None or count > ALONE_MAX:
            return None
        return self._single, self._predictor

    def forecast(self, candidates: Sequence[Candidate]) -> Forecast | None:
        """candidates: never none. None: no model, or one that answers with something that is no time."""
        predictor = self._predictor
        if predictor is None:
            return None
        p50: Sequence[float]
        p90: Sequence[float]
        if self._few is not None and len(candidates) <= (ALONE_MAX if self._foreseen else FEW_MAX):
            p50, p90, corrections = self._of_few(self._few, candidates)
        else:
            p50, p90 = (
                self._foretold(predictor, candidates) if self._foreseen else _lists(predictor, self._rows.of_one(candidates))
            )
            corrections = [self._of(candidate.standing.endpoint).correction for candidate in candidates]
        factors = [one.factor for one in corrections]
        p50_s = list(map(mul, p50, factors))
        p90_s = list(map(mul, p90, factors))
        if not math.isfinite(sum(p50_s) + sum(p90_s)) or min(p50_s) <= 0.0:
            return None
        return Forecast(self.model_id, p50_s, p90_s, corrections, factors)

    def _of_few(self, few: Few, candidates: Sequence[Candidate]) -> tuple[list[float], list[float], list[Correction]]:
        """Uncorrected seconds, and the corrections."""
        known = self._known
        starts: list[float] = []
        unknown: list[bool] = []
        corrections: list[Correction] = []
        for candidate in candidates:
            standing = candidate.standing
            endpoint = standing.endpoint
            entry = known.get(endpoint)
            if entry is None or entry.record is not endpoint.record:
                entry = self._of(endpoint)
            there = entry.still
            if there is None or entry.standing is not standing:
                entry.standing = standing
                there = entry.still = still(standing)
            starts.append(write(few, len(starts), candidate, there))
            unknown.append(there.unknown)
            corrections.append(entry.correction)
        return *few.predict(starts, unknown), corrections

    def foresee(self, candidates: Sequence[Candidate]) -> None:
        """Scores the rows of several decisions in one call. Forecasts of equal rows take what was found, until the next call
        of this, with nobody to end it; rows that are not among them are scored as ever."""
        self._foreseen = {}
        if self._predictor is None or not candidates:
            return
        rows = list(dict.fromkeys(_packed(self._rows.of(candidates))))
        p50, p90 = _lists(self._predictor, _matrix(rows))
        self._foreseen = dict(zip(rows, zip(p50, p90, strict=True), strict=True))

    def _foretold(self, predictor: Predictor, candidates: Sequence[Candidate]) -> tuple[Sequence[float], Sequence[float]]:
        rows = _packed(self._rows.of_one(candidates))
        known = self._foreseen
        if missing := [row for row in rows if row not in known]:
            p50, p90 = _lists(predictor, _matrix(missing))
            known.update(zip(missing, zip(p50, p90, strict=True), strict=True))
        found = [known[row] for row in rows]
        return [p50 for p50, _ in found], [p90 for _, p90 in found]

    def _of(self, endpoint: Endpoint) -> _Known:
        known = self._known.get(endpoint)
        if known is not None and known.record is endpoint.record:
            return known
        record = endpoint.record
        root = record.models[0].root if record.models else ""
        correction = self._corrections.of(endpoint, (record.epoch, record.url), (record.accelerator, root))
        known = self._known[endpoint] = _Known(record, correction)
        return known

    def correction(self, endpoint: Endpoint) -> Correction:
        """The living one."""
        return self._of(endpoint).correction

    def factor(self, endpoint: Endpoint) -> float:
        """What its predictions are multiplied by."""
        return self._of(endpoint).correction.factor

    # ------------------------------------------------------------------------------------------------------- learn

    def learn(self, samples: Sequence[Sample]) -> None:
        """First tokens since the last call, in their order."""
        self._recent.extend(samples)
        if self._predictor is not None:
            self._correct(residuals(self._predictor, samples))

    def _correct(self, known: Sequence[tuple[Sample, float]]) -> None:
        for sample, residual in known:
            if sample.current:
                self._of(sample.candidate.endpoint).correction.add(residual)

    def recent(self) -> list[Sample]:
        """The latest first tokens, oldest first: what a new model's corrections are learned from (`residuals`, `swap`)."""
        return list(self._recent)

    def swap(self, predictor: Predictor | None, model_id: str, replay: Sequence[tuple[Sample, float]] = ()) -> None:
        """Another model from the next decision on. replay: recent samples with their log residuals under it, oldest first:
        the corrections of the model before are dropped, and learned anew from these."""
        self._predictor = predictor
        self._few, self._single = _short(predictor)
        self.model_id = model_id
        self._foreseen = {}
        self._corrections.clear()
        self._known.clear()
        self._correct(replay)

    def forget(self, endpoint: Endpoint) -> None:
        """It is gone for good."""
        self._known.pop(endpoint, None)
        self._corrections.forget(endpoint)
        for _ in range(len(self._recent)):
            sample = self._recent.popleft()
            if sample.candidate.endpoint is not endpoint:
                self._recent.append(sample)

    # ---------------------------------------------------------------------------------------------------- for metrics

    def corrections(self) -> dict[str, Correction]:
        """By worker, of those that were forecast."""
        return {endpoint.name: known.correction for endpoint, known in self._known.items()}


def _short(predictor: Predictor | None) -> tuple[Few | None, Single | None]:
    """Its ways for few rows, where it has them."""
    if not isinstance(predictor, Calibrated):
        return None, None
    return predictor.few(FEW_MAX), predictor.single(ALONE_MAX)


def predicted(predictor: Predictor, candidates: Sequence[Candidate]) -> tuple[list[float], list[float]]:
    """Median and p90 of each of one question, seconds, not corrected."""
    return _lists(predictor, Rows().of_one(candidates))


def _lists(predictor: Predictor, rows: Floats) -> tuple[list[float], list[float]]:
    p50, p90 = predictor.predict(rows)
    return p50.tolist(), p90.tolist()


def _packed(rows: Floats) -> list[bytes]:
    """Each row as bytes."""
    data = rows.tobytes()
    return [data[at : at + ROW_BYTES] for at in range(0, len(data), ROW_BYTES)]


def _matrix(rows: Sequence[bytes]) -> Floats:
    """Packed rows to (n, len(FEATURES)), read-only."""
    return np.frombuffer(b"".join(rows)).reshape(len(rows), WIDTH)


def residuals(predictor: Predictor, samples: Sequence[Sample]) -> list[tuple[Sample, float]]:
    """For `swap`, in any thread: each sample with log(TTFT / median) under this predictor; nan where that is no number."""
    if not samples:
        return []
    p50, _ = predictor.predict(Rows().of([sample.candidate for sample in samples]))
    return [
        (sample, math.log(sample.ttft_s / seconds) if sample.ttft_s > 0 and 0 < seconds < math.inf else math.nan)
        for sample, seconds in zip(samples, p50.tolist(), strict=True)
    ]
