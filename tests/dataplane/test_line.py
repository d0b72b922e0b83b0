"""The line beside the RouteStream: used where there is one, done without where there is none, its end the stream's."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from tests.dataplane.client import ask, chat, request
from tests.dataplane.conftest import StartProxy
from tests.fakes.backend import Backend
from tests.fakes.control import Control


@pytest.fixture
async def control(short_dir: Path):  # type: ignore[no-untyped-def]
    made = Control()
    made.lines = True
    await made.listen(f"unix:{short_dir}/lines.sock")
    yield made
    await made.stop()


async def test_questions_outcomes_and_cancels_go_by_the_line(
    start_proxy: StartProxy, backend: Backend, control: Control
) -> None:
    control.serve("m", backend.url)
    proxy = await start_proxy(control=control, decision_timeout_ms=800)
    response = await ask(proxy.port, request(chat()))
    assert (response.status, response.headers["x-headway-policy"]) == (200, "scripted")
    await control.until(lambda control: len(control.outcomes) == 1)
    before, streamed = control.on_lines, len(control.batches)
    assert before >= 1
    for _ in range(3):
        assert "x-headway-fallback" not in (await ask(proxy.port, request(chat()))).headers
    control.decide = lambda question: None
    assert (await ask(proxy.port, request(chat()))).headers["x-headway-fallback"] == "1"
    await control.until(lambda control: len(control.cancels) == 1 and len(control.outcomes) == 5)
    assert control.on_lines > before
    assert len(control.batches) == streamed, "nothing but the first words came by the stream"


async def test_many_at_once(start_proxy: StartProxy, backend: Backend, control: Control) -> None:
    control.serve("m", backend.url)
    proxy = await start_proxy(control=control)
    responses = await asyncio.gather(*[ask(proxy.port, request(chat())) for _ in range(100)])
    assert {response.status for response in responses} == {200}
    assert len({response.headers["x-headway-decision"] for response in responses}) == 100
    await control.until(lambda control: len(control.outcomes) == 100)


async def test_a_line_that_breaks_is_a_stream_that_breaks(start_proxy: StartProxy, backend: Backend, control: Control) -> None:
    """What waits goes to the fallback at once, and the next stream brings the next line."""
    control.serve("m", backend.url)
    proxy = await start_proxy(control=control, decision_timeout_ms=60_000)
    await ask(proxy.port, request(chat()))
    await control.until(lambda control: len(control.outcomes) == 1)
    control.decide = lambda question: None
    waits = asyncio.create_task(ask(proxy.port, request(chat())))
    await control.until(lambda control: len(control.questions) == 2)
    control.break_lines()
    assert (await waits).headers["x-headway-fallback"] == "1"
    control.decide = control.round_robin
    await control.until(lambda control: len(control.hellos) == 2)
    await proxy.until(lambda app: app.control.connected)
    lines = control.on_lines
    assert "x-headway-fallback" not in (await ask(proxy.port, request(chat()))).headers
    await control.until(lambda control: control.on_lines > lines and len(control.outcomes) == 3)


async def test_where_nobody_listens_the_stream_goes_on(
    start_proxy: StartProxy, backend: Backend, control: Control, short_dir: Path
) -> None:
    control.serve("m", backend.url)
    os.unlink(f"{short_dir}/lines.sock.line")
    proxy = await start_proxy(control=control)
    for _ in range(2):
        assert "x-headway-fallback" not in (await ask(proxy.port, request(chat()))).headers
    await control.until(lambda control: len(control.outcomes) == 2)
    assert control.on_lines == 0
