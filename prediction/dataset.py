"""Samples on disk and in memory: Parquet (or CSV), one row a request that streamed, completed, and whose features are known.

Columns: every feature as float64 under its own name, then the outcome's own fields. Whoever writes more columns (the
profiler's run and level) appends them; readers here ask for these only.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from contract.features import FEATURES, VERSION
from contract.outcome import End, Outcome
from prediction.errors import DatasetError

__all__ = ["REQUIRED", "SCHEMA", "Dataset", "DatasetError", "check", "from_outcomes", "is_sample", "of_table", "read"]

Floats = npt.NDArray[np.float64]

_FIELDS: tuple[tuple[str, pa.DataType], ...] = (
    ("decision_id", pa.uint64()),
    ("request_id", pa.string()),
    ("decided_at", pa.float64()),
    ("model", pa.string()),
    ("worker", pa.string()),
    ("accelerator", pa.string()),
    ("policy", pa.string()),
    ("end", pa.int32()),
    ("streamed", pa.bool_()),
    ("attempt", pa.int32()),
    ("output_tokens", pa.int64()),
    ("cached_tokens", pa.int64()),
    ("ttft_s", pa.float64()),
    ("itl_s", pa.float64()),
    ("e2e_s", pa.float64()),
    ("predicted_ttft_s", pa.float64()),
    ("predicted_p90_s", pa.float64()),
    ("model_id", pa.string()),
)
SCHEMA: pa.Schema = pa.schema(
    [*((name, pa.float64()) for name in FEATURES), *_FIELDS, ("feature_version", pa.int32())],
    metadata={"headway.dataset": "1"},
)
REQUIRED: tuple[str, ...] = (*FEATURES, "decided_at", "ttft_s")
"""Columns without which a file is no data set; the others are filled with what stands for "not known"."""
_DEFAULTS: dict[str, Any] = {"itl_s": -1.0, "e2e_s": -1.0, "worker": "", "request_id": ""}
SUFFIXES = (".parquet", ".csv")


@dataclass(frozen=True, slots=True)
class Dataset:
    """rows: C-contiguous (n, len(FEATURES)); times in seconds, decided_at Unix; all of length n, oldest decision first."""

    rows: Floats
    ttft_s: Floats
    itl_s: Floats
    e2e_s: Floats
    decided_at: Floats
    worker: npt.NDArray[np.object_]
    request_id: npt.NDArray[np.object_]
    table: pa.Table

    @property
    def X(self) -> Floats:  # noqa: N802 - the name by which the field knows it
        return self.rows

    def __len__(self) -> int:
        return len(self.ttft_s)

    def take(self, places: npt.NDArray[Any]) -> Dataset:
        """places: indices, or a mask."""
        places = np.flatnonzero(places) if places.dtype == np.bool_ else places
        return Dataset(
            np.ascontiguousarray(self.rows[places]),
            self.ttft_s[places],
            self.itl_s[places],
            self.e2e_s[places],
            self.decided_at[places],
            self.worker[places],
            self.request_id[places],
            self.table.take(pa.array(places)),
        )


def is_sample(outcome: Outcome) -> bool:
    """Whether it teaches TTFT: it streamed, its first token was timed, it ended well, and its features are of this version."""
    return (
        outcome.streamed
        and outcome.end == End.COMPLETE
        and outcome.ttft_s > 0
        and outcome.feature_version == VERSION
        and len(outcome.features) == len(FEATURES)
    )


def from_outcomes(outcomes: Iterable[Outcome]) -> pa.Table:
    """Those that are samples, in SCHEMA."""
    kept = [outcome for outcome in outcomes if is_sample(outcome)]
    features = np.array([outcome.features for outcome in kept], dtype=np.float64).reshape(len(kept), len(FEATURES))
    columns: list[Any] = [pa.array(features[:, place]) for place in range(len(FEATURES))]
    for name, kind in (*_FIELDS, ("feature_version", pa.int32())):
        column = "engine" if name == "worker" else name
        columns.append(pa.array([getattr(outcome, column, _MISSING.get(name)) for outcome in kept], type=kind))
    return pa.Table.from_arrays(columns, schema=SCHEMA)


_MISSING: dict[str, Any] = {"predicted_p90_s": -1.0, "model_id": ""}


def read(where: Path | str) -> Dataset:
    """A Parquet or CSV file, or every one in a directory; of x.parquet and x.csv, which a profile writes of the same rows, the
    first. DatasetError: none there, unreadable, or without what is needed."""
    path = Path(where)
    try:
        kind = path.stat().st_mode
        files = _files_in(path) if stat.S_ISDIR(kind) else [path]
    except (FileNotFoundError, ValueError):  # ValueError: it has a zero byte
        raise DatasetError(f"{path}: no such file or directory") from None
    except OSError as error:
        raise DatasetError(f"{path}: {error.strerror}") from None
    if not stat.S_ISDIR(kind) and not stat.S_ISREG(kind):
        raise DatasetError(f"{path}: a device, a pipe or a socket, no file")
    if not files:
        raise DatasetError(f"{path}: no .parquet or .csv file in it")
    tables = [_read_file(file) for file in files]
    return of_table(pa.concat_tables(tables, promote_options="permissive"), str(path))


def _files_in(directory: Path) -> list[Path]:
    found = {file.stem: file for suffix in reversed(SUFFIXES) for file in directory.glob(f"*{suffix}")}
    return sorted(found.values())


def of_table(table: pa.Table, source: str = "data set") -> Dataset:
    """Rows that can teach: TTFT above 0, features finite, completed and streamed where the table says. DatasetError: none."""
    check(table, source)
    if not len(table):
        raise DatasetError(f"{source}: no samples")
    rows = np.column_stack([_floats(table, name, source) for name in FEATURES])
    ttft_s, decided_at = _floats(table, "ttft_s", source), _floats(table, "decided_at", source)
    usable = (ttft_s > 0) & np.isfinite(ttft_s) & np.isfinite(decided_at) & np.all(np.isfinite(rows), axis=1)
    names = set(table.column_names)
    if "end" in names:
        usable &= _floats(table, "end", source) == End.COMPLETE
    if "streamed" in names:
        usable &= _floats(table, "streamed", source) != 0
    order = np.flatnonzero(usable)
    if not len(order):
        raise DatasetError(f"{source}: none of its {len(table)} rows streamed, completed and has a TTFT with features")
    order = order[np.argsort(decided_at[order], kind="stable")]
    optional = {
        name: _floats(table, name, source) if name in names else np.full(len(table), _DEFAULTS[name])
        for name in ("itl_s", "e2e_s")
    }
    texts = {
        name: np.array(table.column(name).to_pylist() if name in names else [""] * len(table), dtype=object)
        for name in ("worker", "request_id")
    }
    return Dataset(
        np.ascontiguousarray(rows[order]),
        ttft_s[order],
        optional["itl_s"][order],
        optional["e2e_s"][order],
        decided_at[order],
        texts["worker"][order],
        texts["request_id"][order],
        table.take(pa.array(order)),
    )


def write(table: pa.Table, path: Path) -> None:
    """One Parquet file, compressed. OSError."""
    pq.write_table(table, path, compression="zstd")


def _read_file(path: Path) -> pa.Table:
    try:
        table = pyarrow.csv.read_csv(path) if path.suffix == ".csv" else pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise DatasetError(f"{path}: {str(error).splitlines()[0]}") from None
    check(table, str(path))
    return table


def check(table: pa.Table, source: str) -> None:
    """DatasetError: not a data set, or one of another version of the features."""
    names = set(table.column_names)
    version = _version(table, source)
    missing = [name for name in REQUIRED if name not in names]
    if version not in (None, VERSION):
        raise DatasetError(f"{source}: features of version {version}, this build reads version {VERSION}")
    if missing:
        raise DatasetError(f"{source}: no column {missing[0]!r}" + (f" and {len(missing) - 1} more" if missing[1:] else ""))


def _version(table: pa.Table, source: str) -> int | None:
    """The one feature version in it; None where it does not say, or has no rows."""
    if "feature_version" not in table.column_names or not len(table):
        return None
    found: Sequence[Any] = table.column("feature_version").unique().to_pylist()
    if len(found) > 1:
        raise DatasetError(f"{source}: features of versions {', '.join(map(str, sorted(found)))} in one file")
    return int(found[0])


def _floats(table: pa.Table, name: str, source: str) -> Floats:
    try:
        column = table.column(name).cast(pa.float64())
    except pa.ArrowException as error:
        raise DatasetError(f"{source}: column {name!r}: {str(error).splitlines()[0]}") from None
    values: Floats = column.to_numpy().astype(np.float64)
    return values
