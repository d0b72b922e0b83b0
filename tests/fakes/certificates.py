"""Real certificates, made by the openssl command in a fraction of a second: an authority, and what it signs."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

DAYS = "2"
CURVE = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1")


@dataclass(frozen=True)
class Pair:
    """Paths of a certificate and its key."""

    cert: str
    key: str


class Authority:
    """Keeps its files in `directory`."""

    def __init__(self, directory: Path, name: str = "ca") -> None:
        self._directory = directory
        self._name = name
        self._own = Pair(str(directory / f"{name}.crt"), str(directory / f"{name}.key"))
        _openssl(
            *("req", "-x509", *CURVE, "-nodes", "-days", DAYS, "-subj", f"/CN={name}"),
            *("-addext", "keyUsage=critical,keyCertSign", "-keyout", self._own.key, "-out", self._own.cert),
        )

    @property
    def ca(self) -> str:
        """Path of its certificate."""
        return self._own.cert

    def issue(self, name: str) -> Pair:
        """For 127.0.0.1 and localhost, as server and as client; the same name again: a renewed one in the same files."""
        base = self._directory / f"{self._name}-{name}"
        pair = Pair(f"{base}.crt", f"{base}.key")
        request, extensions = f"{base}.csr", base.with_suffix(".ext")
        extensions.write_text("subjectAltName=IP:127.0.0.1,DNS:localhost\nextendedKeyUsage=serverAuth,clientAuth\n")
        _openssl("req", *CURVE, "-nodes", "-subj", f"/CN={name}", "-keyout", pair.key, "-out", request)
        _openssl(
            *("x509", "-req", "-in", request, "-CA", self._own.cert, "-CAkey", self._own.key, "-CAcreateserial"),
            *("-days", DAYS, "-extfile", str(extensions), "-out", pair.cert),
        )
        return pair


def _openssl(*argv: str) -> None:
    subprocess.run(("openssl", *argv), check=True, capture_output=True, timeout=30)
