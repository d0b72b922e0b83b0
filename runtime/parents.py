"""Processes that end with whoever started them: a killed parent leaves nobody behind who holds its port."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import Callable

_PR_SET_PDEATHSIG = 1


def _libc_prctl() -> Callable[..., int] | None:
    if not sys.platform.startswith("linux"):
        return None
    with contextlib.suppress(OSError, AttributeError):
        return ctypes.CDLL(None, use_errno=True).prctl
    return None


_prctl = _libc_prctl()


def end_with(parent: int, number: signal.Signals) -> None:
    """This process gets the signal when the thread of its parent that started it ends, or now, if that has ended already.

    parent: its process id. Only Linux has this.
    """
    if _prctl is not None:
        _prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0)
        if os.getppid() != parent:
            os.kill(os.getpid(), number)
