"""Questions held back, for moments, until the engine's word on the answer before them is here.

The next turn of a conversation may be asked within a millisecond of the last one's end, and then what the engine cached of the
answer is still under way: see `answers`, which knows when that is so, whether to wait is worth it and, by what this engine's
events have been taking, for how long. A held question is asked again with every change of the index, and decided by what is
known when that time is over. Whoever thinks longer than that between turns is never held, nor is a request that names a bound
for its TTFT.
"""

from __future__ import annotations

from typing import NamedTuple

from controlplane.question import Question

SETTLE_S = 0.25
"""At most, whatever an engine's events take: 5 to 20 ms where processors are free."""
LAST_LOOK_S = 0.01
"""From when a question's time is first seen to be over to its decision. A process that got no processor meanwhile finds that
time over and the event there at once, and takes the event in a few turns of its loop later."""
HELD_MAX = 64
"""Each is matched again at every change of the index; more questions than this are decided at once."""


class Held(NamedTuple):
    """A question that waits. until: monotonic seconds; claims: slot -> blocks that it holds if the answer was passed back."""

    question: Question
    owner: str
    question_id: int
    until: float
    claims: dict[int, int]


class Settling:
    """Those that wait, in the order in which they came. Pure. settle_s: at most so long, 0: nobody waits."""

    def __init__(self, settle_s: float) -> None:
        self._settle_s = settle_s
        self.open = settle_s > 0
        """Whether one more may wait."""
        self._held: dict[tuple[str, int], Held] = {}
        self._over: dict[tuple[str, int], float] = {}  # since when their time has been seen to be over
        self._looked_at = -1
        self.held = 0
        """Questions that ever waited."""
        self.in_vain = 0
        """Those of them whose time was over first."""

    def __len__(self) -> int:
        return len(self._held)

    def hold(
        self, question: Question, owner: str, question_id: int, awaited: float, claims: dict[int, int], now: float
    ) -> None:
        """awaited: until when its blocks are."""
        until = min(awaited, now + self._settle_s)
        self._held[owner, question_id] = Held(question, owner, question_id, until, claims)
        self.open = len(self._held) < HELD_MAX
        self.held += 1

    def due(self, generation: int, now: float) -> list[Held]:
        """Those to look at: all after a change of the index (another `generation`), else those whose time is over."""
        if not self._held:
            return []
        changed, self._looked_at = generation != self._looked_at, generation
        return [held for held in self._held.values() if changed or self.is_over(held, now)]

    def is_over(self, held: Held, now: float) -> bool:
        """Whether its time is, and has been for a moment."""
        return now >= held.until and now >= self._over.setdefault((held.owner, held.question_id), now) + LAST_LOOK_S

    def settled(self, held: Held, now: float) -> None:
        """It is being decided."""
        self.in_vain += self.is_over(held, now)
        self.withdraw(held.owner, held.question_id)

    def withdraw(self, owner: str, question_id: int) -> bool:
        """Its caller has gone. False: it was not held."""
        self._over.pop((owner, question_id), None)
        held = self._held.pop((owner, question_id), None)
        self.open = self._settle_s > 0 and len(self._held) < HELD_MAX
        return held is not None

    def withdraw_all(self, owner: str) -> None:
        """Its stream broke."""
        for key in [key for key in self._held if key[0] == owner]:
            self.withdraw(*key)
