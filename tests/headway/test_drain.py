"""`headway drain` as scripts use it: told when the last request has ended, or that it has not."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from headway.__main__ import dispatch
from headway.errors import UsageError
from proto import routing_pb2 as pb
from tests.controlplane.served import DataPlane, Served, asked, serve


@pytest.fixture
async def busy(short_dir: Path) -> AsyncIterator[tuple[Served, DataPlane, pb.Decision]]:
    """A control plane with one request in flight."""
    async with serve(short_dir) as served:
        stream = served.stream()
        (decision,) = await stream.ask(asked(1, 1, 2))
        yield served, stream, decision
        stream.break_off()


async def test_the_end_of_the_last_request_is_waited_for(
    busy: tuple[Served, DataPlane, pb.Decision], capsys: pytest.CaptureFixture[str]
) -> None:
    served, stream, decision = busy
    worker = decision.worker
    line = ["drain", worker, "--control", served.address]
    waiting = asyncio.create_task(asyncio.to_thread(dispatch, [*line, "--wait"]))
    assert await asyncio.to_thread(dispatch, [*line, "--wait", "--timeout-s", "0.3"]) == 1
    assert capsys.readouterr().out == f"{worker}: draining, 1 request active\n"
    assert not waiting.done()
    await stream.send(outcomes=(pb.Outcome(decision_id=decision.decision_id, end=pb.COMPLETE),))
    assert await waiting == 0
    assert capsys.readouterr().out == f"{worker}: draining, 0 requests active\n"
    assert await asyncio.to_thread(dispatch, [*line, "--undo", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["draining"] is False


def test_who_takes_a_worker_back_waits_for_nothing() -> None:
    with pytest.raises(UsageError, match="--wait is for a worker that gets none"):
        dispatch(["drain", "w1", "--undo", "--wait"])
