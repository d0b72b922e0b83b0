"""The Fleet service: what operators see of the workers, and what they may do to them."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Any, Protocol

import grpc

from contract.keyspace import EngineState
from controlplane.alarms import alarm
from controlplane.breaker import BreakerState
from controlplane.director import Director, UnknownPolicyError
from controlplane.endpoint import Endpoint
from controlplane.index_state import IndexState
from controlplane.replicas import Replicas, Status
from controlplane.self_check import SelfCheck
from controlplane.snapshot import FleetSnapshot
from proto import fleet_pb2 as pb
from proto import fleet_pb2_grpc
from runtime.clock import Clock

Context = grpc.aio.ServicerContext[Any, Any]
NAME_CHARS_MAX = 128
"""Of what a caller names, in what it is told: a status longer than a few KB ends the call without a word."""
NAMED_MAX = 20
"""Workers in such a message."""
_DANGER = (BreakerState.CLOSED, BreakerState.HALF_OPEN, BreakerState.OPEN)
_BADNESS = (IndexState.EXACT, IndexState.SPECULATIVE, IndexState.CATCHING_UP, IndexState.DEGRADED, IndexState.UNSPECIFIED)


class IndexView(Protocol):
    """What operators see of the prefix index."""

    def state(self, slot: int) -> IndexState: ...

    def blocks(self, slot: int) -> int: ...

    def memory_bytes(self) -> int: ...

    def __len__(self) -> int: ...


class BusView(Protocol):
    """What operators see of the link to Redis. `last_word_at` is on the process's own clock."""

    @property
    def connected(self) -> bool: ...

    @property
    def last_word_at(self) -> float: ...


