"""The life of an asyncio process: uvloop, signals, readiness, an orderly end.

    async def main(life: Life) -> None:
        server = await start(...)
        life.ready(f"listening on {server.address}")
        await life.ending.wait()          # SIGTERM or SIGINT
        await server.drain(timeout_s=...)

    run(main, "dataplane")

The first signal asks for the orderly end, the second ends at once (exit code 130). SIGUSR1 asks what it waits for (telling).
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import resource
import signal
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import uvloop

from runtime import settings as settings_module
from runtime import telling

log = logging.getLogger(__name__)


class Life:
    """What a process's main coroutine sees of the outside."""

    def __init__(self) -> None:
        self.ending = asyncio.Event()
        """Set once the process was asked to end."""
        self.tells: dict[str, Callable[[], object]] = {}
        """What parts of the process say when it is asked by SIGUSR1 (see telling)."""
        self._tasks: set[asyncio.Task[Any]] = set()
        self.failure: BaseException | None = None

    def ready(self, message: str) -> None:
        """Say so: whoever started us may wait for this line."""
        log.info("ready: %s", message)

    def spawn(self, coroutine: Coroutine[Any, Any, Any], *, name: str) -> asyncio.Task[Any]:
        """A task that must not end by an exception: if it does, the process ends, loudly."""
        task = asyncio.create_task(coroutine, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if task.cancelled():
            return
        error = task.exception()
        if error is not None:
            log.error("task %s failed", task.get_name(), exc_info=error)
            self.failure = self.failure or error
            self.ending.set()

    async def cancel_all(self) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


FILES_MAX = 1 << 20


def allow_files() -> int:
    """As many open files as the system lets this process have; how many.

    Every request that passes through takes two sockets, and the usual limit is 1,024.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = FILES_MAX if hard == resource.RLIM_INFINITY else min(hard, FILES_MAX)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            return wanted
    return soft


def run(main: Callable[[Life], Awaitable[None]], process: str) -> None:
    """Run until `main` returns. Exit code 0; 1 where a task failed; 2 where an address was taken."""
    code = 0
    allow_files()

    async def body() -> None:
        nonlocal code
        life = Life()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, _on_signal, life)
        telling.listen(loop, life.tells)
        try:
            await main(life)
        finally:
            await life.cancel_all()
        if life.failure is not None:
            code = 1

    try:
        uvloop.run(body())
    except OSError as error:
        if error.errno in (errno.EADDRINUSE, errno.EADDRNOTAVAIL, errno.EACCES):
            settings_module.fail(process, _address_error(error))
        raise
    with contextlib.suppress(OSError):
        logging.shutdown()
    if code:
        raise SystemExit(code)


def _address_error(error: OSError) -> str:
    reason = {
        errno.EADDRINUSE: "is taken by another process",
        errno.EADDRNOTAVAIL: "is not an address of this machine",
        errno.EACCES: "needs more privileges",
    }[error.errno or errno.EADDRINUSE]
    return f"cannot listen: the address {reason} ({error.strerror or error})"


def _on_signal(life: Life) -> None:
    if life.ending.is_set():
        os._exit(130)
    life.ending.set()
