"""The fleet as data planes see it: which endpoints there are, which of them take requests, which models they serve.

`look` is called after every change and every few milliseconds; it raises the version where something a data plane acts on has
changed and wakes those who watch. Changes within one interval are one version.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from contract.keyspace import EngineState, ModelCard
from controlplane.breaker import BreakerState
from controlplane.director import Director
from controlplane.endpoint import Endpoint
from controlplane.snapshot import FleetSnapshot
from proto import routing_pb2 as pb
from runtime.tasks import happened

RESEND_S = 1.0
"""A view is sent this often though nothing changed: its counts have."""


class FleetWatch:
    def __init__(
        self,
        snapshot: FleetSnapshot,
        director: Director,
        *,
        first_version: int,
        catching_up: Callable[[], bool] = lambda: False,
    ) -> None:
        """first_version: above every version of an earlier run, so that a restart does not look like old news; catching_up:
        whether some worker's blocks are being read."""
        self._catching_up = catching_up
        self._snapshot = snapshot
        self._director = director
        self._version = first_version
        self._seen: object = None
        self._changed = asyncio.Event()

    def look(self, now: float) -> None:
        """Notices what has changed since the last look."""
        open_slots = tuple(
            endpoint.slot for endpoint in self._snapshot.endpoints() if endpoint.breaker.view(now) == BreakerState.OPEN
        )
        state = (self._snapshot.version, open_slots, self._director.policy, self._director.warm)
        if state != self._seen:
            self._seen = state
            self._version += 1
            self._changed.set()
            self._changed = asyncio.Event()

    async def change(self) -> None:
        """Returns at the next change, or when it is time to send the view again."""
        await happened(self._changed, RESEND_S)

    def view(self, now: float) -> pb.FleetView:
        self.look(now)
        return pb.FleetView(
            version=self._version,
            endpoints=[_endpoint(endpoint, now) for endpoint in self._snapshot.workers()],
            models=[_model(name, served) for name, served in sorted(self._snapshot.models().items())],
            policy=self._director.policy,
            warm=self._director.warm,
            without_chains=not self._director.needs_chains,
            token_ages=self._director.needs_chains,
            catching_up=self._catching_up(),
        )


def _endpoint(endpoint: Endpoint, now: float) -> pb.EndpointView:
    return pb.EndpointView(
        endpoint=endpoint.slot,
        worker=endpoint.worker,
        url=endpoint.url,
        models=endpoint.models,
        available=endpoint.serving and any(one.breaker.view(now) != BreakerState.OPEN for one in endpoint.everywhere),
        active=sum([one.load.active for one in endpoint.everywhere]),
        block_size=endpoint.record.block_size,
        stuck=_is_stuck(endpoint),
        stuck_ranks=[one.rank for one in endpoint.ranks if one.alive and one.breaker.suspected],
    )


def _is_stuck(endpoint: Endpoint) -> bool:
    """It hangs, all of its ranks, or its agent says that nothing answers there. What an agent that is gone said last does not
    count."""
    hangs = all(one.breaker.suspected for one in endpoint.everywhere)
    return endpoint.alive and (endpoint.state == EngineState.UNREACHABLE or hangs)


def _model(name: str, served: list[tuple[ModelCard, Endpoint]]) -> pb.ModelView:
    """Where workers of one model differ, the smallest context and the first tokenizer that one of them knows."""
    base, alias = _base(*served[0])
    lengths = [card.max_model_len for card, _ in served if card.max_model_len > 0]
    return pb.ModelView(
        name=name,
        base=base,
        alias=alias,
        tokenizer=next((endpoint.record.tokenizer for _, endpoint in served if endpoint.record.tokenizer), ""),
        block_sizes=sorted({endpoint.record.block_size for _, endpoint in served}),
        max_model_len=min(lengths, default=0),
    )


def _base(card: ModelCard, endpoint: Endpoint) -> tuple[str, bool]:
    """The name that salts the block hashes, and whether this name is only another one for it.

    The agent hashes under the first name that the engine serves; an engine with several names lists each as its own base.
    """
    first = endpoint.record.models[0]
    if card.base == card.name and card.name != first.name and card.root == first.root:
        return first.name, True
    return card.base, False
