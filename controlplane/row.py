"""What choosers look at: one endpoint of one model, kept up to date from one decision to the next.

A `Standing` never changes, which is what somebody who explains a decision later needs, and making one costs as much as choosing
among four. A row does change: what a decision adds to its endpoint is added here, too, at once. See `usual`, which keeps both.
"""

from __future__ import annotations

from controlplane.endpoint import Endpoint, Standing
from controlplane.tally import Cell


class Row:
    """active_most: with more requests than this its Standing is to be made anew before the next choice."""

    __slots__ = (
        *("active_most", "at", "cell", "complete", "completed", "context_tokens", "current", "endpoint", "kv_free"),
        *("load", "matched_tokens", "next_batch", "prefill_tokens", "queued", "slot", "standing", "url"),
        *("waiting", "worker"),
    )

    def __init__(self, endpoint: Endpoint, at: int, cell: Cell, complete: Cell) -> None:
        """at: its place among the endpoints of its model; cell, complete: where its decisions and complete ends are counted."""
        self.endpoint, self.at, self.cell, self.complete = endpoint, at, cell, complete
        self.slot, self.load = endpoint.slot, endpoint.load
        self.url, self.worker = endpoint.place, endpoint.record.worker
        self.current = True
        """Whether it is this endpoint's still, as far as was looked."""
        self.completed = 0
        """Complete ends of the message at hand."""
        self.matched_tokens = 0
        """Of the question at hand."""
        self.standing: Standing | None = None

    def stands(self, standing: Standing, active_max: int) -> None:
        """Another one than before. active_max: of the guard."""
        self.standing = standing
        self.next_batch = standing.batch + 1
        waiting, free = standing.waiting, 1.0 - standing.kv_usage
        self.waiting = waiting
        self.queued = waiting if waiting > standing.no_first_byte else standing.no_first_byte
        self.kv_free = free if 0.0 <= free <= 1.0 else float(free > 1.0)
        self.prefill_tokens = standing.prefill_tokens
        self.context_tokens = standing.context_tokens
        self.active_most = active_max
        if 0 < standing.seats <= active_max:
            self.active_most = standing.seats - 1  # from there on its queue is played ahead
        if self.load.foreign is not None:
            self.active_most = -1  # what others have there and what we add do not simply add up
