"""Ports for servers of tests: below those that the kernel gives to outgoing connections, one of which could take a port between
the moment it is found free and the moment its server listens."""

from __future__ import annotations

import os
import random
import socket

FIRST, LAST = 10_000, 32_000
ATTEMPTS_MAX = 100


def free_ports(count: int = 1) -> int:
    """The first of `count` neighbouring ports that are free."""
    drawn = random.SystemRandom()  # whoever runs beside us must not draw the same
    lowest, end = share()
    for _ in range(ATTEMPTS_MAX):
        first = drawn.randrange(lowest, end - count)
        if all(is_free(first + offset) for offset in range(count)):
            return first
    raise AssertionError(f"no {count} neighbouring free ports")


def share() -> tuple[int, int]:
    """The range for this process: of several that run tests side by side each has its own, since nobody listens at a port that
    was found free until the server under test is up."""
    processes = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    number = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % processes
    size = (LAST - FIRST) // processes
    return FIRST + number * size, FIRST + (number + 1) * size


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
