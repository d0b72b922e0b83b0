"""One stack serves all tests of this folder that do not break it."""

from __future__ import annotations

from collections.abc import Generator, Iterator

import pytest

from tests.e2e.stack import PATIENT, RunningStack, add_told, running, running_stack

SETTINGS = PATIENT | {"HEADWAY_CONTROLPLANE_GRACE_S_MAX": "4"}
"""Tests wait for the grace to pass; a data plane that lives is back well within it."""


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, object, object]:
    """A test that failed on a stack which it shares with others shows what that has to tell, too."""
    if call.excinfo is not None and call.excinfo.errisinstance((Exception, pytest.fail.Exception)):
        for stack in running:
            add_told(call.excinfo.value, stack)
    return (yield)


@pytest.fixture(scope="package")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStack]:
    with running_stack(tmp_path_factory.mktemp("home"), "--speed", "4", workers=3, environment=SETTINGS) as running:
        yield running
