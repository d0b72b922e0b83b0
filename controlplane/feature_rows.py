"""Feature rows of many candidates at once: what is the same for all questions is packed once a standing, and shared.

A packed standing is a row of contract.features.FEATURES with moments in place of the times that grow with `now`, something in
the columns that a question fills, and two numbers more. The rows of a call are then one copy of memory and a few columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from struct import Struct

import numpy as np
import numpy.typing as npt

from contract.features import FEATURES, INDEX
from controlplane.endpoint import Candidate, Standing, of_standing

Floats = npt.NDArray[np.float64]

WIDTH = len(FEATURES)
ROWS_START = 64

_PACK = Struct(f"{WIDTH + 2}d")
_INPUT, _MATCHED, _UNCACHED = INDEX["input_tokens"], INDEX["matched_tokens"], INDEX["uncached_tokens"]
_MAX_TOKENS, _BEGINS = INDEX["max_tokens"], INDEX["begins_s"]
_WAIT, _STEP, _AGE = INDEX["prefill_wait_s"], INDEX["step_age_s"], INDEX["report_age_s"]
assert _STEP == _WAIT + 1, "both are made of their moments in one go"


class Rows:
    """Candidates to C-contiguous float64 matrices (n, len(FEATURES)), in memory that is used again by the next call."""

    def __init__(self) -> None:
        self._matrix: Floats = np.empty((ROWS_START, WIDTH))

    def of_one(self, candidates: Sequence[Candidate]) -> Floats:
        """Rows of one question; never none."""
        first = candidates[0]
        matched = [one.matched_tokens for one in candidates]
        return self._fill(candidates, first.input_tokens, matched, first.max_tokens, first.now)

    def of(self, candidates: Sequence[Candidate]) -> Floats:
        """Rows of any questions."""
        if not candidates:
            return self._matrix[:0]
        asked = np.array([(one.input_tokens, one.matched_tokens, one.max_tokens, one.now) for one in candidates])
        return self._fill(candidates, *asked.T)

    def _fill(
        self,
        candidates: Sequence[Candidate],
        input_tokens: int | Floats,
        matched_tokens: list[int] | Floats,
        max_tokens: int | Floats,
        now: float | Floats,
    ) -> Floats:
        count = len(candidates)
        if count > len(self._matrix):
            self._matrix = np.empty((2 * count, WIDTH))
        rows = self._matrix[:count]
        packed = np.frombuffer(b"".join([one.standing.packed or _pack(one.standing) for one in candidates]))
        packed = packed.reshape(count, WIDTH + 2)
        rows[:] = packed[:, :WIDTH]
        columns = rows.T
        columns[_INPUT], columns[_MATCHED], columns[_MAX_TOKENS] = input_tokens, matched_tokens, max_tokens
        np.subtract(input_tokens, columns[_MATCHED], out=columns[_UNCACHED])
        np.maximum(columns[_STEP], [one.token_at for one in candidates], out=columns[_STEP])
        ages = columns[_WAIT : _STEP + 1]
        np.maximum(now - ages, 0.0, out=ages)
        np.subtract(now, columns[_AGE], out=columns[_AGE])
        np.maximum(packed[:, WIDTH] - now, 0.0, out=columns[_BEGINS])
        columns[_BEGINS] += packed[:, WIDTH + 1]
        return rows


def _pack(standing: Standing) -> bytes:
    packed = standing.packed = _PACK.pack(*of_standing(standing), *standing.beginning())
    return packed
