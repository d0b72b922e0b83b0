"""The recording of a real vLLM on the CPU: who asked for what and when, and when the tokens came.

The recording client drew its prompts from a seeded stream and wrote down their lengths, not their tokens. The stream is
rebuilt here from the same seed and held against every recorded length, so that a replay shares exactly the prefixes that the
real engine saw.
"""

from __future__ import annotations

import csv
import random
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

RUN_GAP_S = 20.0
"""The same level twice in a row, this far apart, was two runs."""
_SEED = 1
_ROUNDS = 3
_LEVELS = 22
_DOCUMENTS, _DOCUMENT_TOKENS = 6, 2_400
_TOKEN_FIRST, _TOKEN_END = 300, 8_000
_DRAWS_MAX = 200
"""Think times between two prompts: one for every user that finished in between."""


class RecordingError(Exception):
    """The recording is not what it should be; says which file and why."""


@dataclass(frozen=True, slots=True)
class Recording:
    """One row a request, in the order of sending. Times in seconds, `send_s` since the recording's start."""

    levels: list[str]
    """Load level, such as `closed_8` (users) or `poisson_3` (requests a second)."""
    runs: Ints
    """A level was visited several times, in random order: the number of the visit. Every run began on an idle engine."""
    send_s: Floats
    prompts: list[bytes]
    """Token ids, flat uint32."""
    max_tokens: Ints
    cached_tokens: Ints
    ttft_s: Floats
    itl_s: Floats
    """Median gap between tokens of one request."""
    tpot_s: Floats
    prefill_s: Floats
    """From scheduling to the first token, by the engine."""
    e2e_s: Floats
    other_cpu: Floats
    """Cores (of two) that anything but the server and its client used while the request was open."""

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def num_runs(self) -> int:
        return int(self.runs.max()) + 1

    def only(self, rows: npt.NDArray[np.bool_]) -> Recording:
        """These requests; runs are numbered anew."""
        kept = np.flatnonzero(rows).tolist()
        columns: dict[str, Any] = {
            name: [column[index] for index in kept] if isinstance(column, list) else column[kept]
            for name, column in ((name, getattr(self, name)) for name in Recording.__dataclass_fields__)
        }
        columns["runs"] = np.unique(columns["runs"], return_inverse=True)[1]
        return Recording(**columns)

    def run_cpu(self) -> Floats:
        """Mean `other_cpu` of each run's requests."""
        return np.bincount(self.runs, self.other_cpu) / np.bincount(self.runs)


def read(path: Path) -> Recording:
    """RecordingError: no such file, other columns, or lengths that the recording client's seed does not give."""
    try:
        with path.open(newline="") as file:
            rows = sorted(csv.DictReader(file), key=lambda row: int(row["id"]))
        send_s = _column(rows, "t_send_s")
        levels = [row["phase"] for row in rows]
        return Recording(
            levels=levels,
            runs=_runs(levels, send_s),
            send_s=send_s,
            prompts=[array("I", tokens).tobytes() for tokens in _rebuild(rows)],
            max_tokens=_column(rows, "max_tokens").astype(np.int64),
            cached_tokens=_column(rows, "cached_tokens").astype(np.int64),
            ttft_s=_column(rows, "ttft_ms") / 1e3,
            itl_s=_column(rows, "itl_p50_ms") / 1e3,
            tpot_s=_column(rows, "tpot_ms") / 1e3,
            prefill_s=_column(rows, "srv_ttft_ms") / 1e3,
            e2e_s=_column(rows, "e2e_ms") / 1e3,
            other_cpu=_column(rows, "other_cpu"),
        )
    except (OSError, KeyError, ValueError) as error:
        raise RecordingError(f"{path}: {error!r}") from None


def _column(rows: list[dict[str, str]], name: str) -> Floats:
    return np.array([float(row[name] or "nan") for row in rows])


def _runs(levels: list[str], send_s: Floats) -> Ints:
    runs, number = [], 0
    for index, level in enumerate(levels):
        if index and (level != levels[index - 1] or send_s[index] - send_s[index - 1] > RUN_GAP_S):
            number += 1
        runs.append(number)
    return np.array(runs)


def _rebuild(rows: list[Mapping[str, str]] | list[dict[str, str]]) -> Iterator[list[int]]:
    """The client's stream, drawn again: documents, the order of the levels, then prompts with think times in between."""
    rng = random.Random(_SEED)
    documents = [_tokens(rng, _DOCUMENT_TOKENS) for _ in range(_DOCUMENTS)]
    rng.shuffle([None] * (_LEVELS * _ROUNDS))
    for row in rows:
        wanted = (row["kind"], int(row["prompt_tokens"]), int(row["max_tokens"]))
        for _ in range(_DRAWS_MAX):
            before = rng.getstate()
            kind, tokens, max_tokens = _draw(rng, documents)
            if (kind, len(tokens), max_tokens) == wanted:
                yield tokens
                break
            rng.setstate(before)
            rng.random()
        else:
            raise ValueError(f"request {row['id']} is none that seed {_SEED} of the recording client draws")


def _tokens(rng: random.Random, count: int) -> list[int]:
    return [rng.randrange(_TOKEN_FIRST, _TOKEN_END) for _ in range(count)]


def _draw(rng: random.Random, documents: list[list[int]]) -> tuple[str, list[int], int]:
    max_tokens = int(2 ** rng.uniform(3, 7))
    if rng.random() < 0.5:
        return "cold", _tokens(rng, int(2 ** rng.uniform(5, 11.4))), max_tokens
    document = rng.choice(documents)
    kept = int(2 ** rng.uniform(6, 11.2))
    return "shared", document[:kept] + _tokens(rng, int(2 ** rng.uniform(3, 8))), max_tokens
