"""Several runs at once, each in a process of its own that says how far it is."""

from __future__ import annotations

import multiprocessing
from collections import deque
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess

from simulation.checks import Violation
from simulation.replicas import Replicated
from simulation.world import Report, Setup, Simulation

PROGRESS_STEPS = 200
"""Messages of progress a run sends at most, about."""


class ChildDied(Exception):
    """A run's process ended without a word: killed, or out of memory."""


def play(setups: Sequence[Setup], processes: int, progress: Callable[[int, int], None]) -> list[Report]:
    """All runs, `processes` at a time, results in the order of `setups`.

    progress: (position, requests ended so far). Violation: the first one found; what else runs is ended. ChildDied.
    """
    context = multiprocessing.get_context("spawn")
    waiting = deque(range(len(setups)))
    running: dict[Connection, tuple[int, SpawnProcess]] = {}
    reports: dict[int, Report] = {}
    try:
        while waiting or running:
            while waiting and len(running) < processes:
                place = waiting.popleft()
                receive, send = context.Pipe(duplex=False)
                process = context.Process(target=_child, args=(setups[place], send), daemon=True)
                process.start()
                send.close()
                running[receive] = place, process
            for ready in wait(list(running)):
                assert isinstance(ready, Connection)
                place, process = running[ready]
                said = _read(ready, setups[place])
                if isinstance(said, int):
                    progress(place, said)
                    continue
                if isinstance(said, Exception):
                    raise said
                reports[place] = said
                del running[ready]
                process.join()
    finally:
        for _, process in running.values():
            process.terminate()
            process.join()
    return [reports[place] for place in range(len(setups))]


def _read(connection: Connection, setup: Setup) -> int | Report | Exception:
    try:
        said: int | Report | Exception = connection.recv()
    except EOFError:
        return ChildDied(f"the process that simulated {setup.policy} ended without a word")
    return said


def _child(setup: Setup, send: Connection) -> None:
    every = max(1, len(setup.jobs) // PROGRESS_STEPS)

    def progress(ended: int) -> None:
        if ended % every == 0:
            send.send(ended)

    try:
        simulation = Simulation(setup, progress) if setup.controls == 1 else Replicated(setup, progress)
        send.send(simulation.run())
    except Violation as violation:
        send.send(violation)
