"""How long an event loop lets others wait: a byte from another process, and when the loop reads it.

Another process writes the time to a pipe every half millisecond; the loop (uvloop) reads it. What passes in between is how long
whatever arrives at a socket would have waited. Three figures of the longest wait within a stretch of work:

    wall     as it was. On busy cores this has in it how long the loop's thread, awake, waited for a processor
    awake    without that: the kernel counts it, /proc/self/task/*/schedstat
    held     of this, no more than the loop and the threads of the work computed since the beat before: what they can have
             done to it themselves

`processor_of_its_own` lets the loop's thread have a processor whenever it is awake: the wall's figure is then what it would be
with an idle one beside.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

BEAT_S = 0.0005

_SENDER = """
import os, sys, time
while True:
    time.sleep(float(sys.argv[1]))
    try:
        os.write(1, time.monotonic_ns().to_bytes(8, "little"))
    except BrokenPipeError:
        break
"""


@dataclass(slots=True)
class Waits:
    """The longest waits of a stretch, in seconds; beats: how many there were."""

    wall_s: float = 0.0
    awake_s: float = 0.0
    held_s: float = 0.0
    beats: int = 0


def cpu_clock(pid: int) -> int:
    """The clock of a process's CPU time, see clock_getcpuclockid(3)."""
    return ~pid << 3 | 2


@contextlib.contextmanager
def processor_of_its_own() -> Iterator[None]:
    """Real-time priority for this thread, and for none that it starts. PermissionError: not allowed here."""
    before = os.sched_getparam(0)
    os.sched_setscheduler(0, os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, os.sched_param(os.sched_get_priority_min(os.SCHED_FIFO)))
    try:
        yield
    finally:
        os.sched_setscheduler(0, os.SCHED_OTHER, before)


class Heartbeat:
    """Beats while its `with` block lasts, on the running loop. workers: CPU clocks of the threads that do the work."""

    def __init__(self, workers: Iterable[int]) -> None:
        self._workers = workers
        self.waits = Waits()

    def __enter__(self) -> Heartbeat:
        self._process = subprocess.Popen([sys.executable, "-c", _SENDER, str(BEAT_S)], stdout=subprocess.PIPE)
        assert self._process.stdout is not None
        self._pipe = self._process.stdout.fileno()
        os.set_blocking(self._pipe, False)
        self._schedule = os.open(f"/proc/self/task/{threading.get_native_id()}/schedstat", os.O_RDONLY)
        self._before = self._now()
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._pipe, self._beat)
        return self

    def __exit__(self, *error: object) -> None:
        self._loop.remove_reader(self._pipe)
        self._process.kill()
        self._process.wait()
        os.close(self._schedule)

    def stretch(self) -> Waits:
        """The waits since the last call."""
        waits, self.waits = self.waits, Waits()
        return waits

    def _now(self) -> tuple[float, float]:
        """(CPU seconds of the loop's thread and the workers, seconds that the loop's thread waited for a processor)."""
        queued_s = int(os.pread(self._schedule, 64, 0).split()[1]) / 1e9
        return time.thread_time() + sum(map(time.clock_gettime, self._workers)), queued_s

    def _beat(self) -> None:
        data = os.read(self._pipe, 65_536)
        wall_s = (time.monotonic_ns() - int.from_bytes(data[:8], "little")) / 1e9
        now = self._now()
        computed_s, queued_s = (new - old for new, old in zip(now, self._before, strict=True))
        self._before = now
        waits = self.waits
        awake_s = max(0.0, wall_s - queued_s)
        waits.beats += len(data) // 8
        waits.wall_s = max(waits.wall_s, wall_s)
        waits.awake_s = max(waits.awake_s, awake_s)
        waits.held_s = max(waits.held_s, min(awake_s, computed_s))
