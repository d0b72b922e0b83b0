"""Decoding sequences between the steps in which something happens to them.

A sequence that decodes computes one token a step, and in most steps nothing else comes of it: no block begins, none gets full,
the answer does not end. Such a step is known without looking at the sequence: it adds one to the batch and its context to the
tokens read, which grow by one a step. So sequences are looked at when something is due for them, and catch up then, tokens
included; between two steps of a batch of n only the few are touched for which something happens.

The steps are the same as without: same batches, same durations to the last bit, same blocks in the same order, same tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from emulator.sequence import Sequence

CatchUp = Callable[[Sequence, int], None]
"""Give a sequence so many tokens, none of which ends it or touches a block."""


class Cruise:
    """Sequences that all decode, in the order in which they run. `due` says when to look at each again."""

    def __init__(self, sequences: Iterable[Sequence], due: Callable[[Sequence], int], catch_up: CatchUp) -> None:
        """due: in how many steps from now something happens to a sequence, 1 for the next."""
        self._due_in = due
        self._catch_up = catch_up
        self._members = list(sequences)
        self._seen = [0] * len(self._members)
        """The last step that each has caught up with."""
        self._due: dict[int, list[int]] = {}
        self.taken = 0
        """Steps since the beginning."""
        self.count = len(self._members)
        self.context = 0
        """Tokens of context that the next step reads."""
        for place, sequence in enumerate(self._members):
            self.context += sequence.num_computed
            self._plan(place)

    def begin(self) -> list[Sequence]:
        """Whom the next step must look at, in the order in which they run; they have caught up with the step before."""
        found = []
        for place in sorted(self._due.get(self.taken + 1, ())):
            self._bring(place)
            found.append(self._members[place])
        return found

    def end(self, *, last: bool) -> None:
        """The step was taken, and those due got their token in it. last: some of them ended, so nothing more is planned."""
        self.taken += 1
        self.context += self.count
        for place in self._due.pop(self.taken, ()):
            self._seen[place] = self.taken
            if not last:
                self._plan(place)

    def land(self) -> None:
        """Everyone catches up with the last step taken."""
        for place in range(self.count):
            self._bring(place)

    def _bring(self, place: int) -> None:
        missed = self.taken - self._seen[place]
        if missed:
            self._catch_up(self._members[place], missed)
            self._seen[place] = self.taken

    def _plan(self, place: int) -> None:
        self._due.setdefault(self.taken + self._due_in(self._members[place]), []).append(place)
