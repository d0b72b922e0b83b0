"""Several processes on one port: each listens with SO_REUSEPORT, a parent starts them, restarts one that dies, ends them."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
from collections.abc import Mapping, Sequence

from runtime.service import Life
from runtime.tasks import happened

log = logging.getLogger(__name__)

RESTART_S_MIN = 0.5
RESTART_S_MAX = 10.0
STABLE_S = 30.0
NUMBER_VARIABLE = "HEADWAY_DATAPLANE_PROCESS_NUMBER"
PARENT_VARIABLE = "HEADWAY_DATAPLANE_PARENT"
PORT_VARIABLE = "HEADWAY_DATAPLANE_PORT"
LIMITS_VARIABLE = "HEADWAY_DATAPLANE_LIMITS_FILE"


def probe(host: str, port: int) -> None:
    """Every listener shares its port, so that a successor can take over; one that was not told to must not. OSError: taken."""
    if not port:
        return
    with socket.socket(_family(host), socket.SOCK_STREAM) as probing:
        probing.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probing.bind((host, port))


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def reserve(host: str, port: int, *, share: bool = False) -> socket.socket:
    """A bound socket that shares its port but takes no connections. OSError: somebody else has the port (unless `share`)."""
    if not share:
        probe(host, port)
    reserved = socket.socket(_family(host), socket.SOCK_STREAM)
    reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    reserved.bind((host, port))
    return reserved


async def supervise(
    life: Life,
    processes: int,
    argv: Sequence[str],
    environ: Mapping[str, str],
    *,
    end_timeout_s: float,
    files: Sequence[int] = (),
) -> None:
    """Until `life` ends; each child gets its number, and inherits `files`. The children end within the bound or are killed.
    Where this process is killed they end by themselves, in order.

    SIGHUP goes on to them.
    """
    children: dict[int, asyncio.subprocess.Process] = {}
    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, _hang_up, children)
    async with asyncio.TaskGroup() as group:
        for number in range(processes):
            group.create_task(_keep(life, number, argv, environ, end_timeout_s, children, files))


def _hang_up(children: Mapping[int, asyncio.subprocess.Process]) -> None:
    for child in children.values():
        if child.returncode is None:
            child.send_signal(signal.SIGHUP)


async def _keep(
    life: Life,
    number: int,
    argv: Sequence[str],
    environ: Mapping[str, str],
    end_timeout_s: float,
    children: dict[int, asyncio.subprocess.Process],
    files: Sequence[int],
) -> None:
    loop, pause_s = asyncio.get_running_loop(), RESTART_S_MIN
    while not life.ending.is_set():
        began = loop.time()
        env = {**environ, NUMBER_VARIABLE: str(number), PARENT_VARIABLE: str(os.getpid())}
        child = await asyncio.create_subprocess_exec(sys.executable, "-m", "dataplane", *argv, env=env, pass_fds=files)
        children[number] = child
        gone = asyncio.ensure_future(child.wait())
        ending = asyncio.ensure_future(life.ending.wait())
        await asyncio.wait((gone, ending), return_when=asyncio.FIRST_COMPLETED)
        if not gone.done():
            await _end(child, end_timeout_s)
            return
        ending.cancel()
        pause_s = RESTART_S_MIN if loop.time() - began > STABLE_S else min(RESTART_S_MAX, 2 * pause_s)
        log.error("a process ended", extra={"f": {"number": number, "code": child.returncode, "restart_in_s": pause_s}})
        await happened(life.ending, pause_s)


async def _end(child: asyncio.subprocess.Process, timeout_s: float) -> None:
    child.terminate()
    try:
        async with asyncio.timeout(timeout_s):
            await child.wait()
    except TimeoutError:
        child.kill()
        await child.wait()
