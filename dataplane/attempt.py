"""One request at one endpoint: where it went, on which connection, what came back, and how that is accounted for.

An attempt is settled once: its connection goes back or is closed, counts are set right, the control plane hears of it.
"""

from __future__ import annotations

from errno import EADDRNOTAVAIL, EMFILE, ENFILE, ENOBUFS, ENOMEM

import msgspec

from contract.outcome import End
from contract.routing import Answer
from dataplane.gateway import Gateway
from dataplane.relay import Relay
from dataplane.report import outcome
from dataplane.upstream import UpstreamConnection
from proto import routing_pb2 as pb

BLAMES_ENDPOINT = frozenset((End.CONNECT_FAILED, End.RESET, End.TIMED_OUT, End.ENGINE_ERROR, End.ENGINE_ABORTED))
END_NAMES = {end: end.name.lower() for end in End}
_OURS = frozenset((EMFILE, ENFILE, ENOBUFS, ENOMEM, EADDRNOTAVAIL))


def says_nothing(error: Exception) -> bool:
    """Whether it was this machine that had no room for a connection, whatever the endpoint is like: blamed for it, one endpoint
    after the other would be shut out by its breaker, for all data planes."""
    return isinstance(error, OSError) and error.errno in _OURS


class Attempt(msgspec.Struct, eq=False):
    """target: the decided endpoint, decision_id 0 where the fallback chose it. Times are seconds of one clock, 0: not yet;
    last_at: when something came last, or it was sent; first_at: of the first event with content."""

    target: Answer
    sent_at: float
    last_at: float
    connection: UpstreamConnection | None = None
    relay: Relay | None = None
    first_at: float = 0.0

    def settle(
        self, gateway: Gateway, end: End, reusable: bool, resume: bool, request_id: str, model: str, input_tokens: int
    ) -> None:
        """reusable: the connection has nothing left of this request; resume: it was told not to read."""
        now = gateway.clock.now()
        connection, self.connection = self.connection, None
        if connection is not None:
            if reusable:
                if resume and connection.transport is not None:
                    connection.transport.resume_reading()
                gateway.pool.give(connection, now)
            else:
                connection.abort()
        target = self.target
        gateway.fleet.ended(target.url)
        if end in BLAMES_ENDPOINT:
            gateway.fleet.failed(target.url, now)
        gateway.metrics.ends[end].count += 1
        control = gateway.control
        control.report(outcome(self, end, now, request_id, model, input_tokens, control.connected))

    def reservation(self, input_tokens: int) -> pb.Held | None:
        """What the control plane holds for it; None: it was not asked."""
        target = self.target
        if not target.decision_id:
            return None
        return pb.Held(
            decision_id=target.decision_id,
            endpoint=target.endpoint,
            url=target.url,
            uncached_tokens=max(0, input_tokens - target.matched_tokens),
            input_tokens=input_tokens,
            first_byte_seen=self.first_at > 0,
            data_parallel_rank=target.rank if target.rank >= 0 else None,
        )
