"""`headway policy [NAME]`: which routing policy decides; with a name, switches to it at once."""

from __future__ import annotations

import argparse

import grpc

from headway.as_json import add_json_argument, print_message
from headway.control_client import CALL_TIMEOUT_S, add_control_argument, call, call_all
from proto import fleet_pb2, fleet_pb2_grpc


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_control_argument(parser)
    parser.add_argument("name", nargs="?", default="", help="policy to switch to (default: only show)")
    add_json_argument(parser)


def run(args: argparse.Namespace) -> int:
    policy = switch(args, args.name) if args.name else _get(args)
    if args.json:
        print_message(policy)
        return 0
    print("\n".join(f"{'*' if name == policy.name else ' '} {name}" for name in policy.available))
    return 0


def switch(args: argparse.Namespace, name: str) -> fleet_pb2.Policy:
    """At all control planes that answer; others are told by these. UsageError: no such policy; the message lists them."""
    request = fleet_pb2.SetPolicyRequest(name=name)

    def ask(channel: grpc.Channel) -> fleet_pb2.Policy:
        return fleet_pb2_grpc.FleetStub(channel).SetPolicy(request, timeout=CALL_TIMEOUT_S)

    return call_all(args, ask)[0][1]


def _get(args: argparse.Namespace) -> fleet_pb2.Policy:
    request = fleet_pb2.GetPolicyRequest()
    return call(args, lambda channel: fleet_pb2_grpc.FleetStub(channel).GetPolicy(request, timeout=CALL_TIMEOUT_S))
