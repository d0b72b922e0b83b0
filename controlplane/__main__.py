"""python -m controlplane: builds the parts, serves until told to end."""

from __future__ import annotations

import os
import random
import secrets
import socket

import redis.asyncio

from controlplane import profiles, ranks, state
from controlplane.admission import WaitingRoom
from controlplane.alarms import AlarmLog
from controlplane.breaker import BreakerBounds
from controlplane.explain import DecisionRing
from controlplane.fleet_servicer import FleetServicer
from controlplane.fleet_view import FleetWatch
from controlplane.grpc_server import GrpcServer
from controlplane.index_state import IndexState
from controlplane.ingest import Ingest
from controlplane.ledger import Ledger
from controlplane.line import Lines
from controlplane.metrics import ControlPlaneCollector, registry
from controlplane.model_metrics import ModelCollector
from controlplane.model_store import ModelStore
from controlplane.outcomes import OutcomeLog
from controlplane.predictor import Forecaster
from controlplane.prefix_index import PrefixIndex, tune_gc
from controlplane.rankers import Layered, LeastPredicted
from controlplane.replica_bus import ReplicaBus
from controlplane.replicas import Replicas
from controlplane.self_check import SelfCheck
from controlplane.servicer import RoutingServicer
from controlplane.settings import Settings
from controlplane.snapshot import FleetSnapshot
from controlplane.thinning import Thinning
from controlplane.upkeep import Upkeep
from controlplane.usual import UsualDirector
from runtime import admin, log, service, tls
from runtime.addresses import AddressError
from runtime.clock import SystemClock
from runtime.service import Life
from runtime.settings import fail, read

PROCESS = "controlplane"
COLD = "the fleet has not been read yet"
STOP_GRACE_S = 0.5
"""Streams do not end by themselves: data planes reconnect, and their reservations wait for them."""


async def serve(settings: Settings, life: Life) -> None:
    """Until `life` ends. AddressError: an address cannot be had."""
    clock = SystemClock()
    unix_ms = int(clock.unix() * 1000)
    ledger = Ledger(grace_s_max=settings.grace_s_max)
    steering = ranks.together if settings.steer_ranks == ranks.OFF else ranks.steered
    snapshot = FleetSnapshot(ledger, BreakerBounds(), steering)
    index = PrefixIndex()
    ingest = Ingest(settings.bus_url, snapshot, index, clock)
    bus_client = redis.asyncio.Redis.from_url(settings.bus_url, socket_timeout=5.0, socket_connect_timeout=2.0)
    outcomes = OutcomeLog(bus_client)
    waiting = WaitingRoom(waiting_max=settings.waiting_max, wait_s_max=settings.wait_s_max)
    ring = DecisionRing()
    self_check = SelfCheck()
    forecaster = Forecaster()
    predicted = LeastPredicted(forecaster, ratio_max=settings.uncertain_ratio_max, spread_max=settings.uncertain_spread_max)
    layered = Layered(low_s=settings.zone_low_s, high_s=settings.zone_high_s)
    models = ModelStore(settings.bus_url, forecaster, clock)
    director = UsualDirector(
        snapshot=snapshot,
        ledger=ledger,
        index=index,
        waiting=waiting,
        ring=ring,
        self_check=self_check,
        profiles=profiles.build(settings.active_max, predicted=predicted, layered=layered),
        policy=settings.policy,
        rng=random.Random(settings.seed or secrets.randbits(64)),
        record=outcomes.put,
        unix_offset_s=clock.unix() - clock.now(),
        first_decision_id=_first_decision_id(),
        hung_after_s=settings.hung_after_s,
        predicted=predicted,
        thinning=Thinning(settings.outcomes_per_s_max),
        settle_s=settings.settle_ms / 1000,
    )
    watch = FleetWatch(
        snapshot,
        director,
        first_version=unix_ms,
        catching_up=lambda: any(index.state(one.slot) is IndexState.CATCHING_UP for one in snapshot.endpoints()),
    )
    routing = RoutingServicer(director, ring, watch, clock)
    replicas = Replicas(
        f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}",
        director=director,
        snapshot=snapshot,
        ledger=ledger,
        index=index,
        self_check=self_check,
        owners=routing.owners,
    )
    routing.on_arrived = replicas.arrived
    replica_bus = ReplicaBus(settings.bus_url, replicas, clock)
    ingest.on_applied = routing.answer_settled
    fleet = FleetServicer(
        snapshot=snapshot,
        director=director,
        index=index,
        bus=ingest,
        self_check=self_check,
        clock=clock,
        replicas=replicas,
        data_planes=lambda: routing.streams,
    )
    alarms = AlarmLog(snapshot.endpoints, fleet.alarm)
    upkeep = Upkeep(director=director, index=index, bus=ingest, routing=routing, watch=watch, alarms=alarms, clock=clock)
    collector = ControlPlaneCollector(
        director=director,
        snapshot=snapshot,
        ledger=ledger,
        waiting=waiting,
        index=index,
        bus=ingest,
        self_check=self_check,
        outcomes=outcomes,
        routing=routing,
        lag=upkeep.lag,
        clock=clock,
        replicas=replicas,
    )
    model_collector = ModelCollector(
        models, forecaster, {"predictive": predicted.tally, "hierarchical": layered.tally}, unix=clock.unix
    )

    http = None
    if settings.metrics_port:
        http = await admin.start(
            settings.metrics_host,
            settings.metrics_port,
            registry(collector, model_collector),
            lambda: "" if director.warm else COLD,
        )
    credentials = None
    if settings.tls_cert:
        credentials = tls.grpc_server_credentials(settings.tls_cert, settings.tls_key, settings.tls_client_ca)
    server = GrpcServer(routing, fleet, credentials)
    await server.start(settings.listen)
    lines = Lines(routing.claim_line)
    await lines.start(settings.listen)
    life.tells["decisions"] = lambda: state.of(
        clock.now(), director=director, snapshot=snapshot, ledger=ledger, waiting=waiting, bus=ingest, routing=routing
    )
    life.spawn(ingest.run(), name="ingest")
    life.spawn(outcomes.run(), name="outcomes")
    life.spawn(upkeep.run(), name="upkeep")
    life.spawn(models.run(), name="models")
    life.spawn(replica_bus.run(), name="replicas")
    tune_gc()
    life.ready(f"gRPC on {', '.join(server.addresses)}, policy {director.policy}")

    await life.ending.wait()
    await lines.close()
    await server.stop(grace_s=STOP_GRACE_S)
    await replica_bus.leave()
    await outcomes.close()
    if http is not None:
        await http.cleanup()
    await bus_client.aclose()


def _first_decision_id() -> int:
    """Numbers of no other control plane, nor of an earlier run of this one: they go on from a random one of 61 bits, and fewer
    than 2^40 will ever be given."""
    return (1 << 61) + secrets.randbits(61)


def main() -> None:
    settings = read(Settings, PROCESS)
    log.configure(PROCESS, level=settings.log_level, format=settings.log_format)

    async def body(life: Life) -> None:
        try:
            await serve(settings, life)
        except AddressError as error:
            fail(PROCESS, error.strerror or str(error))
        except tls.TlsError as error:
            fail(PROCESS, str(error))

    service.run(body, PROCESS)


if __name__ == "__main__":
    main()
