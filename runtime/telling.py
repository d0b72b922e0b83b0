"""What a process says about itself when it is asked by SIGUSR1: where it waits, and for what.

Three things go to standard error: the Python stacks of all threads, even where the event loop stands still (`faulthandler`);
what parts of the process have to tell (`Life.tells`); every task of the event loop, with the line that it waits at. Each is
bounded, so that a process of ten thousand requests can be asked, too. Nothing changes in the process, and it goes on.
"""

from __future__ import annotations

import asyncio
import faulthandler
import logging
import re
import signal
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import PurePath
from types import FrameType
from typing import Any

import msgspec

log = logging.getLogger(__name__)

SIGNAL = signal.SIGUSR1
PART_CHARS_MAX = 8_000
TASK_KINDS_MAX = 40
FRAMES_MAX = 6
"""Of a task, the innermost."""

Tells = Mapping[str, Callable[[], object]]
"""By the name of a part: what it has to tell, anything that JSON can say."""

_NUMBER = re.compile(r"\d+")


def listen(loop: asyncio.AbstractEventLoop, tells: Tells) -> None:
    """From now on the process can be asked. tells: may still grow."""
    loop.add_signal_handler(SIGNAL, tell, tells)
    try:
        faulthandler.register(SIGNAL, all_threads=True, chain=True)
    except (AttributeError, OSError, RuntimeError, ValueError):  # standard error is no file (tests)
        log.debug("stacks of threads cannot be shown")


def tell(tells: Tells) -> None:
    """Into the log, now."""
    for name, part in list(tells.items()):
        log.warning("state of %s: %s", name, _told(part))
    for line, count in tasks().most_common(TASK_KINDS_MAX):
        log.warning("%d of %s", count, line)


def _told(part: Callable[[], object]) -> str:
    try:
        text = msgspec.json.encode(part(), enc_hook=str).decode()
    except Exception as error:  # whoever asks has trouble already
        return f"cannot be told: {type(error).__name__}: {error}"
    return text if len(text) <= PART_CHARS_MAX else text[:PART_CHARS_MAX] + "..."


def tasks() -> Counter[str]:
    """How many tasks of the running loop wait at the same lines, by their name and these lines, the innermost first."""
    return Counter(f"task {_NUMBER.sub('*', task.get_name())}: {_lines(task.get_coro())}" for task in asyncio.all_tasks())


def _lines(awaited: Any) -> str:
    lines: list[str] = []
    while awaited is not None and len(lines) < 100:
        frame = next((found for name in ("cr_frame", "gi_frame", "ag_frame") if (found := getattr(awaited, name, None))), None)
        if isinstance(frame, FrameType):
            code = frame.f_code
            lines.append(f"{PurePath(code.co_filename).name}:{frame.f_lineno} {code.co_name}")
        awaited = next(
            (found for name in ("cr_await", "gi_yieldfrom", "ag_await") if (found := getattr(awaited, name, None))), None
        )
    return " < ".join(reversed(lines[-FRAMES_MAX:])) or "running"
