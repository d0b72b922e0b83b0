"""Certificates that cannot be used are one sentence, whatever is wrong with them."""

from __future__ import annotations

from pathlib import Path

import pytest

from runtime import tls
from tests.fakes.certificates import Authority


def test_files_that_are_not_there_are_named(short_dir: Path) -> None:
    pair = Authority(short_dir, "ours").issue("server")
    missing = str(short_dir / "missing")
    for cert, key, client_ca in ((missing, pair.key, ""), (pair.cert, missing, ""), (pair.cert, pair.key, missing)):
        with pytest.raises(tls.TlsError, match=missing):
            tls.grpc_server_credentials(cert, key, client_ca)


def test_a_key_of_another_certificate_is_refused(short_dir: Path) -> None:
    ours = Authority(short_dir, "ours")
    first, second = ours.issue("first"), ours.issue("second")
    with pytest.raises(tls.TlsError, match="cannot use the certificate"):
        tls.grpc_server_credentials(first.cert, second.key, "")
    assert tls.grpc_server_credentials(first.cert, first.key, ours.ca) is not None
