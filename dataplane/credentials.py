"""What engines are shown in place of the caller's key: one bearer key per worker, URL, or for all.

The file is a JSON object: {"worker-1": "sk-...", "https://engine-2:8000": "sk-...", "*": "sk-..."}. A URL's entry goes before
its worker's: a worker's name is what its agent says.
"""

from __future__ import annotations

import logging
from pathlib import Path

import msgspec

from dataplane.keys import KeysError

log = logging.getLogger(__name__)

ANY = "*"


class UpstreamKeys:
    """path: of the file, "": none; default: for whoever is not in it. KeysError, OSError: the file cannot be used."""

    def __init__(self, path: str, default: str) -> None:
        self._path = path
        self._default = default
        self._lines = _read(path)

    def line(self, worker: str, url: str) -> bytes:
        """The header line with the CRLF before it; b"": this engine is shown no key."""
        lines = self._lines
        key = lines.get(url) or lines.get(worker) or lines.get(ANY) or self._default
        return b"\r\nauthorization: Bearer " + key.encode() if key else b""

    def reload(self) -> None:
        """A file that cannot be used leaves the keys as they were."""
        try:
            self._lines = _read(self._path)
        except (KeysError, OSError) as error:
            log.error("the upstream keys cannot be used; they stay as they were", extra={"f": {"why": type(error).__name__}})


def _read(path: str) -> dict[str, str]:
    if not path:
        return {}
    try:
        found = msgspec.json.decode(Path(path).read_bytes(), type=dict[str, str])
    except (msgspec.MsgspecError, UnicodeDecodeError):
        raise KeysError("the upstream keys file is not a JSON object of worker or URL to key") from None
    if not all(key.isascii() and key.isprintable() and " " not in key for key in found.values()):
        raise KeysError("an upstream key has characters that no header may have")
    return {name.rstrip("/"): key for name, key in found.items()}
