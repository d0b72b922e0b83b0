"""docker-compose.yml as data: what it starts would start. (`tests/compose` runs it, where there is Docker.)"""

from __future__ import annotations

import re
from typing import Any

import yaml

from tests.deploy.processes import ROOT, module_of, read

_VARIABLE = re.compile(r"\$\{\w+:-([^}]*)\}")


def services() -> dict[str, dict[str, Any]]:
    found = yaml.safe_load(_VARIABLE.sub(r"\1", (ROOT / "docker-compose.yml").read_text()))
    services: dict[str, dict[str, Any]] = found["services"]
    return services


def test_every_process_of_headway_starts_with_what_it_is_told() -> None:
    started = set()
    for service in services().values():
        if module := module_of(service.get("command", ())):
            read(service["command"], service.get("environment", {}))
            started.add(module)
    assert started == {"controlplane", "dataplane", "trainer", "worker_agent", "emulator"}


def test_what_is_mounted_from_here_is_here() -> None:
    mounted = [
        volume.split(":")[0]
        for service in services().values()
        for volume in service.get("volumes", ())
        if volume.startswith("./")
    ]
    assert "./deploy/prometheus/prometheus.yml" in mounted
    assert [path for path in mounted if not (ROOT / path).exists()] == []


def test_what_is_waited_for_is_there_and_says_when_it_is_well() -> None:
    known = services()
    for service in known.values():
        for name, condition in service.get("depends_on", {}).items():
            assert condition["condition"] == "service_started" or "healthcheck" in known[name], name
