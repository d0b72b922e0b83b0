"""What is counted since the start, for the metrics. Where something is counted once a request, its cell is at hand."""

from __future__ import annotations


class Cell:
    """One count. Whoever counts the same thing often keeps it."""

    __slots__ = ("count",)

    def __init__(self) -> None:
        self.count = 0


class Tally:
    __slots__ = (
        "_decisions",
        "_ends",
        "breakers_opened",
        "duplicates",
        "input_tokens",
        "matched_tokens",
        "sheds",
    )

    def __init__(self) -> None:
        self._decisions: dict[tuple[str, str], Cell] = {}
        self._ends: dict[tuple[str, str], Cell] = {}
        self.sheds: dict[str, int] = {}
        """By reason."""
        self.input_tokens = 0
        self.matched_tokens = 0
        self.duplicates = 0
        """Outcomes of no living reservation."""
        self.breakers_opened = 0

    def decision(self, policy: str, worker: str) -> Cell:
        """Requests that this policy placed there."""
        return _cell(self._decisions, (policy, worker))

    def end(self, worker: str, end: str) -> Cell:
        """Requests that ended there, in this way."""
        return _cell(self._ends, (worker, end))

    def forget(self, worker: str) -> None:
        """It is gone for good: names of workers come and go for as long as the process lives."""
        for key in [key for key in self._decisions if key[1] == worker]:
            del self._decisions[key]
        for key in [key for key in self._ends if key[0] == worker]:
            del self._ends[key]

    @property
    def decisions(self) -> dict[tuple[str, str], int]:
        """(policy, worker) -> count."""
        return {key: cell.count for key, cell in self._decisions.items() if cell.count}

    @property
    def ends(self) -> dict[tuple[str, str], int]:
        """(worker, end) -> count."""
        return {key: cell.count for key, cell in self._ends.items() if cell.count}


def _cell(cells: dict[tuple[str, str], Cell], key: tuple[str, str]) -> Cell:
    cell = cells.get(key)
    if cell is None:
        cell = cells[key] = Cell()
    return cell
