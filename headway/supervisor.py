"""Keeps a set of child processes alive, and leaves none behind.

A child that ends is started again after a pause that doubles up to RESTART_PAUSE_S_MAX and falls back once it has lived for
STEADY_S. Children run in sessions of their own, so Ctrl-C reaches the supervisor alone, which ends them in reverse order; the
kernel ends them should the supervisor itself be killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable
from functools import partial
from typing import TextIO

from headway.plan import Process
from runtime.parents import end_with
from runtime.tasks import happened

RESTART_PAUSE_S_MIN = 0.2
RESTART_PAUSE_S_MAX = 5.0
STEADY_S = 10.0
LOG_LINE_BYTES_MAX = 64 * 1024


def die_with(parent: int) -> None:
    """In the child, before exec: SIGKILL when the parent's thread ends, or has ended since the fork."""
    end_with(parent, signal.SIGKILL)


class Child:
    """One process under supervision."""

    def __init__(self, process: Process, log: TextIO, on_line: Callable[[str, str], None]) -> None:
        self.process = process
        self.starts = 0
        self.changed = asyncio.Event()
        """Set at every start and end; whoever waits clears it."""
        self._log = log
        self._on_line = on_line
        self._child: asyncio.subprocess.Process | None = None
        self._task: asyncio.Task[None] | None = None
        self._end = asyncio.Event()

    @property
    def pid(self) -> int | None:
        """None while it is not running."""
        return self._child.pid if self._child is not None and self._child.returncode is None else None

    @property
    def exit_code(self) -> int | None:
        return None if self._child is None else self._child.returncode

    def start(self) -> None:
        self._task = asyncio.create_task(self._keep_alive(), name=f"child {self.process.name}")

    async def _keep_alive(self) -> None:
        pause_s = RESTART_PAUSE_S_MIN
        loop = asyncio.get_running_loop()
        while not self._end.is_set():
            started = loop.time()
            await self._run_once()
            if self._end.is_set():
                return
            if loop.time() - started >= STEADY_S:
                pause_s = RESTART_PAUSE_S_MIN
            self._say(f"ended with {describe_exit(self.exit_code)}; starting again in {pause_s:.1f} s")
            await happened(self._end, pause_s)
            pause_s = min(2 * pause_s, RESTART_PAUSE_S_MAX)

    async def _run_once(self) -> None:
        self._child = await asyncio.create_subprocess_exec(
            *self.process.command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env={**os.environ, **self.process.environment},
            start_new_session=True,
            preexec_fn=partial(die_with, os.getpid()),  # safe: it asks libc alone; gRPC's fork handlers are off
            limit=LOG_LINE_BYTES_MAX,
        )
        self.starts += 1
        self.changed.set()
        assert self._child.stdout is not None
        while True:
            try:
                line = await self._child.stdout.readline()
            except ValueError:  # longer than the limit: the reader has dropped it
                continue
            if not line:
                break
            self._say(line.decode(errors="replace").rstrip("\n"))
        await self._child.wait()
        self.changed.set()

    def _say(self, line: str) -> None:
        self._log.write(f"{self.process.name:<13}| {line}\n")
        self._log.flush()
        self._on_line(self.process.name, line)

    async def stop(self) -> None:
        """SIGTERM, then SIGKILL to its whole session after the grace."""
        self._end.set()
        if self.pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGTERM)
        if self._task is None:
            return
        await asyncio.wait({self._task}, timeout=self.process.stop_grace_s)
        if not self._task.done():
            self._say(f"did not end within {self.process.stop_grace_s:.0f} s of SIGTERM: killed")
            if self.pid is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self.pid, signal.SIGKILL)
        await self._task


def describe_exit(code: int | None) -> str:
    if code is None:
        return "no exit code"
    if code < 0:
        with contextlib.suppress(ValueError):
            return signal.Signals(-code).name
    return f"exit code {code}"
