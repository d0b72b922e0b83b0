"""A profile on disk: its plan, one part a finished step, and the data set made of them.

    plan.json             what was asked for, and the steps that follow from it; written once
    parts/00042.parquet   the rows of step 42, there if and only if the step was played to its end
    data.parquet, .csv    all parts, when all are there

A run that was cut short goes on at its first step without a part: nothing is lost but the step that was in progress. Every file
is written under another name first, so that none is ever half there.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from contract.features import VERSION
from loadgen.errors import LoadError
from loadgen.sweep import Grid, Step

LAYOUT = 2
"""2: arrived_rps."""


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """run: the name in every row and request id; started_at: Unix time; speed: of the fleet beside what it emulates;
    options: how rows are made and where they are sent, as the command was typed; asking for others needs another run."""

    layout: int = LAYOUT
    run: str
    started_at: float
    feature_version: int = VERSION
    speed: float
    grid: Grid
    steps: list[Step]
    saturation_rps: dict[str, float] = {}  # by combination, as found; empty where rates were given
    options: dict[str, Any] = {}

    @property
    def requests(self) -> int:
        return sum(step.requests for step in self.steps)


class RunDirectory:
    """LoadError, from every method: it cannot be read or written, or holds something else."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.data = path / "data.parquet"
        self.csv = path / "data.csv"
        self._plan = path / "plan.json"
        self._parts = path / "parts"

    @property
    def begun(self) -> bool:
        return self._plan.exists()

    def begin(self, plan: Plan) -> None:
        if self.begun:
            raise LoadError(f"{self.path}: a profile is there already; --resume goes on with it")
        try:
            self._parts.mkdir(parents=True, exist_ok=True)
            text = msgspec.json.format(msgspec.json.encode(plan), indent=1)
            _replace(self._plan, lambda path: path.write_bytes(text))
        except OSError as error:
            raise LoadError(f"{self.path}: {error.strerror or error}") from None

    def make(self) -> None:
        """The directory itself, empty."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise LoadError(f"{self.path}: {error.strerror or error}") from None

    def plan(self) -> Plan:
        try:
            found = msgspec.json.decode(self._plan.read_bytes(), type=Plan)
        except OSError as error:
            raise LoadError(f"{self.path}: no profile to resume ({error.strerror or error})") from None
        except msgspec.MsgspecError as error:
            raise LoadError(f"{self._plan}: {error}") from None
        if found.layout != LAYOUT or found.feature_version != VERSION:
            raise LoadError(
                f"{self._plan}: features of version {found.feature_version} in layout {found.layout}, "
                f"this build writes {VERSION} in {LAYOUT}"
            )
        return found

    def finished(self, plan: Plan) -> set[int]:
        """Indices of the steps that have a part."""
        return {step.index for step in plan.steps if self._part(step.index).exists()}

    def rows(self, index: int) -> int:
        """Of a finished step."""
        try:
            return int(pq.read_metadata(self._part(index)).num_rows)
        except (OSError, pa.ArrowException) as error:
            raise LoadError(f"{self._part(index)}: {_first_line(error)}") from None

    def write_part(self, index: int, rows: pa.Table) -> None:
        try:
            _replace(self._part(index), lambda path: pq.write_table(rows, path, compression="zstd"))
        except OSError as error:
            raise LoadError(f"{self._part(index)}: {error.strerror or error}") from None

    def finish(self, plan: Plan) -> pa.Table:
        """Writes data.parquet and data.csv of all parts, oldest decision first."""
        try:
            parts = [pq.read_table(self._part(step.index)) for step in plan.steps]
            rows = pa.concat_tables(parts).sort_by("decided_at")
            _replace(self.data, lambda path: pq.write_table(rows, path, compression="zstd"))
            _replace(self.csv, lambda path: pyarrow.csv.write_csv(rows, path))
        except (OSError, pa.ArrowException) as error:
            raise LoadError(f"{self.path}: {_first_line(error)}") from None
        return rows

    def _part(self, index: int) -> Path:
        return self._parts / f"{index:05}.parquet"


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    """All of it or nothing, also where the machine loses its power."""
    new = path.with_name(path.name + ".new")
    write(new)
    with new.open("rb") as file:
        os.fsync(file.fileno())
    new.replace(path)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
