"""Samples as named columns. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from contract.features import FEATURES, PAIRS_A_TOKEN
from prediction import zones
from prediction.dataset import Dataset
from prediction.errors import DatasetError

Floats = npt.NDArray[np.float64]
Places = npt.NDArray[np.intp]

EXTRA: Mapping[str, str] = {
    "engine_running": "requests",
    "engine_waiting": "requests",
    "engine_kv_usage": "share",
}
"""Columns that the profiler adds, with their units."""
DERIVED: Mapping[str, str] = {"work_tokens": "tokens", "work_s": "s", "foreseen_s": "s"}
"""Made of features, as a router can at a decision: prefill work queued at the worker and this request's own, attention counted
as tokens; the time it takes at the speed which the router learned of the worker; and begins_s with this request's own time."""
LOAD = ("level", "rate_rps")
"""How much arrived, where the data set says so: as planned, times the share of the planned rate that did arrive."""
ARRIVED = "arrived_rps"
UNITS: Mapping[str, str] = {
    **{name: "tokens" for name in FEATURES if name.endswith("_tokens")},
    **{name: "s" for name in FEATURES if name.endswith("_s")},
    "prefill_tokens_per_s": "tokens/s",
    "prefill_pairs": "pairs",
    "active": "requests",
    "no_first_byte": "requests",
    "running": "requests",
    "waiting": "requests",
    "kv_usage": "share",
    "level": "share of saturation",
    "rate_rps": "requests/s",
    "ttft_s": "s",
    **EXTRA,
    **DERIVED,
}
SAMPLES_MIN = 50
"""Fewer say nothing."""


@dataclass(frozen=True, slots=True)
class Signals:
    """columns: (n,) each, nan where not known; zone: (n,) places in zones.ZONES."""

    columns: Mapping[str, Floats]
    ttft_s: Floats
    zone: Places

    def __len__(self) -> int:
        return len(self.ttft_s)

    @property
    def varying(self) -> list[str]:
        """Names of signals (not of the load) that are known and not the same everywhere."""
        return [name for name, values in self.columns.items() if name not in LOAD and _varies(values)]

    @property
    def plain(self) -> list[str]:
        """Those of them that are not made of others."""
        return [name for name in self.varying if name not in DERIVED]

    def matrix(self, names: list[str]) -> Floats:
        """(n, len(names)); nan becomes 0."""
        return np.nan_to_num(np.column_stack([self.columns[name] for name in names]))


def of(samples: Dataset) -> Signals:
    """DatasetError: too few samples."""
    if len(samples) < SAMPLES_MIN:
        raise DatasetError(f"{len(samples)} samples, an analysis needs {SAMPLES_MIN}")
    columns = {name: samples.rows[:, place] for place, name in enumerate(FEATURES)}
    columns |= _derived(columns)
    present = set(samples.table.column_names)
    for name in (*EXTRA, *LOAD):
        if name in present:
            values = samples.table.column(name).cast(pa.float64()).to_numpy().astype(np.float64)
            columns[name] = np.where(values < 0, np.nan, values)
    if ARRIVED in present and "rate_rps" in present:
        arrived = samples.table.column(ARRIVED).cast(pa.float64()).to_numpy().astype(np.float64)
        share = np.where(np.isfinite(arrived), arrived / columns["rate_rps"], 1.0)
        for name in LOAD:
            if name in columns:
                columns[name] = columns[name] * share
    return Signals(columns, samples.ttft_s, zones.of(samples.ttft_s))


def _derived(columns: Mapping[str, Floats]) -> dict[str, Floats]:
    uncached, speed = columns["uncached_tokens"], columns["prefill_tokens_per_s"]
    own_pairs = uncached * (columns["input_tokens"] - uncached / 2)
    tokens = columns["prefill_tokens"] + uncached
    work = tokens + (columns["prefill_pairs"] + own_pairs) / PAIRS_A_TOKEN
    work_s = work / np.where(speed > 0, speed, np.nan)
    own_s = (uncached + own_pairs / PAIRS_A_TOKEN) / np.where(speed > 0, speed, np.nan)
    foreseen_s = columns["begins_s"] + own_s
    return {"work_tokens": work, "work_s": work_s, "foreseen_s": foreseen_s}


def _varies(values: Floats) -> bool:
    known = values[np.isfinite(values)]
    return len(known) > 0 and bool(known.min() < known.max())
