"""The process that prepares long prompts, seen from the data plane's event loop.

A thread of the data plane shares the interpreter with the event loop, which waits for it again and again while a prompt of
128,000 tokens is read and hashed. So bodies above `APART_BYTES_MIN` go whole to a process of their own (`prompt_worker`), and
what routing asks for comes back: the fields, the number of tokens, the block hashes. The loop only writes and reads a socket.

Nothing depends on that process: what it cannot take, or does not answer, the caller of `submit` does in a thread, as it does
while the process starts. One that ends is started again, later each time; one that does not answer in time is killed.

A long conversation stays with it: it knows the tokens and hashes of the turns before (`contract.tokens.segments`, `chains`).
"""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from threading import Thread
from typing import Any

import msgspec

from dataplane.metrics import Metrics
from dataplane.prompt_messages import NOT_DONE, SUSPECT, Answer, Job, Loaded, Models, Reports, frame
from dataplane.prompt_worker import THREADS
from dataplane.prompts import ModelSeen
from runtime.tasks import happened

log = logging.getLogger(__name__)

APART_BYTES_MIN = 64 * 1024
"""Longer bodies go to the process: 10,000 tokens of English. There it costs no more CPU than a thread, 0.1 ms more below."""
RESTART_S_MIN = 0.5
RESTART_S_MAX = 30.0
STABLE_S = 60.0
"""A process that lived so long is started again as quickly as the first one."""
SAY_AGAIN_S = 60.0
"""A tokenizer that the process could not load is asked for again after this time."""
ANSWER_S_MAX = 5.0
ANSWER_BYTES_PER_S_MIN = 256 * 1024
"""A body is answered within ANSWER_S_MAX and a second for each so many bytes, or the process is taken to hang."""
END_S_MAX = 2.0
"""How long the process may take to end when it is told to."""
_CRASHES = frozenset((signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGILL, signal.SIGFPE))
"""Ends that what it worked on may have caused."""


@dataclass(slots=True, eq=False)
class _Order:
    path: str
    body: bytes
    done: Callable[[Answer], None]
    deadline: asyncio.TimerHandle | None = None


