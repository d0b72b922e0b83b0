"""What exchanges stand on: the client's side, and the shared parts."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from dataplane.access import Access
from dataplane.access_log import AccessLog
from dataplane.admission import Concurrency, RetryBudget
from dataplane.control import ControlClient
from dataplane.credentials import UpstreamKeys
from dataplane.fallback import Fleet
from dataplane.headers import DecisionLine
from dataplane.metrics import Metrics
from dataplane.prompt_process import PromptProcess
from dataplane.prompts import Prompts
from dataplane.settings import Settings
from dataplane.trace import Ids
from dataplane.upstream import UpstreamPool
from proto import routing_pb2 as pb
from runtime.clock import Clock
from runtime.sockets import Sockets

if TYPE_CHECKING:
    from dataplane.hedge import Hedges
    from dataplane.usual import UsualExchange


class Client(Protocol):
    """The connection that the request came on."""

    transport: asyncio.Transport | None  # None: it has left
    stalled_since: float  # 0: it reads
    write: Callable[[bytes], None]
    served_by: UsualExchange | None

    def finished(self, *, close: bool) -> None:
        """The response is complete."""

    def answered(self, now: float) -> None:
        """The same, of a connection that stays."""

    def cut(self, *, reset: bool = False) -> None:
        """Close at once: the response cannot be completed. reset: an orderly end would look like its own."""


class Holding(Protocol):
    """An exchange, to whoever asks what is under way."""

    def held(self) -> pb.Held | None:
        """Its reservation, as it is now."""


@dataclass(slots=True)
class Gateway:
    """What exchanges share."""

    settings: Settings
    clock: Clock
    fleet: Fleet
    control: ControlClient
    pool: UpstreamPool
    prompts: Prompts
    executor: Executor
    budget: RetryBudget
    concurrency: Concurrency
    metrics: Metrics
    ids: Ids
    exchanges: set[Holding]
    extra_headers: tuple[bytes, ...] = ()
    last_lines: bytes = b"\r\n\r\n"  # the same, each behind its CRLF, and the end of a head
    decision_line: DecisionLine = field(default_factory=DecisionLine)
    sockets: Sockets = field(default_factory=Sockets)
    draining: bool = False
    hedges: Hedges | None = None
    access: Access | None = None  # None: whoever reaches the port may call
    prompt_process: PromptProcess | None = None  # None: long prompts are prepared in a thread
    credentials: UpstreamKeys | None = None  # None: engines are shown what the caller sent
    access_log: AccessLog | None = None

    def held(self) -> list[pb.Held]:
        """What this process is relaying right now, for a control plane that has forgotten."""
        return [held for exchange in self.exchanges if (held := exchange.held()) is not None]
