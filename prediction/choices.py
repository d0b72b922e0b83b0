"""Choices: requests whose TTFT is known at every worker, and how well a model would have chosen.

On disk: Parquet, one row a candidate: the features, then `choice` (one number for the candidates of one request), `worker`,
`ttft_s`, `level` (of load, as a share of saturation). `headway profile --simulate --choices` makes them.

A choice is judged where it matters: `rank_apart` among requests of which no two candidates are within APART of each other, as
in prediction.scores; `rank_first` among those whose fastest is more than APART ahead of the next. `near`: of those whose
slowest is more than APART behind the fastest, how often the chosen one is within APART of the fastest; `regret`: over all
requests, what the chosen ones took over what the fastest would have taken, less 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from contract.features import FEATURES, VERSION
from prediction import zones
from prediction.errors import DatasetError
from prediction.scores import APART

Floats = npt.NDArray[np.float64]

SCHEMA: pa.Schema = pa.schema(
    [
        *((name, pa.float64()) for name in FEATURES),
        ("choice", pa.int64()),
        ("worker", pa.string()),
        ("ttft_s", pa.float64()),
        ("level", pa.float64()),
        ("feature_version", pa.int32()),
    ],
    metadata={"headway.choices": "1"},
)


@dataclass(frozen=True, slots=True)
class Choices:
    """rows: C-contiguous (n * workers, len(FEATURES)), a choice's candidates side by side; ttft_s: (n, workers) seconds."""

    rows: Floats
    ttft_s: Floats
    table: pa.Table

    def __len__(self) -> int:
        return len(self.ttft_s)


@dataclass(frozen=True, slots=True)
class Chosen:
    """Figures of the choices whose fastest is in one zone, or of all; nan where there are none to judge by."""

    choices: int
    apart: int
    rank_apart: float
    first: int
    rank_first: float
    near: float
    regret: float


def read(where: Path | str) -> Choices:
    """A file, or all in a directory. DatasetError: none there, or something else, or of another version of the features."""
    path = Path(where)
    files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    try:
        tables = [pq.read_table(file) for file in files]
    except (OSError, pa.ArrowException) as error:
        raise DatasetError(f"{path}: {str(error).splitlines()[0]}") from None
    if not tables:
        raise DatasetError(f"{path}: no .parquet file in it")
    if missing := [name for table in tables for name in SCHEMA.names if name not in table.column_names]:
        raise DatasetError(f"{path}: no choices: no column {missing[0]!r}")
    table = pa.concat_tables([one.select(SCHEMA.names).cast(SCHEMA) for one in tables])
    if versions := set(table.column("feature_version").unique().to_pylist()) - {VERSION}:
        raise DatasetError(f"{path}: features of version {versions.pop()}, this build reads version {VERSION}")
    return _of_table(table, path)


def _of_table(table: pa.Table, path: Path) -> Choices:
    number = table.column("choice").to_numpy()
    begins = np.flatnonzero(np.diff(number, prepend=number[0] - 1)) if len(number) else np.empty(0, dtype=np.intp)
    workers = int(begins[1]) if len(begins) > 1 else len(number)
    if workers < 2 or len(number) != workers * len(begins) or np.any(np.diff(begins) != workers):
        raise DatasetError(f"{path}: not as many candidates in every choice, or fewer than two")
    rows = np.column_stack([table.column(name).to_numpy() for name in FEATURES])
    return Choices(np.ascontiguousarray(rows), table.column("ttft_s").to_numpy().reshape(-1, workers), table)


def judge(made: Choices, p50_s: Floats) -> tuple[tuple[Chosen, ...], Chosen]:
    """p50_s: (n * workers,) as predicted. By the zone of the fastest, and of all."""
    predicted = p50_s.reshape(made.ttft_s.shape)
    zone = zones.of(made.ttft_s.min(axis=1))
    by_zone = tuple(_judged(made.ttft_s[zone == place], predicted[zone == place]) for place in range(len(zones.ZONES)))
    return by_zone, _judged(made.ttft_s, predicted)


def _judged(ttft_s: Floats, predicted: Floats) -> Chosen:
    if not len(ttft_s):
        return Chosen(0, 0, math.nan, 0, math.nan, math.nan, math.nan)
    ordered = np.sort(ttft_s, axis=1)
    ahead = ordered[:, 1:] > (1 + APART) * ordered[:, :-1]
    apart, first = ahead.all(axis=1), ahead[:, 0]
    differ = ordered[:, -1] > (1 + APART) * ordered[:, 0]
    chosen = predicted.argmin(axis=1)
    right = chosen == ttft_s.argmin(axis=1)
    took = np.take_along_axis(ttft_s, chosen[:, None], axis=1)[:, 0] / ordered[:, 0]
    return Chosen(
        choices=len(ttft_s),
        apart=int(apart.sum()),
        rank_apart=_mean(right[apart]),
        first=int(first.sum()),
        rank_first=_mean(right[first]),
        near=_mean(took[differ] <= 1 + APART),
        regret=float(took.mean()) - 1.0,
    )


def _mean(values: npt.NDArray[np.bool_]) -> float:
    return float(values.mean()) if len(values) else math.nan
