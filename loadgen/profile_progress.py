"""Where a profile stands: a bar with what is left on a terminal, a line every few seconds elsewhere. On stderr."""

from __future__ import annotations

import sys
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Column

from loadgen.profile_run import Plan
from loadgen.sweep import Step
from runtime.clock import Clock

LINE_EVERY_S = 5.0
BAR_WIDTH = 16


def _whole(width: int) -> Column:
    """Not to be squeezed by the state, which is cut where the terminal ends."""
    return Column(min_width=width, no_wrap=True)


class SweepView:
    """Use as a context manager."""

    def __init__(self, clock: Clock, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._clock = clock
        self._next_line_s = clock.now()
        self._bar: Progress | None = None
        if self._stream.isatty():
            columns = (
                TextColumn("{task.description}", table_column=_whole(10)),
                BarColumn(bar_width=BAR_WIDTH, table_column=_whole(BAR_WIDTH)),
                MofNCompleteColumn(table_column=_whole(11)),
                TimeElapsedColumn(table_column=_whole(7)),
                TimeRemainingColumn(table_column=_whole(7)),
                TextColumn("{task.fields[state]}", table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis")),
            )
            self._bar = Progress(*columns, console=Console(file=self._stream), refresh_per_second=4, expand=True)
            self._task = self._bar.add_task("profile", total=None, state="")

    def __enter__(self) -> SweepView:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def calibrating(self, number: int, count: int, what: str) -> None:
        self._show("saturation", number, count, what, last=False)

    def playing(self, step: Step | None, plan: Plan, *, done: int, rows: int, failed: int) -> None:
        """step None: all are done."""
        state = f"{rows} rows, {failed} failed"
        if step is not None:
            level = f" = {step.level:.0%} of saturation" if step.level >= 0 else ""
            state += f"; step {step.index + 1}/{len(plan.steps)}: {step.combination}, {step.rate_rps:.3g}/s{level}"
        self._show("profile", done, plan.requests, state, last=step is None)

    def _show(self, title: str, done: int, total: int, state: str, *, last: bool) -> None:
        if self._bar is not None:
            self._bar.update(self._task, description=title, completed=done, total=total, state=state)
            return
        now = self._clock.now()
        if last or now >= self._next_line_s:
            self._next_line_s = now + LINE_EVERY_S
            print(f"{title}: {done}/{total}, {state}", file=self._stream, flush=True)
