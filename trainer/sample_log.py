"""Samples on disk, bounded: the recent ones whole, the older ones as a reservoir over load and prefix.

    <directory>/seg-<position>.parquet     samples up to that position of the outcome stream
    <directory>/kept-<position>.parquet    the reservoir; it has taken in every segment up to that position

A segment appears whole or not at all, and its name is the position in the stream that it reaches: a process that starts
reads on from the highest. So what was not yet on disk when the process before was killed is read from the stream again,
nothing is lost and nothing comes twice. The stream may itself hold an outcome twice (a batch whose answer was lost is
written again): a decision and attempt counts once.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from contract.features import FEATURES
from contract.outcome import Outcome
from prediction import dataset
from prediction.dataset import Dataset, DatasetError
from trainer import reservoir
from trainer.durable import Disk, replace_file, sweep

log = logging.getLogger(__name__)

START = "0-0"
SEEN_MAX = 200_000
SEGMENTS_MAX = 64
"""Above, the older half becomes part of the reservoir, or, while they are few samples, one segment."""
RECENT_MAX = 50_000
KEPT_MAX = 50_000
_NAME = re.compile(r"(seg|kept)-(\d{15})-(\d{10})\.parquet")


class SampleLogError(OSError):
    """The directory cannot be used; the message says why."""


class SampleLog:
    """One process at a time writes a directory. recent_max, kept_max: samples."""

    def __init__(
        self,
        directory: Path,
        *,
        rng: np.random.Generator,
        disk: Disk | None = None,
        recent_max: int = RECENT_MAX,
        kept_max: int = KEPT_MAX,
        segments_max: int = SEGMENTS_MAX,
    ) -> None:
        """SampleLogError."""
        self.directory = directory
        self._rng = rng
        self._disk = disk or Disk()
        self._recent_max = recent_max
        self._kept_max = kept_max
        self._segments_max = segments_max
        try:
            directory.mkdir(parents=True, exist_ok=True)
            sweep(directory)
        except OSError as error:
            raise SampleLogError(f"{directory}: {error.strerror or error}") from error
        self._drop_absorbed()
        files = self._files("kept") + self._files("seg")
        self.position = max((_position(file) for file in files), default=START, key=_order)
        """Of the outcome stream: everything up to it is on disk or in `pending`."""
        self._pending: list[Outcome] = []
        self._seen: dict[tuple[int, int], None] = {}
        self._left_out: set[str] = set()  # files that the log has named
        self.duplicates = 0
        for file in files:
            table = self._read(file)
            if table is not None:
                self._remember(table)
        self.on_disk = self._count()

    @property
    def pending(self) -> int:
        """Samples that are not on disk yet."""
        return len(self._pending)

    def __len__(self) -> int:
        return self.on_disk + self.pending

    def take(self, outcomes: Sequence[Outcome], position: str) -> list[Outcome]:
        """What was read from the stream, up to this position of it. Returns the samples among them that are new."""
        fresh = []
        for outcome in outcomes:
            key = (outcome.decision_id, outcome.attempt)
            if not dataset.is_sample(outcome):
                continue
            if key in self._seen:
                self.duplicates += 1
                continue
            self._note(key)
            fresh.append(outcome)
        self._pending += fresh
        self.position = position
        return fresh

    def flush(self) -> None:
        """Makes what is pending durable, and keeps the directory within its bounds. OSError: it stays pending."""
        if not self._pending:
            return
        table = dataset.from_outcomes(self._pending)
        self._write("seg", self.position, table)
        self.on_disk += len(table)
        self._pending = []
        if len(self._files("seg")) > self._segments_max:
            self._compact()

    def dataset(self, limit: int) -> Dataset:
        """All samples, or `limit` of them drawn so that rare states stay. DatasetError: none."""
        tables = [table for file in self._files("kept") + self._files("seg") if (table := self._read(file)) is not None]
        tables.append(dataset.from_outcomes(self._pending))
        whole = dataset.of_table(_once(pa.concat_tables(tables)), "the outcome log")
        return whole if len(whole) <= limit else whole.take(reservoir.thin(whole.rows, limit, self._rng))

    # ------------------------------------------------------------------------------------------------------------- inside

    def _compact(self) -> None:
        """At least the newest `recent_max` samples stay as they are, in fewer files; what is older goes to the reservoir."""
        segments = self._files("seg")
        rows = [_rows(file) for file in segments]
        older = 0
        while older < len(segments) and sum(rows[older + 1 :]) >= self._recent_max:
            older += 1
        if older:
            self._absorb(segments[:older])
        half = segments[older : older + (len(segments) - older) // 2]
        enough = self._recent_max * 4 // self._segments_max
        group: list[Path] = []
        for file in [*half, None]:
            if file is not None and sum(map(_rows, group)) + _rows(file) <= enough:
                group.append(file)
                continue
            if len(group) > 1:
                self._join(group)
            group = [] if file is None else [file]
        self.on_disk = self._count()

    def _absorb(self, older: list[Path]) -> None:
        old = self._files("kept")
        tables = [table for file in old + older if (table := self._read(file)) is not None]
        pool = _once(pa.concat_tables(tables)) if tables else dataset.from_outcomes([])
        rows = np.column_stack([pool.column(name).to_numpy() for name in FEATURES])
        left = pool.take(pa.array(reservoir.thin(rows, self._kept_max, self._rng)))
        self._write("kept", _position(older[-1]), left)
        for file in older + old:
            self._disk.remove(file)

    def _join(self, group: list[Path]) -> None:
        """Into one, under the name of the newest of them."""
        tables = [table for file in group if (table := self._read(file)) is not None]
        self._write("seg", _position(group[-1]), _once(pa.concat_tables(tables)) if tables else dataset.from_outcomes([]))
        for file in group[:-1]:
            self._disk.remove(file)

    def _count(self) -> int:
        """A crash while segments became one leaves samples in two files until the next time: they count once."""
        tables = [table for file in self._files("kept") + self._files("seg") if (table := self._read(file)) is not None]
        return len(_once(pa.concat_tables(tables))) if tables else 0

    def _drop_absorbed(self) -> None:
        """A crash may have come between writing a reservoir and removing what it has taken in."""
        kept = self._files("kept")
        for file in kept[:-1]:
            self._disk.remove(file)
        for file in self._files("seg"):
            if kept and _order(_position(file)) <= _order(_position(kept[-1])):
                self._disk.remove(file)

    def _write(self, kind: str, position: str, table: pa.Table) -> None:
        milliseconds, number = _order(position)
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd")
        name = f"{kind}-{milliseconds:015d}-{number:010d}.parquet"
        replace_file(self._disk, self.directory / name, sink.getvalue().to_pybytes())

    def _files(self, kind: str) -> list[Path]:
        """Oldest first."""
        return sorted(file for file in self.directory.glob(f"{kind}-*.parquet") if _NAME.fullmatch(file.name))

    def _read(self, file: Path) -> pa.Table | None:
        """None, with one word in the log: of another build's features, or not readable."""
        try:
            table = pq.read_table(file)
            if table.schema.names != dataset.SCHEMA.names:
                raise DatasetError("its columns are another build's")
            dataset.check(table, str(file))
            return table.cast(dataset.SCHEMA)
        except (pa.ArrowException, OSError, DatasetError) as error:
            if file.name not in self._left_out:
                self._left_out.add(file.name)
                why = str(error).splitlines()[0]
                log.warning("samples left out", extra={"f": {"file": file.name, "error": why}})
            return None

    def _remember(self, table: pa.Table) -> None:
        pairs = zip(table.column("decision_id").to_pylist(), table.column("attempt").to_pylist(), strict=True)
        for key in pairs:
            self._note(key)

    def _note(self, key: tuple[int, int]) -> None:
        self._seen[key] = None
        if len(self._seen) > SEEN_MAX:
            del self._seen[next(iter(self._seen))]


def _order(position: str) -> tuple[int, int]:
    milliseconds, _, number = position.partition("-")
    return int(milliseconds), int(number or 0)


def _position(file: Path) -> str:
    found = _NAME.fullmatch(file.name)
    assert found is not None, f"{file.name} is no name of ours"
    return f"{int(found[2])}-{int(found[3])}"


def _rows(file: Path) -> int:
    """Of samples in it; 0 where it cannot be read."""
    try:
        return int(pq.read_metadata(file).num_rows)
    except (pa.ArrowException, OSError):
        return 0


def _once(table: pa.Table) -> pa.Table:
    """Each decision and attempt once, the first of them."""
    if not len(table):
        return table
    keys = np.column_stack([table.column("decision_id").to_numpy(), table.column("attempt").to_numpy().astype(np.uint64)])
    _, first = np.unique(keys, axis=0, return_index=True)
    return table if len(first) == len(table) else table.take(pa.array(np.sort(first)))
