"""The engine and the load: C where there is a compiler, else the same in Python.

Which it was is printed with the figures: a Python load is a third as fast and waits longer for its own loop.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
COMPILE_TIMEOUT_S = 60.0
LOAD_EXTRA_S = 30.0


class LoadFailed(RuntimeError):
    """The load program ended badly; the message holds its output."""


@dataclass(frozen=True)
class Result:
    """What one run of the load saw. Times in microseconds, to the first body byte."""

    responses: int
    errors: int
    seconds: float
    first_us_p50: float
    first_us_p99: float
    first_us_mean: float


@dataclass(frozen=True)
class Programs:
    backend: tuple[str, ...]
    load: tuple[str, ...]
    language: str

    def run_load(self, port: int, requests: Path, *, clients: int, seconds: float, rate: float = 0.0) -> Result:
        """rate 0: closed loop. LoadFailed."""
        argv = [*self.load, str(port), str(clients), str(seconds), str(rate), str(requests)]
        try:
            done = subprocess.run(argv, capture_output=True, text=True, timeout=seconds + LOAD_EXTRA_S, check=True)
        except subprocess.CalledProcessError as error:
            raise LoadFailed((error.stderr or error.stdout).strip() or f"exit code {error.returncode}") from error
        except subprocess.TimeoutExpired as error:
            raise LoadFailed(f"no end within {error.timeout:g} s") from error
        return _result(done.stdout.split())


def _result(words: Sequence[str]) -> Result:
    responses, errors, *times = words
    seconds, p50, p99, mean = map(float, times)
    return Result(int(responses), int(errors), seconds, p50, p99, mean)


def build(directory: Path, *, compiler: str = "cc") -> Programs:
    """Compiled into `directory` where the compiler is on the PATH and works."""
    found = shutil.which(compiler)
    if found and all(_compiles(found, name, directory) for name in ("backend", "load")):
        return Programs((str(directory / "backend"),), (str(directory / "load"),), "C")
    return Programs(
        (sys.executable, "-m", "headway.bench_proxy.backend"), (sys.executable, "-m", "headway.bench_proxy.load"), "Python"
    )


def _compiles(compiler: str, name: str, directory: Path) -> bool:
    argv = [compiler, "-O2", "-o", str(directory / name), str(HERE / f"{name}.c")]
    try:
        return subprocess.run(argv, capture_output=True, timeout=COMPILE_TIMEOUT_S, check=False).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False
