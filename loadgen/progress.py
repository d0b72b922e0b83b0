"""Where a run stands, while it runs: a bar on a terminal, a line every few seconds elsewhere. On stderr."""

from __future__ import annotations

import asyncio
import sys
from typing import Protocol, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from loadgen.runner import Counts

REFRESH_S = 0.25
LINE_EVERY_S = 5.0


class View(Protocol):
    def show(self, counts: Counts) -> None:
        """Called every REFRESH_S, and once more at the end."""

    def close(self) -> None: ...


class Bar:
    def __init__(self, title: str, total: int, stream: TextIO) -> None:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[state]}"),
        )
        self._progress = Progress(*columns, console=Console(file=stream), auto_refresh=False)
        self._task = self._progress.add_task(title, total=total, state="")
        self._progress.start()

    def show(self, counts: Counts) -> None:
        self._progress.update(self._task, completed=counts.ended, state=state_of(counts), refresh=True)

    def close(self) -> None:
        self._progress.stop()


class Lines:
    """One line every LINE_EVERY_S, and a last one."""

    def __init__(self, title: str, total: int, stream: TextIO) -> None:
        self._title = title
        self._total = total
        self._stream = stream
        self._until_next = 0
        self._last = ""

    def show(self, counts: Counts) -> None:
        self._last = f"{self._title}: {counts.ended}/{self._total} ended, {state_of(counts)}"
        self._until_next -= 1
        if self._until_next < 0:
            self._until_next = round(LINE_EVERY_S / REFRESH_S) - 1
            self._print()

    def close(self) -> None:
        self._print()

    def _print(self) -> None:
        if self._last:
            print(self._last, file=self._stream, flush=True)
            self._last = ""


def state_of(counts: Counts) -> str:
    parts = [f"{counts.in_flight} in flight", f"{counts.failed} failed"]
    parts += [f"{counts.shed} shed"] if counts.shed else []
    parts += [f"{counts.lateness_s_max * 1000:.0f} ms late at most"] if counts.lateness_s_max > 0.05 else []
    return ", ".join(parts)


def view(title: str, total: int, stream: TextIO | None = None) -> View:
    stream = stream or sys.stderr
    return Bar(title, total, stream) if stream.isatty() else Lines(title, total, stream)


async def follow(counts: Counts, shown: View) -> None:
    """Until cancelled; closes the view with the last state."""
    try:
        while True:
            shown.show(counts)
            await asyncio.sleep(REFRESH_S)
    finally:
        shown.show(counts)
        shown.close()