class FleetServicer(fleet_pb2_grpc.FleetServicer):
    def __init__(
        self,
        *,
        snapshot: FleetSnapshot,
        director: Director,
        index: IndexView,
        bus: BusView,
        self_check: SelfCheck,
        clock: Clock,
        replicas: Replicas | None = None,
        data_planes: Callable[[], int] = lambda: 0,
    ) -> None:
        """replicas: other control planes, who hold to what operators say here; data_planes: that ask this one."""
        self._replicas = replicas
        self._data_planes = data_planes
        self._snapshot = snapshot
        self._director = director
        self._index = index
        self._bus = bus
        self._self_check = self_check
        self._clock = clock

    async def ListWorkers(self, request: pb.ListWorkersRequest, context: Context) -> pb.WorkerList:  # noqa: N802
        now = self._clock.now()
        return pb.WorkerList(
            workers=[self.status(endpoint, now) for endpoint in self._snapshot.workers()],
            policy=self._director.policy,
            redis_connected=self._bus.connected,
            redis_age_s=max(0.0, now - self._bus.last_word_at),
            warm=self._director.warm,
            index_blocks=len(self._index),
            data_planes=self._data_planes(),
            replicas=[] if self._replicas is None else [_replica(status) for status in self._replicas.statuses(now)],
        )

    async def Drain(self, request: pb.DrainRequest, context: Context) -> pb.WorkerStatus:  # noqa: N802
        return await self._set_draining(request.worker, True, context)

    async def Undrain(self, request: pb.DrainRequest, context: Context) -> pb.WorkerStatus:  # noqa: N802
        return await self._set_draining(request.worker, False, context)

    async def GetPolicy(self, request: pb.GetPolicyRequest, context: Context) -> pb.Policy:  # noqa: N802
        return pb.Policy(name=self._director.policy, available=self._director.policies)

    async def SetPolicy(self, request: pb.SetPolicyRequest, context: Context) -> pb.Policy:  # noqa: N802
        try:
            self._director.set_policy(request.name[:NAME_CHARS_MAX])
        except UnknownPolicyError as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        if self._replicas is not None:
            self._replicas.orders.set_policy(request.name, self._unix_ms())
            self._replicas.unsaid()
        return pb.Policy(name=self._director.policy, available=self._director.policies)

    async def _set_draining(self, worker: str, draining: bool, context: Context) -> pb.WorkerStatus:
        if not worker:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "no worker named")
        endpoint = self._snapshot.drain(worker, draining)
        if endpoint is None:
            known = _known(worker, sorted(other.worker for other in self._snapshot.workers()))
            await context.abort(grpc.StatusCode.NOT_FOUND, f"no worker {worker[:NAME_CHARS_MAX]!r}; {known}")
            raise AssertionError("abort raises")
        if self._replicas is not None:
            self._replicas.orders.set_draining(worker, draining, self._unix_ms())
            self._replicas.unsaid()
        return self.status(endpoint, self._clock.now())

    def _unix_ms(self) -> int:
        return int(self._clock.unix() * 1000)

    def status(self, endpoint: Endpoint, now: float) -> pb.WorkerStatus:
        """endpoint: of several ranks the first."""
        record, everywhere = endpoint.record, endpoint.everywhere
        ratio, samples = self._match(everywhere)
        status = pb.WorkerStatus(
            worker=record.worker,
            endpoint=endpoint.number,
            url=record.url,
            models=endpoint.models,
            alive=endpoint.alive and endpoint.state == EngineState.READY,
            draining=endpoint.draining,
            breaker=min([one.breaker.view(now) for one in everywhere], key=_DANGER.index).value,  # type: ignore[arg-type]
            index=max(map(self._index_state, everywhere), key=_BADNESS.index).value,  # type: ignore[arg-type]
            blocks=sum([self._index.blocks(one.slot) for one in everywhere]),
            active=sum([one.load.active for one in everywhere]),
            prefill_tokens=sum([one.load.prefill_tokens for one in everywhere]),
            running=sum([one.running for one in everywhere]),
            waiting=sum([one.waiting for one in everywhere]),
            kv_usage=max(one.kv_usage for one in everywhere),
            report_age_s=max(0.0, now - endpoint.reported_at),
            block_size=record.block_size,
            cache_blocks=record.cache_blocks,
            match_samples=samples,
            engine_version=record.engine_version,
            requests=sum([one.requests for one in everywhere]),
            failures=sum([one.failures for one in everywhere]),
            alarm=self._alarm_of_all(everywhere, now),
            accelerator=record.accelerator,
            incarnation=record.epoch,
            ranks=[self._rank(one, now) for one in endpoint.ranks],
        )
        if ratio is not None:
            status.match_ratio = ratio
        return status

    def _rank(self, endpoint: Endpoint, now: float) -> pb.RankStatus:
        ratio, samples = self._match((endpoint,))
        status = pb.RankStatus(
            rank=endpoint.rank,
            index=self._index_state(endpoint).value,  # type: ignore[arg-type]
            blocks=self._index.blocks(endpoint.slot),
            active=endpoint.load.active,
            prefill_tokens=endpoint.load.prefill_tokens,
            running=endpoint.running,
            waiting=endpoint.waiting,
            kv_usage=endpoint.kv_usage,
            match_samples=samples,
            requests=endpoint.requests,
            alarm=self.alarm(endpoint, now),
            breaker=endpoint.breaker.view(now).value,  # type: ignore[arg-type]
        )
        if ratio is not None:
            status.match_ratio = ratio
        return status

    def _match(self, endpoints: tuple[Endpoint, ...]) -> tuple[float | None, int]:
        """Share of the responses of all of them that were predicted to the token, and of how many; None: of none."""
        verdicts = [self._self_check.verdict(one.name, one.record.epoch) for one in endpoints]
        samples = sum([verdict.samples for verdict in verdicts])
        if not samples:
            return None, 0
        return sum([(verdict.match_ratio or 0.0) * verdict.samples for verdict in verdicts]) / samples, samples

    def _alarm_of_all(self, endpoints: tuple[Endpoint, ...], now: float) -> str:
        """The first rank's that has one; it is named where the others have another, or none."""
        texts = [self.alarm(one, now) for one in endpoints]
        found = next((at for at, text in enumerate(texts) if text), 0)
        return texts[found] if len(set(texts)) == 1 else f"rank {endpoints[found].rank}: {texts[found]}"

    def alarm(self, endpoint: Endpoint, now: float) -> str:
        """What an operator should read of this worker; empty where all is well."""
        record = endpoint.record
        return alarm(
            endpoint,
            index_state=self._index_state(endpoint),
            mismatch=self._self_check.verdict(endpoint.name, record.epoch).alarm,
            silent_s=self._snapshot.silent_s(endpoint, now),
            now=now,
        )

    def _index_state(self, endpoint: Endpoint) -> IndexState:
        return self._index.state(endpoint.slot) if endpoint.credit else IndexState.DEGRADED


def _known(wanted: str, names: list[str]) -> str:
    """What there is in place of a worker that is not: all of a few, of many those with like names."""
    if len(names) <= NAMED_MAX:
        return f"known are {', '.join(names) or 'none'}"
    near = difflib.get_close_matches(wanted[:NAME_CHARS_MAX], names, n=3)
    return f"{len(names):,} are known" + (f", among them {', '.join(near)}" if near else "")


def _replica(status: Status) -> pb.ReplicaStatus:
    return pb.ReplicaStatus(
        name=status.name, data_planes=status.data_planes, active=status.active, age_s=max(0.0, status.age_s)
    )
