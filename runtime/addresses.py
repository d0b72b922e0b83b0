"""Addresses to listen on: HOST:PORT or unix:/path, tried before they are given to a library with a worse complaint."""

from __future__ import annotations

import contextlib
import errno
import os
import socket

from runtime.settings import SettingsError

UNIX_PATH_BYTES_MAX = 107


class AddressError(OSError):
    """An address that cannot be listened on; the message names it."""


def split_address(address: str) -> tuple[str, int] | str:
    """(host, port), or the path of a Unix socket. SettingsError: neither."""
    if address.startswith("unix:"):
        path = address.removeprefix("unix:").removeprefix("//")
        if not path.startswith("/"):
            raise SettingsError(f"--listen: {address!r} names no absolute path")
        if len(path.encode()) > UNIX_PATH_BYTES_MAX:
            raise SettingsError(
                f"--listen: the path of {address!r} is longer than the {UNIX_PATH_BYTES_MAX} bytes of a Unix socket"
            )
        return path
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdigit() or int(port) > 65_535:
        raise SettingsError(f"--listen: {address!r} is neither HOST:PORT nor unix:/path")
    return host.strip("[]"), int(port)


def probe(address: str) -> None:
    """Binds the address and lets it go again. AddressError: it cannot be had."""
    where = split_address(address)
    try:
        if isinstance(where, str):
            _probe_path(where)
        elif where[1]:
            _probe_port(*where)
    except OSError as error:
        raise AddressError(error.errno, f"cannot listen on {address}: {error.strerror or error}") from error


def _probe_port(host: str, port: int) -> None:
    family, kind, protocol, _, target = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(target)
        probe.listen(1)


def _probe_path(path: str) -> None:
    """A socket file that nobody listens on is left from a process that was killed: it is removed."""
    if not os.path.isdir(os.path.dirname(path)):
        raise OSError(errno.ENOENT, "no such directory")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(path)
        except FileNotFoundError:
            return
        except ConnectionRefusedError:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
            return
    raise OSError(errno.EADDRINUSE, "another process listens there")
