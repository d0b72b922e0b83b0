"""What a manifest tells a process of Headway, read as that process would read it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import controlplane.settings
import dataplane.settings
import emulator.settings
import trainer.settings
import worker_agent.settings
from runtime.settings import parse

ROOT = Path(__file__).resolve().parents[2]

_SETTINGS: dict[str, type] = {
    "controlplane": controlplane.settings.Settings,
    "dataplane": dataplane.settings.Settings,
    "trainer": trainer.settings.Settings,
    "worker_agent": worker_agent.settings.Settings,
    "emulator": emulator.settings.Settings,
}


def module_of(command: Sequence[str]) -> str:
    """The process that a command line starts; "" for none of ours."""
    return command[2] if list(command[:2]) == ["python", "-m"] and command[2] in _SETTINGS else ""


def read(command: Sequence[str], environ: Mapping[str, str]) -> Any:
    """Its settings. SettingsError: it would not start."""
    process = module_of(command)
    return parse(_SETTINGS[process], process, list(command[3:]), environ)
