"""A connection from a command to the control plane; every gRPC error becomes one sentence."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from typing import Any, TypeVar

import grpc

from headway import runfile
from headway.errors import UsageError
from runtime import tls

T = TypeVar("T")

CALL_TIMEOUT_S = 5.0
_VARIABLE = "HEADWAY_CONTROL_"


def add_control_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--control", default="", help="gRPC address of the control plane (default: the stack started here)")
    for name, text in (
        ("ca", "authority of its certificate: TLS to it"),
        ("cert", "certificate to show to it"),
        ("key", "its private key"),
    ):
        variable = _VARIABLE + name.upper()
        default = os.environ.get(variable, "")
        parser.add_argument(f"--control-{name}", default=default, help=f"{text} (default: {variable})")


def call(args: argparse.Namespace, ask: Callable[[grpc.Channel], T]) -> T:
    """`ask` with a channel to the control plane. UsageError: unreachable, or it refused."""
    target = runfile.control_target(args.control)
    try:
        credentials = channel_credentials(target, args.control_ca, args.control_cert, args.control_key)
    except tls.TlsError as error:
        raise UsageError(str(error)) from error
    with grpc.secure_channel(target, credentials) if credentials else grpc.insecure_channel(target) as channel:
        try:
            return ask(channel)
        except grpc.RpcError as error:
            raise UsageError(explain_error(error, target)) from error


def channel_credentials(target: str, ca: str, cert: str, key: str) -> grpc.ChannelCredentials | None:
    """None: plain, without an authority and on Unix sockets. TlsError."""
    return tls.grpc_channel_credentials(ca, cert, key) if ca and not tls.is_local(target) else None


def open_channel(target: str) -> grpc.aio.Channel:
    """For probes: the environment says whether it is TLS. TlsError."""
    credentials = channel_credentials(target, *(os.environ.get(_VARIABLE + name, "") for name in ("CA", "CERT", "KEY")))
    return grpc.aio.secure_channel(target, credentials) if credentials else grpc.aio.insecure_channel(target)


def explain_error(error: Any, target: str) -> str:
    """error: as raised by a synchronous stub, which is a grpc.Call as well."""
    code = error.code()
    if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
        return f"no control plane answers at {target} (is the stack up? --control names another)"
    return error.details() or str(code.name)
