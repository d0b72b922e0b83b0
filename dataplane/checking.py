"""What each process reads at its start, tried once before any is started: a mistake is told in one line and ends the start."""

from __future__ import annotations

import time
from pathlib import Path

from dataplane.access_log import AccessLog
from dataplane.credentials import UpstreamKeys
from dataplane.keys import parse
from dataplane.settings import Settings
from runtime import tls


def check_files(settings: Settings) -> None:
    """KeysError, TlsError, OSError, ValueError: a file cannot be used."""
    if settings.keys_file:
        parse(Path(settings.keys_file).read_bytes())
    if settings.upstream_keys_file:
        UpstreamKeys(settings.upstream_keys_file, "")
    if settings.tls_cert:
        tls.server_context(settings.tls_cert, settings.tls_key)
    for ca in filter(None, (settings.control_ca, settings.upstream_ca)):
        tls.client_context(ca)
    if settings.control_cert:
        tls.server_context(settings.control_cert, settings.control_key)  # of a client, but a pair is a pair
    if settings.access_log:
        AccessLog(settings.access_log, time.time).close()
