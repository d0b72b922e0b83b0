"""A connection from a command to one of the stack's gRPC services; every gRPC error becomes one sentence."""

from __future__ import annotations

import argparse
import os
import socket
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, TypeVar

import grpc

from headway.errors import UsageError
from runtime import tls

T = TypeVar("T")

PROBE_TIMEOUT_S = 1.0

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

    several: bool = False
    """Whether its address may be a list with commas: of those that stand by for each other."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        several = "; several with commas" if self.several else ""
        text = f"gRPC address of the {self.title}{several} (default: that of the stack started here)"
        parser.add_argument(f"--{self.flag}", default="", help=text)
        for name, text in _OPTIONS:
            variable = self._variable(name)
            parser.add_argument(
                f"--{self.flag}-{name}", default=os.environ.get(variable, ""), help=f"{text} (default: {variable})"
            )

    def call(self, args: argparse.Namespace, ask: Callable[[grpc.Channel], T]) -> T:
        """`ask` with a channel to the service: of several, the first that answers. UsageError: unreachable, or it refused."""
        targets = self.targets(args)
        for target in targets[:-1]:
            try:
                return self._call_one(args, target, ask)
            except grpc.RpcError as error:
                if not _is_away(error):
                    raise UsageError(self._explained(error, target)) from error
        try:
            return self._call_one(args, targets[-1], ask)
        except grpc.RpcError as error:
            raise UsageError(self._explained(error, ", ".join(targets) if _is_away(error) else targets[-1])) from error

    def call_all(
        self, args: argparse.Namespace, ask: Callable[[grpc.Channel], T], *, unknown: Collection[grpc.StatusCode] = ()
    ) -> list[tuple[str, T]]:
        """`ask` of all that answer, each with its address. unknown: what only some of them know, these say otherwise.
        UsageError: none answers or knows, or one refused."""
        answers: list[tuple[str, T]] = []
        targets, why = self.targets(args), ""
        for target in targets:
            try:
                answers.append((target, self._call_one(args, target, ask)))
            except grpc.RpcError as error:
                if not _is_away(error) and _code(error) not in unknown:
                    raise UsageError(self._explained(error, target)) from error
                if not why or not _is_away(error):  # what one of them says goes before the silence of others
                    why = self._explained(error, ", ".join(targets))
        if not answers:
            raise UsageError(why)
        return answers

    def targets(self, args: argparse.Namespace) -> list[str]:
        """Never none."""
        target = self.target(vars(args)[self.flag])
        return target.split(",") if self.several else [target]

    def _call_one(self, args: argparse.Namespace, target: str, ask: Callable[[grpc.Channel], T]) -> T:
        """grpc.RpcError; UsageError: certificates that cannot be used."""
        given = vars(args)
        try:
            credentials = channel_credentials(target, *(given[f"{self.flag}_{name}"] for name, _ in _OPTIONS))
        except tls.TlsError as error:
            raise UsageError(str(error)) from error
        with grpc.secure_channel(target, credentials) if credentials else grpc.insecure_channel(target) as channel:
            return ask(channel)

    def open_channel(self, target: str) -> grpc.aio.Channel:
        """For probes: the environment says whether it is TLS. TlsError."""
        credentials = channel_credentials(target, *(os.environ.get(self._variable(name), "") for name, _ in _OPTIONS))
        return grpc.aio.secure_channel(target, credentials) if credentials else grpc.aio.insecure_channel(target)

    def _variable(self, name: str) -> str:
        return f"HEADWAY_{self.flag}_{name}".upper()

    def _explained(self, error: Any, target: str) -> str:
        """error: as raised by a synchronous stub, which is a grpc.Call as well."""
        if _is_away(error):
            if any(map(_listens, target.split(", "))):
                hint = f"if it speaks TLS: --{self.flag}-ca, and --{self.flag}-cert and -key where it asks for them"
                return f"who listens at {target} does not answer as a {self.title} ({hint})"
            return f"no {self.title} answers at {target} (is the stack up? --{self.flag} names another)"
        return error.details() or str(error.code().name)


def _code(error: Any) -> grpc.StatusCode:
    """Of what a synchronous stub raises."""
    code: grpc.StatusCode = error.code()
    return code


def _is_away(error: Any) -> bool:
    return _code(error) in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)


def _listens(target: str) -> bool:
    """Whether somebody takes connections there, whatever is spoken. Of what is no TCP address it is not told."""
    host, _, port = target.removeprefix("dns:").lstrip("/").rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), PROBE_TIMEOUT_S):
            return True
    except (OSError, ValueError, OverflowError):
        return False


def channel_credentials(target: str, ca: str, cert: str, key: str) -> grpc.ChannelCredentials | None:
    """None: plain, without an authority and on Unix sockets. TlsError."""
    return tls.grpc_channel_credentials(ca, cert, key) if ca and not tls.is_local(target) else None
