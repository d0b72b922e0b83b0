"""Tests marked slow wait for real seconds: `pytest -m slow tests/controlplane` runs them, a plain run does not."""

from __future__ import annotations

from pathlib import Path

import pytest

HERE = Path(__file__).parent


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("-m"):
        for item in items:
            if HERE in item.path.parents and item.get_closest_marker("slow") is not None:
                item.add_marker(pytest.mark.skip(reason="slow; asked for by -m slow"))
