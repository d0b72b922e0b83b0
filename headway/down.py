"""`headway down`: ends the stack that `headway up` started in this directory."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time

from headway import runfile
from headway.errors import UsageError

END_TIMEOUT_S = 40.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """None."""


def run(args: argparse.Namespace) -> int:
    facts = runfile.read()
    if facts is None:
        raise UsageError("no stack is running here (started with `headway up` in this directory)")
    pid = int(facts["pid"])
    os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + END_TIMEOUT_S
    while time.monotonic() < deadline:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            print("ended.")
            return 0
        time.sleep(0.05)  # another process's end: nothing to wait on but its pid
    print(f"headway down: process {pid} did not end within {END_TIMEOUT_S:.0f} s", file=sys.stderr)
    return 1
