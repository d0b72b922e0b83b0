"""Processes under measurement: started in a group of their own, their CPU time read, ended."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

TICKS_PER_S = os.sysconf("SC_CLK_TCK")
START_TIMEOUT_S = 60.0
END_TIMEOUT_S = 3.0


class NotStarted(RuntimeError):
    """A process ended, or did not answer in time; the message holds its last words."""


class Process:
    """One process and its children. directory: where its output goes."""

    def __init__(self, name: str, argv: Sequence[str], directory: Path, environ: Mapping[str, str] | None = None) -> None:
        self.name = name
        self._log = directory / f"{name}.log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, **(environ or {})},
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def wait_for(self, port: int, timeout_s: float = START_TIMEOUT_S) -> None:
        """Until something accepts on the port. NotStarted."""
        until = time.monotonic() + timeout_s
        while time.monotonic() < until:
            if self._process.poll() is not None:
                raise NotStarted(f"{self.name} ended: {self._last_words()}")
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
            except OSError:
                time.sleep(0.05)  # another process's socket: there is no event to wait for
            else:
                return
        raise NotStarted(f"{self.name} did not listen on port {port} within {timeout_s:g} s: {self._last_words()}")

    def end(self) -> None:
        """The whole group."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(self._process.pid, number)
            except ProcessLookupError:
                break
            try:
                self._process.wait(END_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                continue
        self._process.wait()

    def _last_words(self) -> str:
        lines = self._log.read_text(errors="replace").strip().splitlines()
        return " / ".join(lines[-3:]) or "no output"


def cpu_s(pids: Sequence[int]) -> float:
    """User and system time of these processes and all below them, so far."""
    parents: dict[int, list[int]] = {}
    times: dict[int, float] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue  # it ended meanwhile
        pid = int(path.parent.name)
        parents.setdefault(int(fields[1]), []).append(pid)
        times[pid] = (int(fields[11]) + int(fields[12])) / TICKS_PER_S
    total, left = 0.0, list(pids)
    while left:
        pid = left.pop()
        total += times.get(pid, 0.0)
        left += parents.get(pid, ())
    return total


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def free_ports(count: int, *, attempts_max: int = 50) -> int:
    """The first of `count` free ports in a row. OSError: none found."""
    for _ in range(attempts_max):
        first = free_port()
        try:
            probes = [socket.create_server(("127.0.0.1", first + offset)) for offset in range(count)]
        except (OSError, OverflowError):
            continue
        for probe in probes:
            probe.close()
        return first
    raise OSError(f"no {count} free ports in a row")
