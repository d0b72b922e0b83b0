from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

import pytest

from loadgen.client import Exchange
from loadgen.runner import Runner
from loadgen.workload import TimedRequest
from runtime.clock import SystemClock
from tests.waiting import turns

CLOCK = SystemClock()


def due(*times: float) -> Iterator[TimedRequest]:
    for index, at_s in enumerate(times):
        yield TimedRequest(index, at_s, "/", b"{}", 0, 1, f"r-{index}")


class Gate:
    """A sender whose answers come when the test opens it."""

    def __init__(self, *, expected: int = 0) -> None:
        self.open = asyncio.Event()
        self.sent: dict[int, float] = {}
        self.all_sent = asyncio.Event()
        self._expected = expected

    async def send(self, request: TimedRequest, exchange: Exchange) -> None:
        self.sent[request.index] = exchange.sent
        if len(self.sent) == self._expected:
            self.all_sent.set()
        try:
            await self.open.wait()
            exchange.end = "ok"
        except asyncio.CancelledError:
            exchange.end = "interrupted"
            raise


class Ends:
    def __init__(self, *, expected: int = 0) -> None:
        self.exchanges: dict[int, Exchange] = {}
        self.enough = asyncio.Event()
        self._expected = expected

    def __call__(self, request: TimedRequest, exchange: Exchange) -> None:
        assert request.index not in self.exchanges, "told twice"
        self.exchanges[request.index] = exchange
        if len(self.exchanges) == self._expected:
            self.enough.set()

    def kinds(self) -> list[str]:
        return [exchange.end for _, exchange in sorted(self.exchanges.items())]


async def test_requests_go_out_on_time_though_none_of_those_before_was_answered() -> None:
    gate, ends = Gate(expected=20), Ends()
    runner = Runner(gate, ends, clock=CLOCK)
    running = asyncio.create_task(runner.run(due(*(0.005 * n for n in range(20))), asyncio.Event()))
    await asyncio.wait_for(gate.all_sent.wait(), 30)
    assert runner.counts.in_flight == 20
    assert not ends.exchanges
    assert all(at >= runner.start + 0.005 * index for index, at in gate.sent.items()), "sent before it was due"
    gate.open.set()
    assert await running
    assert ends.kinds() == ["ok"] * 20


async def test_a_blocked_generator_keeps_its_schedule_and_records_how_late_it_was() -> None:
    ends = Ends()

    class Blocking:
        async def send(self, request: TimedRequest, exchange: Exchange) -> None:
            if request.index == 0:
                time.sleep(0.2)  # noqa: ASYNC251  the machine is busy elsewhere
            exchange.end = "ok"

    runner = Runner(Blocking(), ends, clock=CLOCK)
    requests = list(due(0.0, 0.05, 0.1, 0.3))
    assert await runner.run(iter(requests), asyncio.Event())
    late = [runner.lateness_s(request, ends.exchanges[request.index]) for request in requests]
    assert late[1] >= 0.15 - 1e-3
    assert late[2] >= 0.1 - 1e-3
    apart = ends.exchanges[2].sent - ends.exchanges[1].sent
    assert late[1] - late[2] == pytest.approx(0.05 - apart), "the schedule moved with the delay"
    assert ends.exchanges[3].sent >= runner.start + 0.3
    assert runner.counts.lateness_s_max >= late[1]


async def test_beyond_the_bound_on_requests_in_flight_a_request_is_not_sent_and_told_so() -> None:
    gate, ends = Gate(), Ends(expected=3)
    runner = Runner(gate, ends, clock=CLOCK, in_flight_max=2)
    running = asyncio.create_task(runner.run(due(0, 0, 0, 0, 0), asyncio.Event()))
    await asyncio.wait_for(ends.enough.wait(), 10)
    gate.open.set()
    assert await running
    assert ends.kinds() == ["ok", "ok", "not_sent", "not_sent", "not_sent"]
    assert (runner.counts.sent, runner.counts.not_sent, runner.counts.failed) == (2, 3, 3)
    assert "2 requests were in flight" in ends.exchanges[2].error


@pytest.mark.parametrize("later", [(), (1000.0,)], ids=["while answers are awaited", "while requests are still due"])
async def test_an_early_end_interrupts_what_is_in_flight_and_sends_nothing_more(later: tuple[float, ...]) -> None:
    gate, ends, ending = Gate(expected=3), Ends(), asyncio.Event()
    runner = Runner(gate, ends, clock=CLOCK)
    running = asyncio.create_task(runner.run(due(0, 0, 0, *later), ending))
    await asyncio.wait_for(gate.all_sent.wait(), 10)
    ending.set()
    assert not await asyncio.wait_for(running, 10)
    assert ends.kinds() == ["interrupted"] * 3
    assert runner.counts.in_flight == 0
    assert runner.counts.failed == 0


async def test_a_workload_that_breaks_in_the_middle_ends_the_run_with_its_error() -> None:
    def broken() -> Iterator[TimedRequest]:
        yield from due(0.0)
        raise ValueError("line 2")

    gate = Gate()
    gate.open.set()
    with pytest.raises(ValueError, match="line 2"):
        await asyncio.wait_for(Runner(gate, Ends(), clock=CLOCK).run(broken(), asyncio.Event()), 10)


async def test_an_empty_workload_ends_at_once() -> None:
    assert await asyncio.wait_for(Runner(Gate(), Ends(), clock=CLOCK).run(due(), asyncio.Event()), 10)


async def test_bodies_are_built_ahead_of_their_time_but_not_without_bound() -> None:
    built, enough = 0, asyncio.Event()

    def counted() -> Iterator[TimedRequest]:
        nonlocal built
        for request in due(*(1000.0 + n for n in range(500))):
            built += 1
            if built == 32:
                enough.set()
            yield request

    ending = asyncio.Event()
    running = asyncio.create_task(Runner(Gate(), Ends(), clock=CLOCK).run(counted(), ending))
    await asyncio.wait_for(enough.wait(), 10)
    await turns(50)
    ending.set()
    await running
    assert built == 32
