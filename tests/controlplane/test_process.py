"""The process as it is started: real Redis, real sockets, real signals."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from array import array
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import grpc
import pytest
import redis

from contract import keyspace, outcome
from contract.blocks import chain, pack_tokens, root_hash
from contract.keyspace import BlockDelta, EngineState, SnapshotManifest
from contract.outcome import End
from controlplane.settings import Settings
from headway.embedded_redis import RedisServer
from proto import fleet_pb2, fleet_pb2_grpc, routing_pb2_grpc
from proto import routing_pb2 as pb
from runtime.addresses import AddressError, probe, split_address
from runtime.settings import SettingsError, parse
from tests.controlplane.parts import BLOCK, MODEL, record, report
from tests.waiting import ELSEWHERE_POLL_S, meanwhile, until

START_S_MAX = 20.0
ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (("--listen", "50051"), "neither HOST:PORT nor unix:/path"),
        (("--listen", "127.0.0.1:99999"), "neither HOST:PORT"),
        (("--listen", "unix:relative"), "no absolute path"),
        (("--listen", "unix:/" + 120 * "x"), "107 bytes"),
        (("--listen", ""), "no address"),
        (("--policy", "fastest"), "not one of round_robin"),
        (("--redis-url", "localhost:6379"), "redis://"),
        (("--waiting-max", "-1"), "below 0"),
        (("--active-max", "0"), "above 0"),
        (("--metrics-port", "70000"), "not a TCP port"),
    ],
)
def test_a_mistaken_setting_is_named(argv: tuple[str, ...], says: str) -> None:
    with pytest.raises(SettingsError, match=says):
        parse(Settings, "controlplane", argv, {})


def test_the_policy_and_redis_may_come_from_the_variables_everybody_knows() -> None:
    settings = parse(Settings, "controlplane", (), {"ROUTING_STRATEGY": "prefix", "REDIS_URL": "redis://bus:1/0"})
    assert (settings.policy, settings.redis_url) == ("prefix", "redis://bus:1/0")


def test_addresses_are_hosts_with_ports_or_paths() -> None:
    assert split_address("127.0.0.1:1") == ("127.0.0.1", 1)
    assert split_address("[::1]:2") == ("::1", 2)
    assert split_address("unix:/a/b") == split_address("unix:///a/b") == "/a/b"


def test_a_socket_file_left_by_a_killed_process_is_no_obstacle(short_dir: Path) -> None:
    path = short_dir / "left.sock"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
        left.listen(1)
        with pytest.raises(AddressError, match="another process listens there"):
            probe(f"unix:{path}")
    probe(f"unix:{path}")
    assert not path.exists()
    with pytest.raises(AddressError, match="no such directory"):
        probe(f"unix:{short_dir}/none/x.sock")


def run_to_its_end(*argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "controlplane", *argv],
        capture_output=True,
        text=True,
        timeout=START_S_MAX,
        cwd=ROOT,
        check=False,
    )


def test_an_occupied_port_is_one_line_and_exit_code_2(free_port: int) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", free_port))
        other.listen(1)
        for argv in (
            ("--listen", f"127.0.0.1:{free_port}", "--metrics-port", "0"),
            ("--listen", "127.0.0.1:0", "--metrics-port", str(free_port)),
        ):
            ended = run_to_its_end("--redis-url", "unix:///nowhere", *argv)
            assert ended.returncode == 2
            assert ended.stderr == f"controlplane: cannot listen on 127.0.0.1:{free_port}: Address already in use\n"


class Process:
    """A control plane of its own."""

    def __init__(self, address: str, *argv: str) -> None:
        self.address = address
        self.process = subprocess.Popen(
            [sys.executable, "-m", "controlplane", "--listen", address, *argv], cwd=ROOT, stderr=subprocess.PIPE
        )

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=10)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        if self.process.stderr:
            self.process.stderr.close()


@contextmanager
def started(address: str, *argv: str) -> Iterator[Process]:
    process = Process(address, *argv)
    try:
        yield process
    finally:
        process.close()


@asynccontextmanager
async def dialled(process: Process) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(process.address) as channel:
        await asyncio.wait_for(channel.channel_ready(), START_S_MAX)
        yield channel


class Agent:
    """Speaks for one worker as a worker agent does, by hand."""

    def __init__(self, url: str, worker: str = "w0", *, ttl_ms: int = keyspace.WORKER_TTL_MS) -> None:
        self._client = redis.Redis.from_url(url)
        self._record = record(worker, ttl_ms=ttl_ms)

    def register(self, blocks: tuple[int, ...] = ()) -> None:
        """With a snapshot that holds these block hashes."""
        worker, epoch = self._record.worker, self._record.epoch
        chunk = BlockDelta(epoch, 0, 0.0, array("Q", blocks), flags=keyspace.DeltaFlag.SNAPSHOT)
        self._client.set(keyspace.snapshot_chunk_key(worker, 1, 0), keyspace.encode_delta(chunk))
        manifest = SnapshotManifest(epoch=epoch, sequence=0, snapshot_id=1, chunks=1, blocks=len(blocks), stream_id="0")
        self._client.set(keyspace.snapshot_key(worker), keyspace.encode_manifest(manifest))
        self.report()

    def report(self, state: EngineState = EngineState.READY) -> None:
        """Renews the registration, too."""
        self._client.set(keyspace.worker_key(self._record.worker), keyspace.encode_worker(self._record), px=self._record.ttl_ms)
        sent = report(self._record.worker, epoch=self._record.epoch, state=state)
        self._client.xadd(keyspace.REPORTS, {keyspace.REPORT_FIELD: keyspace.encode_report(sent)})

    def close(self) -> None:
        self._client.close()


async def listed(fleet: fleet_pb2_grpc.FleetAsyncStub, agents: tuple[Agent, ...], count: int, *, alive: bool = True) -> None:
    """Waits until that many workers are alive (or not), their agents speaking meanwhile."""

    async def right() -> bool:
        for agent in agents:
            agent.report()
        listed = await fleet.ListWorkers(fleet_pb2.ListWorkersRequest())
        found = [status for status in listed.workers if status.alive == alive]
        heard = not agents or all(status.report_age_s < 0.3 for status in found)  # not only their registrations
        return len(found) == count and heard and listed.warm

    await until(right, f"{count} workers", seconds_max=START_S_MAX, poll_s=ELSEWHERE_POLL_S)


async def test_a_request_goes_to_the_worker_that_holds_its_prefix_and_leaves_an_outcome(
    short_dir: Path, redis_url: str
) -> None:
    tokens = pack_tokens(range(64 * BLOCK))
    hashes = chain(tokens, BLOCK, root_hash(MODEL))
    warm, cold = Agent(redis_url, "warm"), Agent(redis_url, "cold")
    warm.register(tuple(hashes))
    cold.register()
    with started(f"unix:{short_dir}/cp.sock", "--redis-url", redis_url, "--metrics-port", "0", "--policy", "prefix") as process:
        async with dialled(process) as channel:
            fleet = fleet_pb2_grpc.FleetStub(channel)
            route = routing_pb2_grpc.RoutingStub(channel)
            await listed(fleet, (warm, cold), 2)  # type: ignore[arg-type]
            asked = pb.Question(
                question_id=1,
                model=MODEL,
                input_tokens=64 * BLOCK + 1,
                chains=[pb.BlockChain(block_size=BLOCK, hashes=hashes.tobytes())],
                chain_kind=pb.TOKENS,
            )
            decision = await route.Route(pb.RouteRequest(question=asked, reserve=True))
            assert (decision.worker, decision.matched_tokens) == ("warm", 64 * BLOCK)
            await route.Report(pb.Outcome(decision_id=decision.decision_id, end=pb.COMPLETE, cached_tokens=64 * BLOCK))
        assert process.stop() == 0
    with redis.Redis.from_url(redis_url) as client:
        [(_, fields)] = client.xrange(keyspace.OUTCOMES)  # type: ignore[misc]
    written = outcome.decode(fields[keyspace.OUTCOME_FIELD])  # type: ignore[index]
    assert (written.worker, written.end, written.cached_tokens) == ("warm", End.COMPLETE, 64 * BLOCK)
    warm.close()
    cold.close()


async def test_a_silent_agents_worker_leaves_but_not_while_redis_is_away(short_dir: Path, own_redis: RedisServer) -> None:
    agent = Agent(own_redis.url, ttl_ms=1_000)
    agent.register()
    with started(f"unix:{short_dir}/cp.sock", "--redis-url", own_redis.url, "--metrics-port", "0") as process:
        async with dialled(process) as channel:
            fleet = fleet_pb2_grpc.FleetStub(channel)
            await listed(fleet, (agent,), 1)  # type: ignore[arg-type]
            os.kill(own_redis.pid, signal.SIGSTOP)
            try:
                await meanwhile(2.0)  # the span in which it would have left
                reply = await fleet.ListWorkers(fleet_pb2.ListWorkersRequest())
                assert [status.alive for status in reply.workers] == [True]
            finally:
                os.kill(own_redis.pid, signal.SIGCONT)
            await listed(fleet, (), 1, alive=False)  # type: ignore[arg-type]
        assert process.stop() == 0
    agent.close()


async def test_metrics_and_readiness_are_served(short_dir: Path, redis_url: str, free_port: int) -> None:
    agent = Agent(redis_url)
    agent.register()
    argv = ("--redis-url", redis_url, "--metrics-port", str(free_port))
    with started(f"unix:{short_dir}/cp.sock", *argv) as process:
        async with dialled(process) as channel:
            fleet = fleet_pb2_grpc.FleetStub(channel)
            await listed(fleet, (agent,), 1)  # type: ignore[arg-type]
            base = f"http://127.0.0.1:{free_port}"

            def get(path: str) -> str:
                with urllib.request.urlopen(base + path, timeout=5) as reply:
                    return str(reply.read().decode())

            page = await asyncio.to_thread(get, "/metrics")
            assert 'headway_worker_alive{worker="w0"} 1.0' in page
            assert "headway_redis_connected 1.0" in page
            assert await asyncio.to_thread(get, "/ready") == "ready\n"
            assert await asyncio.to_thread(get, "/health") == "ok\n"
        assert process.stop() == 0
    agent.close()


async def test_it_starts_and_refuses_honestly_without_redis(short_dir: Path) -> None:
    with started(f"unix:{short_dir}/cp.sock", "--redis-url", f"unix://{short_dir}/none.sock", "--metrics-port", "0") as process:
        async with dialled(process) as channel:
            route = routing_pb2_grpc.RoutingStub(channel)
            decision = await route.Route(pb.RouteRequest(question=pb.Question(model=MODEL)))
            assert decision.shed.reason == pb.Shed.NO_WORKER
            listed = await fleet_pb2_grpc.FleetStub(channel).ListWorkers(fleet_pb2.ListWorkersRequest())
            assert not listed.redis_connected
            assert not listed.warm
        assert process.stop() == 0
