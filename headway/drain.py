"""`headway drain WORKER`: no new requests for it; those in flight end by themselves. `--undo` takes it back."""

from __future__ import annotations

import argparse
import sys
import time

from headway.arguments import positive
from headway.as_json import add_json_argument, print_message
from headway.control_client import CALL_TIMEOUT_S, add_control_argument, call_all
from headway.errors import UsageError
from proto import fleet_pb2, fleet_pb2_grpc

POLL_S = 0.25
SAY_EVERY_S = 5.0
WAIT_S_DEFAULT = 3600.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_control_argument(parser)
    add_json_argument(parser)
    parser.add_argument("worker", help="its name, as `headway workers` shows it")
    parser.add_argument("--undo", action="store_true", help="let it have requests again")
    parser.add_argument("--wait", action="store_true", help="until its last request has ended (for scripts: exit code 0)")
    parser.add_argument(
        "--timeout-s", type=positive, default=WAIT_S_DEFAULT, help="of --wait, then exit code 1 (default: %(default)g)"
    )


def run(args: argparse.Namespace) -> int:
    """0: done, with --wait down to the last request; 1: requests were there for longer than was to be waited."""
    if args.wait and args.undo:
        raise UsageError("drain: --wait is for a worker that gets none, not with --undo")
    status = _ask(args)
    if args.wait:
        status = _emptied(args, status)
    if args.json:
        print_message(status)
    else:
        print(f"{status.worker}: {'draining' if status.draining else 'in service'}, {_requests(status)} active")
    return 1 if args.wait and status.active else 0


def _emptied(args: argparse.Namespace, status: fleet_pb2.WorkerStatus) -> fleet_pb2.WorkerStatus:
    """Asked again and again: draining what is drained changes nothing, and a control plane that took over knows it, too."""
    began = said_at = time.monotonic()
    while status.active and time.monotonic() < began + args.timeout_s:
        if time.monotonic() >= said_at:
            said_at += SAY_EVERY_S
            print(f"{status.worker}: {_requests(status)} active", file=sys.stderr)
        time.sleep(POLL_S)  # another process's state: nothing to wait on but its word
        status = _ask(args)
    return status


def _requests(status: fleet_pb2.WorkerStatus) -> str:
    return f"{status.active} request{'' if status.active == 1 else 's'}"


def _ask(args: argparse.Namespace) -> fleet_pb2.WorkerStatus:
    request = fleet_pb2.DrainRequest(worker=args.worker)

    def ask(channel: object) -> fleet_pb2.WorkerStatus:
        stub = fleet_pb2_grpc.FleetStub(channel)  # type: ignore[call-overload]
        return (stub.Undrain if args.undo else stub.Drain)(request, timeout=CALL_TIMEOUT_S)  # type: ignore[no-any-return]

    return _busiest([status for _, status in call_all(args, ask)])


def _busiest(statuses: list[fleet_pb2.WorkerStatus]) -> fleet_pb2.WorkerStatus:
    """Of several control planes, that of the one that decides: those of the others count nothing in flight."""
    return max(statuses, key=lambda status: status.active)
