"""What the index knows of one worker, in one word."""

from __future__ import annotations

from enum import IntEnum


class IndexState(IntEnum):
    """Numbers equal those of `headway.v1.IndexState` in proto/fleet.proto (a test compares them)."""

    UNSPECIFIED = 0
    EXACT = 1  # every block the worker announced is in the index, and no other
    CATCHING_UP = 2  # a gap was seen, or the worker is new: announced blocks earn nothing until the snapshot is in
    DEGRADED = 3  # known to be wrong: no credit at all
    SPECULATIVE = 4  # the worker sends no events: entries are the router's own guesses
