"""How many callers are reset when a data plane is replaced by another on its port, listening sockets handed over or not.

Method: data planes with `--processes 1`, then 2, each replaced by the next (`--share-port`, ready, SIGTERM to the old one),
while callers make a connection of their own for every request (GET /health) in this process. `apart`: the successor names
the same address in another spelling, so that it finds no offer and listens for itself, as another user's or container's
would. Where `net.ipv4.tcp_migrate_req` is 1, Linux hands connections over in both cases.
"""

from __future__ import annotations

import asyncio
import sys
from collections import Counter

from headway.bench_proxy.processes import free_port
from tests.dataplane_process import until_ready

REPLACED = 20
CALLERS = 64
HOSTS = {"handed over": ("127.0.0.1", "127.0.0.1"), "apart": ("127.0.0.1", "127.1")}
"""Of every other data plane."""
_ASKED = b"GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"


async def _calls(port: int, ends: Counter[str], stopping: asyncio.Event) -> None:
    while not stopping.is_set():
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(_ASKED)
            answer = await reader.read()
            writer.close()
        except OSError:
            ends["reset"] += 1
        else:
            ends["answered" if answer.startswith(b"HTTP/1.1 200") else "cut"] += 1


async def _started(host: str, port: int, processes: int, *, share: bool) -> asyncio.subprocess.Process:
    """Returns once all of its processes say that they are ready."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "dataplane", "--host", host, "--port", str(port), "--processes", str(processes)),
        *("--endpoint", "w=http://127.0.0.1:1", "--drain-idle-s", "0.1"),
        *(("--share-port",) if share else ()),
        stderr=asyncio.subprocess.PIPE,
    )
    await until_ready(process, processes)
    return process


async def _ended(process: asyncio.subprocess.Process) -> None:
    process.terminate()
    await process.communicate()


async def _replaced(hosts: tuple[str, str], processes: int) -> Counter[str]:
    port, ends, stopping = free_port(), Counter[str](), asyncio.Event()
    serving = await _started(hosts[0], port, processes, share=False)
    callers = [asyncio.create_task(_calls(port, ends, stopping)) for _ in range(CALLERS)]
    for number in range(1, REPLACED + 1):
        successor = await _started(hosts[number % 2], port, processes, share=True)
        await _ended(serving)
        serving = successor
    stopping.set()
    await asyncio.gather(*callers)
    await _ended(serving)
    return ends


def run() -> None:
    print(__doc__)
    for kind, hosts in HOSTS.items():
        for processes in (1, 2):
            ends = asyncio.run(_replaced(hosts, processes))
            ended = f"{REPLACED * processes} processes ended under {CALLERS} callers"
            print(f"  {kind:12} {ended}: {ends['answered']:,} answered, {ends['reset']} reset, {ends['cut']} cut")
