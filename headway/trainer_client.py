"""A connection from a command to the trainer; every gRPC error becomes one sentence."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from typing import Any, TypeVar

import grpc

from headway import runfile
from headway.control_client import channel_credentials
from headway.errors import UsageError
from runtime import tls

T = TypeVar("T")

CALL_TIMEOUT_S = 10.0
EVALUATE_TIMEOUT_S = 120.0
"""The trainer may have to read a large data set."""
_VARIABLE = "HEADWAY_TRAINER_"


def add_trainer_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--trainer", default="", help="gRPC address of the trainer (default: that of the stack started here)")
    for name, text in (
        ("ca", "authority of its certificate: TLS to it"),
        ("cert", "certificate to show to it"),
        ("key", "its private key"),
    ):
        variable = _VARIABLE + name.upper()
        parser.add_argument(f"--trainer-{name}", default=os.environ.get(variable, ""), help=f"{text} (default: {variable})")


def call(args: argparse.Namespace, ask: Callable[[grpc.Channel], T]) -> T:
    """`ask` with a channel to the trainer. UsageError: unreachable, or it refused."""
    target = runfile.trainer_target(args.trainer)
    try:
        credentials = channel_credentials(target, args.trainer_ca, args.trainer_cert, args.trainer_key)
    except tls.TlsError as error:
        raise UsageError(str(error)) from error
    with grpc.secure_channel(target, credentials) if credentials else grpc.insecure_channel(target) as channel:
        try:
            return ask(channel)
        except grpc.RpcError as error:
            raise UsageError(_explained(error, target)) from error


def _explained(error: Any, target: str) -> str:
    if error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
        return f"no trainer answers at {target} (is the stack up? --trainer names another)"
    return error.details() or str(error.code().name)
