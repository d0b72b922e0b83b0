"""What gRPC has left to say to the event loop of a test that is over.

All event loops of a process share one poller of gRPC. Whichever loop runs takes what has come for all of them, and hands the
others theirs by `call_soon_threadsafe`. That raises where the other loop was closed in the meantime, as a test's is, and what
had come behind it is not handed out before something else comes: on a busy machine a stream of the next test stood still for
20 s. Our processes have one loop; this is about tests alone.
"""

from __future__ import annotations

import asyncio
from typing import Any

import uvloop

GRPC_CALLBACK = "_handle_callback_wrapper"


def let_grpc_outlive_loops() -> None:
    """From now on nobody hears of what comes for a loop that is closed. Other callbacks raise as ever."""
    for kind in (asyncio.BaseEventLoop, uvloop.Loop):
        _forgive(kind)


def _forgive(kind: Any) -> None:
    call_soon_threadsafe = kind.call_soon_threadsafe

    def forgiving(self: Any, callback: Any, *args: Any, context: Any = None) -> Any:
        if getattr(callback, "__name__", "") == GRPC_CALLBACK and self.is_closed():
            return None
        return call_soon_threadsafe(self, callback, *args, context=context)

    kind.call_soon_threadsafe = forgiving
