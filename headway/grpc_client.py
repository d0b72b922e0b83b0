"""A connection from a command to one of the stack's gRPC services; every gRPC error becomes one sentence."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import grpc

from headway.errors import UsageError
from runtime import tls

T = TypeVar("T")

_OPTIONS = (
    ("ca", "authority of its certificate: TLS to it"),
    ("cert", "certificate to show to it"),
    ("key", "its private key"),
)


@dataclass(frozen=True)
class Service:
    """One service as commands name it.

    title: in sentences. flag: `control` for --control, --control-ca, and HEADWAY_CONTROL_CA.
    target: what --control said, or "", to the address that is meant.
    """

    title: str
    flag: str
    target: Callable[[str], str]

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        text = f"gRPC address of the {self.title} (default: that of the stack started here)"
        parser.add_argument(f"--{self.flag}", default="", help=text)
        for name, text in _OPTIONS:
            variable = self._variable(name)
            parser.add_argument(
                f"--{self.flag}-{name}", default=os.environ.get(variable, ""), help=f"{text} (default: {variable})"
            )

    def call(self, args: argparse.Namespace, ask: Callable[[grpc.Channel], T]) -> T:
        """`ask` with a channel to the service. UsageError: unreachable, or it refused."""
        given = vars(args)
        target = self.target(given[self.flag])
        try:
            credentials = channel_credentials(target, *(given[f"{self.flag}_{name}"] for name, _ in _OPTIONS))
        except tls.TlsError as error:
            raise UsageError(str(error)) from error
        with grpc.secure_channel(target, credentials) if credentials else grpc.insecure_channel(target) as channel:
            try:
                return ask(channel)
            except grpc.RpcError as error:
                raise UsageError(self._explained(error, target)) from error

    def open_channel(self, target: str) -> grpc.aio.Channel:
        """For probes: the environment says whether it is TLS. TlsError."""
        credentials = channel_credentials(target, *(os.environ.get(self._variable(name), "") for name, _ in _OPTIONS))
        return grpc.aio.secure_channel(target, credentials) if credentials else grpc.aio.insecure_channel(target)

    def _variable(self, name: str) -> str:
        return f"HEADWAY_{self.flag}_{name}".upper()

    def _explained(self, error: Any, target: str) -> str:
        """error: as raised by a synchronous stub, which is a grpc.Call as well."""
        if error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
            return f"no {self.title} answers at {target} (is the stack up? --{self.flag} names another)"
        return error.details() or str(error.code().name)


def channel_credentials(target: str, ca: str, cert: str, key: str) -> grpc.ChannelCredentials | None:
    """None: plain, without an authority and on Unix sockets. TlsError."""
    return tls.grpc_channel_credentials(ca, cert, key) if ca and not tls.is_local(target) else None
