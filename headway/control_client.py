"""A connection from a command to the control plane; every gRPC error becomes one sentence."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any, TypeVar

import grpc

from headway import runfile
from headway.errors import UsageError

T = TypeVar("T")

CALL_TIMEOUT_S = 5.0


def add_control_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--control", default="", help="gRPC address of the control plane (default: the stack started here)")


def call(args: argparse.Namespace, ask: Callable[[grpc.Channel], T]) -> T:
    """`ask` with a channel to the control plane. UsageError: unreachable, or it refused."""
    target = runfile.control_target(args.control)
    with grpc.insecure_channel(target) as channel:
        try:
            return ask(channel)
        except grpc.RpcError as error:
            raise UsageError(explain_error(error, target)) from error


def explain_error(error: Any, target: str) -> str:
    """error: as raised by a synchronous stub, which is a grpc.Call as well."""
    code = error.code()
    if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
        return f"no control plane answers at {target} (is the stack up? --control names another)"
    return error.details() or str(code.name)
