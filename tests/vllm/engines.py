"""Real vLLM servers for a test: started by the recipe, killed and started again."""

from __future__ import annotations

import http.client
import os
import signal
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.e2e.stack import command_line
from tests.ports import free_ports, is_free
from tests.waiting import wait_until

RECIPE = Path(__file__).resolve().parents[3] / "shared" / "vllm_real" / "start_tiny_vllm.sh"
START_S_MAX = 240.0
HOME = Path(os.environ.get("VLLM_REAL_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vllm_real")
TOKENIZER = HOME / "models" / "tiny"
"""The engine reports its model path relative to its own working directory: the router is told the whole one."""


class Engine:
    """One `vllm serve`: HTTP on `port`, KV events on port + 1000, replay on port + 2000."""

    def __init__(self, port: int, *arguments: str) -> None:
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self._arguments = arguments
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Returns at once; `wait_up` says when it serves."""
        self._process = subprocess.Popen(
            [str(RECIPE), "--port", str(self.port), *self._arguments],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            env={**os.environ, "PYTHON": os.environ.get("PYTHON", "python3.11")},
        )

    def is_up(self) -> bool:
        try:
            with urllib.request.urlopen(self.url + "/health", timeout=2) as reply:
                return bool(reply.status == 200)
        except (OSError, http.client.HTTPException):
            return False

    def wait_up(self) -> None:
        wait_until(self.is_up, seconds_max=START_S_MAX, what=f"vLLM on port {self.port}")

    def kill(self) -> None:
        """SIGKILL to every process of it."""
        assert self._process is not None
        for pid in self._session():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self._process.wait()
        wait_until(lambda: not self._session(), seconds_max=20, what="vLLM's processes gone")

    def _session(self) -> list[int]:
        """Its processes: the API server, the engine core and the worker share a session."""
        assert self._process is not None
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            pid = int(entry.name)
            try:
                if os.getsid(pid) == self._process.pid and command_line(pid):
                    found.append(pid)
            except ProcessLookupError:
                continue
        return found


@contextmanager
def some_engines(count: int) -> Iterator[list[Engine]]:
    """Block size 32 (the CPU's), 400 blocks each: small enough that a few hundred turns evict."""
    engines = [Engine(_port(), "--blocks", "400") for _ in range(count)]
    try:
        for engine in engines:
            engine.start()
        for engine in engines:
            engine.wait_up()
        yield engines
    finally:
        for engine in engines:
            engine.kill()


def _port() -> int:
    """One whose event and replay ports are free, too, and not promised to another engine of this run."""
    for _ in range(200):
        port = free_ports(1)
        ports = {port, port + 1000, port + 2000}
        if port < 60_000 and not ports & _taken and all(is_free(other) for other in ports):
            _taken.update(ports)
            return port
    raise AssertionError("no free ports")


_taken: set[int] = set()
