"""One stack serves all tests of this folder that do not break it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e.stack import PATIENT, RunningStack, running_stack

SETTINGS = PATIENT | {"HEADWAY_CONTROLPLANE_GRACE_S_MAX": "4"}
"""Tests wait for the grace to pass; a data plane that lives is back well within it."""


@pytest.fixture(scope="package")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStack]:
    with running_stack(tmp_path_factory.mktemp("home"), "--speed", "4", workers=3, environment=SETTINGS) as running:
        yield running
