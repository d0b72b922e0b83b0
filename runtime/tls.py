"""TLS for HTTP and gRPC from files: contexts, credentials, and certificates renewed without a restart.

A pair that does not fit together is found by loading it into a context of its own first, so that a renewal caught half-written
leaves the certificate that is served.
"""

from __future__ import annotations

import contextlib
import os
import ssl
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # gRPC is loaded only by those who use it
    import grpc


_Stamp = tuple[tuple[int, int], ...]


class TlsError(ValueError):
    """A certificate, key or CA file that cannot be used; the message names the files."""


def check_pair(cert: str, key: str, flags: str) -> None:
    """TlsError: only one of the two is given. flags: how they are called."""
    if bool(cert) != bool(key):
        raise TlsError(f"{flags}: both or none")


def server_context(cert: str, key: str) -> ssl.SSLContext:
    """TLS 1.2 or newer, HTTP/1.1. TlsError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    _load(context, cert, key)
    return context


def renew(context: ssl.SSLContext, cert: str, key: str) -> None:
    """New connections get the files as they are now. TlsError: they do not fit; the context serves what it served."""
    _load(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), cert, key)
    _load(context, cert, key)


def client_context(ca: str) -> ssl.SSLContext:
    """Verifies the server against `ca`, or the system's authorities where it is empty. TlsError."""
    try:
        context = ssl.create_default_context(cafile=ca or None)
    except (OSError, ssl.SSLError) as error:
        raise TlsError(f"cannot use the certificate authority {ca}: {_why(error)}") from error
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def is_local(target: str) -> bool:
    """A Unix socket: its file's permissions say who may connect, and TLS is left out."""
    return target.startswith(("unix:", "unix-abstract:"))


def grpc_channel_credentials(ca: str, cert: str, key: str) -> grpc.ChannelCredentials:
    """Of a client that shows a certificate where it has one. TlsError."""
    import grpc

    check_pair(cert, key, "certificate and key")
    return grpc.ssl_channel_credentials(_bytes(ca), _bytes(key) if key else None, _bytes(cert) if cert else None)


def grpc_server_credentials(cert: str, key: str, client_ca: str) -> grpc.ServerCredentials:
    """Read again at a handshake once the files have changed. client_ca: whose clients are let in; "": anybody's. TlsError."""
    import grpc

    stamp: _Stamp = ()

    def load() -> grpc.ServerCertificateConfiguration:
        _load(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), cert, key)
        pairs = [(_bytes(key), _bytes(cert))]
        return grpc.ssl_server_certificate_configuration(pairs, _bytes(client_ca) if client_ca else None)

    def renewed() -> grpc.ServerCertificateConfiguration | None:
        nonlocal stamp
        try:
            found = _stamp(cert, key, client_ca)
            if found == stamp:
                return None
            loaded = load()
        except (TlsError, OSError):
            return None  # caught half-written: the next handshake looks again
        stamp = found
        return loaded

    with contextlib.suppress(OSError):  # a file that is not there: loading names it
        stamp = _stamp(cert, key, client_ca)  # before loading, so that no renewal falls between the two
    # The stubs know no None, which says "as before".
    return grpc.dynamic_ssl_server_credentials(load(), renewed, bool(client_ca))  # type: ignore[arg-type]


def _load(context: ssl.SSLContext, cert: str, key: str) -> None:
    try:
        context.load_cert_chain(cert, key, password=_no_password)
    except (OSError, ssl.SSLError, ValueError) as error:
        raise TlsError(f"cannot use the certificate {cert} with the key {key}: {_why(error)}") from error


def _no_password() -> str:
    """In place of a question on a terminal that nobody watches."""
    raise ValueError("the key is encrypted")


def _bytes(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise TlsError(f"cannot read {path}: {_why(error)}") from error


def _stamp(*paths: str) -> _Stamp:
    return tuple((found.st_mtime_ns, found.st_ino) for path in paths if path for found in [os.stat(path)])


def _why(error: Exception) -> str:
    reason = error.strerror if isinstance(error, OSError) else ""
    return reason or getattr(error, "reason", "") or str(error) or type(error).__name__
