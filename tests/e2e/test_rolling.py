"""Restarts that nobody notices: one proxy for another on the same port, the control plane in order, a worker drained."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import grpc
import pytest

from proto import fleet_pb2, fleet_pb2_grpc
from tests.dataplane_process import START_S_MAX, until_ready
from tests.e2e.stack import RunningStack
from tests.e2e.test_survival import IN_FLIGHT, RECOVERY_S_MAX, Load, all_alive, load_on
from tests.ports import free_ports
from tests.waiting import until_elsewhere as until
from tests.waiting import wait_until


class Proxies:
    """Data planes of our own, one after the other on one port, in front of the stack's control plane."""

    def __init__(self, stack: RunningStack) -> None:
        self._stack = stack
        self.port = free_ports(1)
        self.url = f"http://127.0.0.1:{self.port}"
        self.running: list[asyncio.subprocess.Process] = []

    async def start(self, *, processes: int, share: bool) -> asyncio.subprocess.Process:
        """Returns once all of its processes say that they are ready."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "dataplane", "--port", str(self.port), "--control", self._stack.control),
            *("--processes", str(processes)),
            *(("--share-port",) if share else ()),
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
        self.running.append(process)
        await until_ready(process, processes)
        assert process.stderr is not None
        self._reading = asyncio.create_task(process.stderr.read())
        if not share:  # one that takes over says that it is ready when it knows the fleet, one alone when it listens
            await until(self._knows_the_fleet, seconds_max=START_S_MAX, what="the fleet is known")
        return process

    def _knows_the_fleet(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/ready", timeout=2) as reply:
                return bool(reply.status == 200)
        except OSError:
            return False

    async def end(self, process: asyncio.subprocess.Process) -> None:
        process.terminate()
        async with asyncio.timeout(START_S_MAX):
            assert await process.wait() == 0

    async def kill_all(self) -> None:
        for process in self.running:
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGKILL)
                await process.wait()


@asynccontextmanager
async def proxies(stack: RunningStack) -> AsyncIterator[Proxies]:
    made = Proxies(stack)
    try:
        yield made
    finally:
        await made.kill_all()


class NewConnections(Load):
    """Every request on a connection of its own."""

    async def keep_going(self, session: aiohttp.ClientSession, caller: int) -> None:
        connector = aiohttp.TCPConnector(force_close=True, limit=0)
        async with aiohttp.ClientSession(timeout=session.timeout, connector=connector) as own:
            await super().keep_going(own, caller)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
async def test_a_proxy_replaced_by_another_on_its_port_fails_no_request(stack: RunningStack, processes: int) -> None:
    async with proxies(stack) as fleet:
        old = await fleet.start(processes=processes, share=False)
        async with load_on(stack, url=fleet.url) as kept, load_on(stack, url=fleet.url, kind=NewConnections) as new:
            for _ in range(2):
                successor = await fleet.start(processes=processes, share=True)
                await fleet.end(old)
                await kept.completed(IN_FLIGHT)
                await new.completed(IN_FLIGHT)
                old = successor
        for load in (kept, new):
            assert set(load.ends) == {"complete"}, (load.ends, load.problems[:5])


@pytest.mark.slow
async def test_a_second_proxy_that_was_not_told_to_take_over_is_refused(stack: RunningStack) -> None:
    async with proxies(stack) as fleet:
        await fleet.start(processes=1, share=False)
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "dataplane", "--port", str(fleet.port)), stderr=asyncio.subprocess.PIPE
        )
        async with asyncio.timeout(START_S_MAX):
            _, error = await process.communicate()
        assert process.returncode == 2
        assert b"taken" in error


@pytest.mark.slow
async def test_a_control_plane_that_is_ended_in_order_costs_no_request(stack: RunningStack) -> None:
    async with load_on(stack) as load:
        (old,) = stack.child_pids()["controlplane"]
        os.kill(old, signal.SIGTERM)
        await load.completed(2 * IN_FLIGHT)
        await until(lambda: stack.child_pids().get("controlplane", [old]) != [old], seconds_max=20, what="a new one")
        await until(lambda: all_alive(stack), seconds_max=RECOVERY_S_MAX, what="it knows the fleet")
        await load.completed(2 * IN_FLIGHT)
    assert set(load.ends) == {"complete"}, (load.ends, load.problems[:5])
    await until(lambda: no_reservations(stack), seconds_max=15, what="no reservation left")


@pytest.mark.slow
async def test_a_drained_worker_ends_what_it_has_and_gets_nothing_more(stack: RunningStack) -> None:
    async with load_on(stack) as load:
        set_draining(stack, "worker-1", True)
        try:
            await until(lambda: status_of(stack, "worker-1").active == 0, seconds_max=20, what="worker-1 empty")
            before = status_of(stack, "worker-1").requests
            await load.completed(3 * IN_FLIGHT)
            assert status_of(stack, "worker-1").requests == before
        finally:
            set_draining(stack, "worker-1", False)
        await until(lambda: status_of(stack, "worker-1").requests > before, seconds_max=20, what="worker-1 serves again")
    assert set(load.ends) == {"complete"}, (load.ends, load.problems[:5])


@pytest.mark.slow
async def test_counts_stay_right_when_one_of_several_processes_is_killed(stack: RunningStack) -> None:
    """Its reservations are released after the grace period; those of the other process stay as they are."""
    async with proxies(stack) as fleet:
        parent = await fleet.start(processes=2, share=False)
        children = children_of(parent.pid)
        assert len(children) == 2
        async with load_on(stack, url=fleet.url, kind=NewConnections) as load:
            os.kill(children[0], signal.SIGKILL)
            await load.completed(2 * IN_FLIGHT)
            await until(lambda: len(set(children_of(parent.pid)) - {children[0]}) == 2, seconds_max=20, what="a new child")
            await load.completed(2 * IN_FLIGHT)
        cut = sum(count for end, count in load.ends.items() if end != "complete")
        assert cut <= IN_FLIGHT, (load.ends, load.problems[:5])
        await until(lambda: no_reservations(stack), seconds_max=20, what="no reservation left")
        await fleet.end(parent)


def children_of(pid: int) -> list[int]:
    try:
        with open(f"/proc/{pid}/task/{pid}/children") as file:
            return [int(text) for text in file.read().split()]
    except OSError:
        return []


def no_reservations(stack: RunningStack) -> bool:
    try:
        workers = stack.list_workers().workers
    except grpc.RpcError:
        return False
    return bool(workers) and all(worker.active == 0 and worker.prefill_tokens == 0 for worker in workers)


def status_of(stack: RunningStack, name: str) -> fleet_pb2.WorkerStatus:
    (status,) = [worker for worker in stack.list_workers().workers if worker.worker == name]
    return status


def set_draining(stack: RunningStack, name: str, draining: bool) -> None:
    with grpc.insecure_channel(stack.control) as channel:
        stub = fleet_pb2_grpc.FleetStub(channel)
        (stub.Drain if draining else stub.Undrain)(fleet_pb2.DrainRequest(worker=name), timeout=5)
    wait_until(lambda: status_of(stack, name).draining == draining, seconds_max=5, what="the worker says so")