class PromptProcess:
    """All methods are called on the event loop. command: starts the process, its standard input is the socket to it;
    answer_s_max, restart_s_min: as the constants say."""

    def __init__(
        self,
        metrics: Metrics,
        *,
        log_level: str = "info",
        log_format: str = "text",
        command: Sequence[str] = (),
        answer_s_max: float = ANSWER_S_MAX,
        restart_s_min: float = RESTART_S_MIN,
    ) -> None:
        self._metrics = metrics
        self._command = tuple(command) or (sys.executable, "-m", "dataplane.prompt_worker", log_level, log_format)
        self._answer_s_max = answer_s_max
        self._restart_s_min = restart_s_min
        self._models = Models(())
        self._said_at = 0.0
        self._loaded: set[str] = set()
        self._life: asyncio.Task[None] | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._transport: asyncio.Transport | None = None
        self._closing = asyncio.Event()
        self._ids = 0
        self._waiting: deque[_Order] = deque()
        self._at_work: dict[int, _Order] = {}

    @property
    def ready(self) -> bool:
        """It runs, and has a tokenizer."""
        return bool(self._loaded) and self._transport is not None

    @property
    def pending(self) -> int:
        """Prompts that it has not answered yet."""
        return len(self._at_work) + len(self._waiting)

    @property
    def pid(self) -> int | None:
        """Of the process that runs; None: none does."""
        return self._process.pid if self._process is not None else None

    def see(self, models: Iterable[ModelSeen], only: str) -> None:
        """The fleet's models. The first one with a tokenizer starts the process. only: of requests that name none."""
        seen = Models(tuple(model for model in models if model.tokenizer), only)
        now = asyncio.get_running_loop().time()
        missing = any(model.tokenizer not in self._loaded for model in seen.models)
        if seen != self._models or (missing and now - self._said_at > SAY_AGAIN_S):
            self._models = seen
            self._say_models()
        if self._life is None and seen.models and not self._closing.is_set():
            self._life = asyncio.get_running_loop().create_task(self._live(), name="prompt-process")

    def submit(self, path: str, body: bytes, done: Callable[[Answer], None]) -> None:
        """Calls `done`, later, with what became of it; NOT_DONE: nothing did."""
        self._waiting.append(_Order(path, body, done))
        self._send_on()

    async def stop(self) -> None:
        """The process ends, or is killed."""
        self._closing.set()
        if self._life is None:
            return
        self._hang_up()
        with suppress(TimeoutError):
            async with asyncio.timeout(END_S_MAX):
                await asyncio.shield(self._life)
        self._kill()
        self._life.cancel()
        await asyncio.gather(self._life, return_exceptions=True)
        self._forsake(suspect=False)

    # --- the process ---

    async def _live(self) -> None:
        """Starts it, and again when it ended."""
        loop, pause_s = asyncio.get_running_loop(), self._restart_s_min
        while not self._closing.is_set():
            began = loop.time()
            try:
                why = _told(await self._one_life())
            except OSError as error:
                why = f"cannot be started: {error}"
            if self._closing.is_set():
                return
            if loop.time() - began > STABLE_S:
                pause_s = self._restart_s_min
            self._metrics.prompt_process_ends.add()
            log.error("the process for long prompts ended", extra={"f": {"why": why, "restart_in_s": pause_s}})
            await happened(self._closing, pause_s)
            pause_s = min(RESTART_S_MAX, 2 * pause_s)

    async def _one_life(self) -> int:
        """From its start to its end; its exit code. OSError: it cannot be started."""
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair()
        started: asyncio.Future[subprocess.Popen[bytes]] = loop.create_future()
        ended: asyncio.Future[int] = loop.create_future()
        keeper = Thread(target=_keep, args=(self._command, theirs, loop, started, ended), name="prompt-process", daemon=True)
        try:
            keeper.start()
            process = self._process = await started
            self._transport, _ = await loop.create_unix_connection(lambda: _Line(self, process), sock=ours)
        except BaseException:
            ours.close()
            raise
        if self._closing.is_set():
            self._hang_up()
        self._say_models()
        code = await ended
        self._hang_up()
        self._process = None
        self._forsake(suspect=-code in _CRASHES)
        return code

    def _hang_up(self) -> None:
        self._loaded.clear()
        if self._transport is not None:
            self._transport.abort()
            self._transport = None

    def _kill(self) -> None:
        if self._process is not None:
            self._process.kill()

    # --- what it does ---

    def _say_models(self) -> None:
        if self._transport is not None:
            self._said_at = asyncio.get_running_loop().time()
            self._transport.write(frame(self._models))

    def _send_on(self) -> None:
        """No more than it works on at once: what waits here can be done elsewhere when it ends."""
        while self._waiting and len(self._at_work) < THREADS:
            order = self._waiting.popleft()
            if self._transport is None:
                self._finish(order, NOT_DONE)
                continue
            loop = asyncio.get_running_loop()
            self._ids += 1
            self._at_work[self._ids] = order
            seconds_max = self._answer_s_max + len(order.body) / ANSWER_BYTES_PER_S_MIN
            order.deadline = loop.call_later(seconds_max, self._hangs, seconds_max)
            self._transport.write(frame(Job(self._ids, order.path), len(order.body)))
            self._transport.write(order.body)

    def reported(self, report: Loaded | Answer) -> None:
        """By the process."""
        if isinstance(report, Loaded):
            self._loaded.add(report.tokenizer)
            log.info("long prompts are prepared in a process of their own", extra={"f": {"pid": self.pid}})
            return
        order = self._at_work.pop(report.id, None)
        if order is not None:
            self._metrics.prompt_process.observe(report.seconds)
            self._finish(order, report)
        self._send_on()

    def lost(self, process: subprocess.Popen[bytes]) -> None:
        """The socket to it broke: it has ended, or is of no use."""
        if self._transport is not None and process is self._process:
            self._hang_up()
            process.kill()

    def _hangs(self, after_s: float) -> None:
        log.error("the process for long prompts does not answer", extra={"f": {"after_s": round(after_s, 1)}})
        self._kill()
        self._hang_up()
        self._forsake(suspect=True)

    def _forsake(self, *, suspect: bool) -> None:
        """Nobody will answer any more. suspect: what was begun may be the reason, and goes without block hashes."""
        if suspect and self._at_work:
            log.error("requests go without block hashes", extra={"f": {"requests": len(self._at_work)}})
        orders = [(order, SUSPECT if suspect else NOT_DONE) for order in self._at_work.values()]
        orders += [(order, NOT_DONE) for order in self._waiting]
        self._at_work.clear()
        self._waiting.clear()
        for order, answer in orders:
            self._finish(order, answer)

    def _finish(self, order: _Order, answer: Answer) -> None:
        if order.deadline is not None:
            order.deadline.cancel()
        asyncio.get_running_loop().call_soon(order.done, answer)


class _Line(asyncio.Protocol):
    """To `process`, which is of no use without it."""

    def __init__(self, owner: PromptProcess, process: subprocess.Popen[bytes]) -> None:
        self._owner = owner
        self._process = process
        self._reports = Reports()

    def data_received(self, data: bytes) -> None:
        try:
            reports = self._reports.feed(data)
        except msgspec.DecodeError:
            log.exception("the process for long prompts speaks another language")
            self._process.kill()
            return
        for report in reports:
            self._owner.reported(report)

    def connection_lost(self, error: Exception | None) -> None:
        self._owner.lost(self._process)


def _keep(
    command: Sequence[str],
    line: socket.socket,
    loop: asyncio.AbstractEventLoop,
    started: asyncio.Future[subprocess.Popen[bytes]],
    ended: asyncio.Future[int],
) -> None:
    """In a thread. The loop's own way to start a process copies the memory map of this one, and holds the loop for 3 ms."""
    try:
        with line:
            process = subprocess.Popen(command, stdin=line.fileno())
    except OSError as error:
        _tell(loop, started, error)
        return
    _tell(loop, started, process)
    _tell(loop, ended, process.wait())


def _tell(loop: asyncio.AbstractEventLoop, future: asyncio.Future[Any], found: object) -> None:
    def tell() -> None:
        if future.done():
            return
        if isinstance(found, OSError):
            future.set_exception(found)
        else:
            future.set_result(found)

    with suppress(RuntimeError):  # the loop has ended
        loop.call_soon_threadsafe(tell)


def _told(code: int) -> str:
    return f"exit code {code}" if code >= 0 else signal.Signals(-code).name
