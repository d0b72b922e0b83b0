"""`python -m dataplane`: the HTTP front of a fleet."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import sys
from dataclasses import replace

from dataplane import state
from dataplane.app import App
from dataplane.checking import check_files
from dataplane.keys import KeysError
from dataplane.processes import LIMITS_VARIABLE, NUMBER_VARIABLE, PARENT_VARIABLE, PORT_VARIABLE, probe, reserve, supervise
from dataplane.settings import Settings
from dataplane.shared_limits import SharedTable, make_file
from runtime import log
from runtime.clock import SystemClock
from runtime.parents import end_with
from runtime.service import Life, run
from runtime.settings import fail, read

END_EXTRA_S = 5.0
READY_POLL_S = 0.05
GC_OBJECTS = 50_000
"""New objects before the youngest generation is collected."""
SWITCH_INTERVAL_S = 0.0001
"""How long a thread that tokenises may hold the interpreter while the event loop waits for it: with 128,000 tokens, most of the
loop's longest wait. Python's own 5 ms would be that wait."""


def main() -> None:
    number = os.environ.pop(NUMBER_VARIABLE, None)  # set by a parent; not a setting
    port = os.environ.pop(f"{PORT_VARIABLE}_SHARED", None)
    limits = os.environ.pop(LIMITS_VARIABLE, None)
    parent = os.environ.pop(PARENT_VARIABLE, None)
    if parent is not None:
        end_with(int(parent), signal.SIGTERM)
    settings = read(Settings, "dataplane")
    log.configure(
        "dataplane" if number is None else f"dataplane/{number}", level=settings.log_level, format=settings.log_format
    )
    if number is None and settings.processes > 1:
        run(lambda life: _parent(life, settings), "dataplane")
    else:
        run(lambda life: _serve(life, settings, number, port, limits), "dataplane")


def _tune_gc() -> None:
    """What is loaded by now stays: a full collection need not walk it, and the others come rarely."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(GC_OBJECTS, 20, 100)


async def _serve(life: Life, settings: Settings, number: str | None, shared_port: str | None, limits: str | None) -> None:
    """number: of this child, None for a process alone; limits: the file that holds what keys have used in all children."""
    if shared_port is not None:
        settings = _with_port(settings, int(shared_port))
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    if number is None:
        _check(settings)
    try:
        table = None if limits is None else SharedTable(int(limits), number=int(number or 0), processes=settings.processes)
        app = App(settings, SystemClock(), table)
    except (ValueError, OSError) as error:
        fail("dataplane", _why(error, settings))
    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, app.reload)
    life.tells["requests"] = lambda: state.of(app)
    if number is None and not settings.share_port:
        probe(settings.host, settings.port)
    port = await app.start(reuse_port=True, process_number=int(number or 0))
    _tune_gc()
    life.ready(_url(settings, port))
    await life.ending.wait()
    await app.stop()
    if app.prompts.loading:  # the interpreter's end aborts the process where it meets a thread amid Rust
        logging.shutdown()
        os._exit(1 if life.failure is not None else 0)


async def _parent(life: Life, settings: Settings) -> None:
    _check(settings)
    if settings.admin_port and not settings.share_port:
        for number in range(settings.processes):
            probe(settings.admin_host or settings.host, settings.admin_port + number)
    with reserve(settings.host, settings.port, share=settings.share_port) as reserved:
        port = reserved.getsockname()[1]
        if not settings.share_port:  # else whoever answers may be the predecessor: each process says so for itself
            life.spawn(_say_ready(life, settings, port), name="ready")
        environ = {**os.environ, f"{PORT_VARIABLE}_SHARED": str(port)}
        limits = make_file(settings.processes) if settings.keys_file else None
        files = () if limits is None else (limits,)
        if limits is not None:
            environ[LIMITS_VARIABLE] = str(limits)
        end_s = settings.drain_timeout_s + END_EXTRA_S
        await supervise(life, settings.processes, sys.argv[1:], environ, end_timeout_s=end_s, files=files)


async def _say_ready(life: Life, settings: Settings, port: int) -> None:
    """As soon as one of the processes accepts; the others share its port."""
    while not life.ending.is_set():
        try:
            _, writer = await asyncio.open_connection(settings.host, port)
        except OSError:
            await asyncio.sleep(READY_POLL_S)
            continue
        writer.close()
        life.ready(f"{_url(settings, port)} by {settings.processes} processes")
        return


def _check(settings: Settings) -> None:
    try:
        check_files(settings)
    except (ValueError, OSError) as error:
        fail("dataplane", _why(error, settings))


def _why(error: Exception, settings: Settings) -> str:
    if isinstance(error, KeysError):
        return f"--keys-file, --upstream-keys-file: {error}"
    if isinstance(error, OSError) and error.filename is not None:
        return f"cannot read {error.filename}: {error.strerror}"
    return str(error)


def _url(settings: Settings, port: int) -> str:
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    return f"{'https' if settings.tls_cert else 'http'}://{host}:{port}"


def _with_port(settings: Settings, port: int) -> Settings:
    return replace(settings, port=port)


if __name__ == "__main__":
    main()
