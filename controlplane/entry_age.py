"""How long an entry of a stream lay there before it was read, whatever Redis's clock says beside ours. Pure.

Reports are read together, some milliseconds after they came, and what is learned of an engine's steps is learned from the time
between two of them. An entry's id is the millisecond in which Redis took it. The least difference between our clock and an id,
of late, is that of an entry which was read at once; whatever else lay longer.
"""

from __future__ import annotations

AGE_S_MAX = 0.1
"""Beyond a reader's pace it is the clocks that have moved."""
FADE_S = 1e-4
"""By so much the least difference grows with each entry: clocks drift, and a step of one is forgotten."""


class EntryAge:
    """Of the entries of one stream, in their order."""

    __slots__ = ("_least_s",)

    def __init__(self) -> None:
        self._least_s = float("inf")

    def of(self, entry_ms: int, unix_s: float) -> float:
        """Seconds. entry_ms: of its id; unix_s: our time when it was read."""
        apart_s = unix_s - entry_ms / 1000
        self._least_s = min(self._least_s + FADE_S, apart_s)
        return min(apart_s - self._least_s, AGE_S_MAX)
