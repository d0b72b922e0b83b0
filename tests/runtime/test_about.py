"""Every process tells its build and what it takes of the machine."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path

from prometheus_client import CollectorRegistry, generate_latest

from runtime import about


def test_the_version_is_that_of_the_project() -> None:
    project = tomllib.loads((Path(__file__).resolve().parents[2] / "pyproject.toml").read_text())["project"]
    assert about.version() == project["version"]


def test_a_page_tells_the_build_and_the_process() -> None:
    registry = CollectorRegistry()
    about.describe(registry, "example")
    page = generate_latest(registry).decode()
    assert f'headway_build_info{{process="example",version="{about.version()}"}} 1.0' in page
    before = registry.get_sample_value("process_open_fds") or 0
    pipe = os.pipe()
    assert registry.get_sample_value("process_open_fds") == before + 2
    for end in pipe:
        os.close(end)
    assert (registry.get_sample_value("process_resident_memory_bytes") or 0) > 1_000_000
