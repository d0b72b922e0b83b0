"""Compiled where the installation finds a C compiler (`_trees.c`); without it LightGBM's library is asked."""

from collections.abc import Callable, Sequence

VERSION: int

class Trees:
    def __new__(
        cls,
        columns: int,
        sizes: Sequence[int],
        features: Sequence[float],
        thresholds: Sequence[float],
        kinds: Sequence[float],
        left: Sequence[float],
        right: Sequence[float],
        leaves: Sequence[float],
        /,
    ) -> Trees: ...
    def ask(self, rows: bytearray, place: int, /) -> Callable[[], float]: ...
