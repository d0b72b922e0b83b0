"""`headway drain WORKER`: no new requests for it; those in flight end by themselves. `--undo` takes it back."""

from __future__ import annotations

import argparse

from headway.control_client import CALL_TIMEOUT_S, add_control_argument, call_all
from proto import fleet_pb2, fleet_pb2_grpc


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_control_argument(parser)
    parser.add_argument("worker", help="its name, as `headway workers` shows it")
    parser.add_argument("--undo", action="store_true", help="let it have requests again")


def run(args: argparse.Namespace) -> int:
    request = fleet_pb2.DrainRequest(worker=args.worker)

    def ask(channel: object) -> fleet_pb2.WorkerStatus:
        stub = fleet_pb2_grpc.FleetStub(channel)  # type: ignore[call-overload]
        return (stub.Undrain if args.undo else stub.Drain)(request, timeout=CALL_TIMEOUT_S)  # type: ignore[no-any-return]

    status = _busiest([status for _, status in call_all(args, ask)])
    print(f"{status.worker}: {'draining' if status.draining else 'in service'}, {status.active} requests active")
    return 0


def _busiest(statuses: list[fleet_pb2.WorkerStatus]) -> fleet_pb2.WorkerStatus:
    """Of several control planes, that of the one that decides: those of the others count nothing in flight."""
    return max(statuses, key=lambda status: status.active)
