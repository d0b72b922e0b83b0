"""From a step's outcomes to rows of the data set. Pure.

Every time and rate in a row is in the fleet's time: a fleet of emulators that runs N times faster than what it emulates is
measured with the machine's clock, and its seconds are counted N-fold (`speed`). What the router itself costs is counted N-fold
with them, and so is the age of its reports.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import msgspec
import pyarrow as pa

from contract.features import INDEX
from contract.outcome import Outcome
from loadgen import profile_columns
from loadgen.sweep import Step, bucket_of
from prediction import dataset

COLUMNS: tuple[tuple[str, pa.DataType], ...] = (
    ("run", pa.string()),
    ("step", pa.int32()),
    ("rate_rps", pa.float64()),
    ("arrived_rps", pa.float64()),
    ("level", pa.float64()),
    ("mix", pa.string()),
    ("bucket", pa.string()),
    ("overlap", pa.float64()),
    ("output_class", pa.string()),
    ("speed", pa.float64()),
    ("engine_running", pa.float64()),
    ("engine_waiting", pa.float64()),
    ("engine_kv_usage", pa.float64()),
    ("engine_preemptions", pa.float64()),
    ("engine_age_s", pa.float64()),
)
"""Beyond dataset.SCHEMA. What each says: profile_columns."""


def _described(field: pa.Field) -> pa.Field:
    unit, about = profile_columns.COLUMNS.get(field.name, ("", ""))
    return field.with_metadata({"unit": unit, "about": about})


SCHEMA: pa.Schema = pa.schema(
    [_described(field) for field in (*dataset.SCHEMA, *(pa.field(name, kind) for name, kind in COLUMNS))],
    metadata=dataset.SCHEMA.metadata,
)
SECONDS = tuple(INDEX[name] for name in INDEX if name.endswith("_s") and not name.endswith("_per_s"))
PER_SECOND = tuple(INDEX[name] for name in INDEX if name.endswith("_per_s"))
NOT_KNOWN = float("nan")
LATE_SHARE = 0.9
"""Of a step's planned rate; of few requests chance alone makes less."""


@dataclass(frozen=True, slots=True)
class Gauges:
    """What an engine's /metrics said. at_s: when, on the clock of Outcome.decided_at. Preemptions count since its start."""

    at_s: float
    running: float
    waiting: float
    kv_usage: float
    preemptions: float


@dataclass(frozen=True, slots=True)
class Played:
    """gauges: of the outcome's engine, the newest before its decision; None where there was none."""

    outcome: Outcome
    gauges: Gauges | None


def in_fleet_time(outcome: Outcome, speed: float, start_s: float) -> Outcome:
    """speed: emulated seconds a second; start_s: Unix time from which decisions are counted on."""
    if speed == 1.0:
        return outcome
    features = list(outcome.features)
    if features:
        for place in SECONDS:
            features[place] *= speed
        for place in PER_SECOND:
            features[place] /= speed
    known = {
        name: value * speed if (value := getattr(outcome, name, -1.0)) >= 0 else value
        for name in ("ttft_s", "itl_s", "e2e_s", "predicted_ttft_s", "predicted_p90_s", "snapshot_age_s")
        if hasattr(outcome, name)
    }
    decided_at = start_s + (outcome.decided_at - start_s) * speed
    return msgspec.structs.replace(outcome, features=features, decided_at=decided_at, **known)


def table(played: Iterable[Played], step: Step, *, run: str, speed: float, start_s: float) -> pa.Table:
    """The samples among them, in SCHEMA."""
    kept = [each for each in played if dataset.is_sample(each.outcome)]
    base = dataset.from_outcomes(in_fleet_time(each.outcome, speed, start_s) for each in kept)
    arrived_rps = _rate([each.outcome.decided_at * speed for each in kept])
    return with_columns(base, kept, step, run=run, speed=speed, arrived_rps=arrived_rps)


def _rate(at_s: Sequence[float]) -> float:
    """Between the first and the last; NOT_KNOWN for fewer than two moments."""
    lasted_s = max(at_s) - min(at_s) if at_s else 0.0
    return (len(at_s) - 1) / lasted_s if lasted_s > 0 else NOT_KNOWN


def with_columns(
    base: pa.Table, kept: Sequence[Played], step: Step, *, run: str, speed: float, arrived_rps: float = NOT_KNOWN
) -> pa.Table:
    """base: the rows of `kept`, in SCHEMA's first columns."""
    count = len(kept)
    values: dict[str, list[object]] = {
        "run": [run] * count,
        "step": [step.index] * count,
        "rate_rps": [step.rate_rps] * count,
        "arrived_rps": [arrived_rps] * count,
        "level": [step.level] * count,
        "mix": [step.combination.mix] * count,
        "bucket": [bucket_of(each.outcome.features[INDEX["input_tokens"]]) for each in kept],
        "overlap": [step.combination.overlap] * count,
        "output_class": [step.combination.output] * count,
        "speed": [speed] * count,
    }
    for name in ("running", "waiting", "kv_usage", "preemptions"):
        values[f"engine_{name}"] = [NOT_KNOWN if each.gauges is None else getattr(each.gauges, name) for each in kept]
    values["engine_age_s"] = [
        NOT_KNOWN if each.gauges is None else (each.outcome.decided_at - each.gauges.at_s) * speed for each in kept
    ]
    columns = [*base.columns, *(pa.array(values[name], type=kind) for name, kind in COLUMNS)]
    return pa.Table.from_arrays(columns, schema=SCHEMA)


def late_steps(rows: pa.Table) -> int:
    """How many steps of a data set arrived at well below their planned rate, chance aside."""
    late = set()
    counts = rows.column("step").value_counts().to_pylist()
    by_step = {entry["values"]: entry["counts"] for entry in counts}
    for step, planned, arrived in zip(
        *(rows.column(name).to_pylist() for name in ("step", "rate_rps", "arrived_rps")), strict=True
    ):
        if arrived < planned * (LATE_SHARE - 2.0 / math.sqrt(by_step[step])):
            late.add(step)
    return len(late)
