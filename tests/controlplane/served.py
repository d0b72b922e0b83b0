"""A control plane on a real gRPC socket, its fleet told by hand instead of by Redis."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc

from controlplane.alarms import AlarmLog
from controlplane.fleet_servicer import FleetServicer
from controlplane.fleet_view import FleetWatch
from controlplane.grpc_server import GrpcServer
from controlplane.servicer import RoutingServicer
from controlplane.upkeep import Upkeep
from proto import fleet_pb2_grpc, routing_pb2_grpc
from proto import routing_pb2 as pb
from runtime.clock import SystemClock
from tests.controlplane.parts import BLOCK, MODEL, Plant, hashes

WAIT_S_MAX = 5.0


@dataclass
class Bus:
    """A Redis link that is what the test says it is."""

    connected: bool = True
    warm: bool = True

    @property
    def last_word_at(self) -> float:
        return SystemClock.now()


class LivePlant(Plant):
    """The same parts on the machine's clock."""

    @property
    def now(self) -> float:
        return SystemClock.now()

    @now.setter
    def now(self, value: float) -> None:
        pass


@dataclass
class Served:
    plant: LivePlant
    bus: Bus
    routing: RoutingServicer
    address: str
    channel: grpc.aio.Channel
    route: routing_pb2_grpc.RoutingAsyncStub
    fleet: fleet_pb2_grpc.FleetAsyncStub

    def stream(self, process: str = "dp-1", *, held: tuple[pb.Held, ...] = (), queue_notices: bool = False) -> DataPlane:
        hello = pb.Hello(process=process, held=held, queue_notices=queue_notices)
        return DataPlane(self.route.RouteStream(), hello)


class DataPlane:
    """The other end of a RouteStream."""

    def __init__(self, call: grpc.aio.StreamStreamCall[pb.RouteBatch, pb.DecisionBatch], hello: pb.Hello) -> None:
        self.call = call
        self._hello: pb.Hello | None = hello

    async def send(
        self,
        *questions: pb.Question,
        outcomes: tuple[pb.Outcome, ...] = (),
        first_bytes: tuple[pb.FirstByte, ...] = (),
        cancels: tuple[int, ...] = (),
    ) -> None:
        batch = pb.RouteBatch(
            questions=questions,
            outcomes=outcomes,
            first_bytes=first_bytes,
            cancels=[pb.Cancel(question_id=number) for number in cancels],
        )
        if self._hello is not None:
            batch.hello.CopyFrom(self._hello)
            self._hello = None
        await self.call.write(batch)

    async def receive(self) -> list[pb.Decision]:
        batch = await asyncio.wait_for(self.call.read(), WAIT_S_MAX)
        assert isinstance(batch, pb.DecisionBatch), batch
        return list(batch.decisions)

    async def ask(self, *questions: pb.Question) -> list[pb.Decision]:
        await self.send(*questions)
        return await self.receive()

    def break_off(self) -> None:
        self.call.cancel()


def asked(number: int, *blocks: int, model: str = MODEL, **fields: object) -> pb.Question:
    return pb.Question(
        question_id=number,
        model=model,
        input_tokens=BLOCK * len(blocks) + 8,
        chains=[pb.BlockChain(block_size=BLOCK, hashes=hashes(*blocks).tobytes())],
        chain_kind=pb.TOKENS,
        **fields,  # type: ignore[arg-type]
    )


@asynccontextmanager
async def serve(directory: Path, **settings: object) -> AsyncIterator[Served]:
    plant = LivePlant(**settings)  # type: ignore[arg-type]
    clock = SystemClock()
    bus = Bus()
    watch = FleetWatch(plant.snapshot, plant.director, first_version=1)
    routing = RoutingServicer(plant.director, plant.ring, watch, clock)
    fleet = FleetServicer(
        snapshot=plant.snapshot,
        director=plant.director,
        index=plant.index,
        bus=bus,
        self_check=plant.self_check,
        clock=clock,
        data_planes=lambda: routing.streams,
    )
    alarms = AlarmLog(plant.snapshot.endpoints, fleet.alarm)
    upkeep = Upkeep(
        director=plant.director, index=plant.index, bus=bus, routing=routing, watch=watch, alarms=alarms, clock=clock
    )
    server = GrpcServer(routing, fleet)
    address = f"unix:{directory / 'cp.sock'}"
    await server.start([address])
    task = asyncio.create_task(upkeep.run())
    async with grpc.aio.insecure_channel(address) as channel:
        yield Served(
            plant,
            bus,
            routing,
            address,
            channel,
            routing_pb2_grpc.RoutingStub(channel),  # type: ignore[arg-type]
            fleet_pb2_grpc.FleetStub(channel),  # type: ignore[arg-type]
        )
    task.cancel()
    await server.stop(grace_s=0)
