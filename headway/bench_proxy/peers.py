"""Other projects' routers, each in an environment of its own outside the repository, installed only when asked for."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

PACKAGES = {"sglang": "sglang-router", "vllm": "vllm-router", "litellm": "litellm[proxy]"}
BINARIES = {"sglang": "python", "vllm": "vllm-router", "litellm": "litellm"}
PROOFS = {"sglang": "sglang-router", "vllm": "vllm-router", "litellm": "litellm"}
"""What is there once the installation is complete."""


class NotInstalled(RuntimeError):
    """pip did not manage; the message holds its last line."""


def home() -> Path:
    """$HEADWAY_BENCH_HOME, or headway-bench in the user's cache directory."""
    return Path(os.environ.get("HEADWAY_BENCH_HOME") or Path.home() / ".cache" / "headway-bench")


def binary(peer: str) -> str | None:
    """The program that starts it; None: not installed."""
    found = home() / peer / "bin"
    return str(found / BINARIES[peer]) if (found / PROOFS[peer]).exists() else None


def install(peer: str) -> None:
    """Does nothing where it is there. NotInstalled."""
    if binary(peer) is not None:
        return
    where = home() / peer
    print(f"installing {PACKAGES[peer]} in {where}", file=sys.stderr)
    for argv in (
        [sys.executable, "-m", "venv", str(where)],
        [str(where / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", PACKAGES[peer]],
    ):
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        if done.returncode:
            lines = (done.stderr or done.stdout).strip().splitlines()
            raise NotInstalled(f"{PACKAGES[peer]}: {lines[-1] if lines else 'pip failed'}")
