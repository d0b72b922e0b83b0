"""What is measured, and how each is started. A router whose program is missing is left out, and the table says so."""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
import time
import urllib.request
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import grpc

from controlplane.model_metrics import MODEL_SERVING
from controlplane.profiles import NAMES as PROFILES
from headway.bench_proxy import peers
from headway.bench_proxy.fleet import Fleet, serve
from headway.bench_proxy.processes import NotStarted, Process, free_port
from headway.bench_proxy.prompts import MODEL
from headway.embedded_redis import RedisServer
from prediction.bundle import Bundle
from proto import fleet_pb2, fleet_pb2_grpc

TOKENIZER = "headway-8k"
READY_TIMEOUT_S = 30.0
SERVING = f"{MODEL_SERVING}{{".encode()
"""In a control plane's figures, where a model serves."""
OURS = ("round_robin", "prefix", "weighted", "lmetric")
RUST = ("sglang", "vllm")
POLICIES = ("round_robin", "cache_aware")
KINDS = ("headway", "headway-grpc", "headway-model")
"""Ours: both processes on one host; by gRPC over TCP alone, as where the control plane is on another; and with a model of TTFT
that serves (`--model`), which `predictive` decides by."""
NAMES = (
    "nginx",
    "haproxy",
    *(f"headway:{policy}" for policy in OURS),
    *(f"headway-grpc:{policy}" for policy in ("round_robin", "lmetric")),
    *(f"{peer}:{policy}" for peer in RUST for policy in POLICIES),
    "litellm",
)
ON_REQUEST = tuple(f"{kind}:{policy}" for kind in KINDS for policy in PROFILES if f"{kind}:{policy}" not in NAMES)
"""Those that are measured where they are named."""


@dataclass(frozen=True)
class Router:
    """One thing to measure. pids: whose CPU counts, children included; prepare: called before each of its runs."""

    name: str
    port: int
    pids: tuple[int, ...]
    prepare: Callable[[], None] = lambda: None


class Bench:
    """Starts routers in front of the same engines. stack: ends everything; directory: configurations, logs, sockets; model: of
    TTFT, for those that are to have one."""

    def __init__(self, stack: ExitStack, directory: Path, engine_ports: list[int], model: Bundle | None = None) -> None:
        self._stack = stack
        self._model = model
        self._directory = directory
        self._engine_ports = engine_ports

    @property
    def _urls(self) -> list[str]:
        return [f"http://127.0.0.1:{port}" for port in self._engine_ports]

    def start(self, names: list[str]) -> tuple[list[Router], dict[str, str]]:
        """The routers that run, and why others do not."""
        found: list[Router] = []
        missing: dict[str, str] = {}
        for name in names:
            kind = name.partition(":")[0]
            try:
                if kind not in KINDS:
                    found.append(self._peer(name))
                elif not any(router.name.startswith(f"{kind}:") for router in found):
                    ours = [other.partition(":")[2] for other in names if other.startswith(f"{kind}:")]
                    found += self._headway(kind, ours)
            except (NotStarted, FileNotFoundError) as error:
                missing[name] = str(error)
        return sorted(found, key=lambda router: names.index(router.name)), missing

    def _peer(self, name: str) -> Router:
        kind, _, policy = name.partition(":")
        if kind == "nginx":
            return self._nginx()
        if kind == "haproxy":
            return self._haproxy()
        if kind == "litellm":
            return self._litellm()
        return self._rust(kind, policy)

    def _run(self, name: str, argv: list[str], port: int) -> Process:
        process = Process(name.replace(":", "-"), argv, self._directory)
        self._stack.callback(process.end)
        process.wait_for(port)
        return process

    # --- ours ---

    def _headway(self, kind: str, policies: list[str]) -> list[Router]:
        """One control plane and one data plane; the policy is switched before each run."""
        directory, port = self._directory / kind, free_port()
        directory.mkdir(exist_ok=True)
        redis = RedisServer(directory)
        redis.start()
        self._stack.callback(redis.stop)
        fleet = Fleet(redis.url, self._urls, model=MODEL, tokenizer=TOKENIZER)
        fleet.start()
        self._stack.callback(fleet.stop)
        target = f"127.0.0.1:{free_port()}" if kind == "headway-grpc" else f"unix:{directory}/control.sock"
        metrics = 0
        if kind == "headway-model":
            if self._model is None:
                raise NotStarted("no model (--model)")
            metrics = free_port()
            serve(redis.url, self._model)
        flags = ["--redis-url", redis.url, "--listen", target, "--metrics-port", str(metrics), "--policy", policies[0]]
        control = Process("controlplane", [sys.executable, "-m", "controlplane", *flags], directory)
        self._stack.callback(control.end)
        flags = ["--port", str(port), "--control", target]
        data = self._run("dataplane", [sys.executable, "-m", "dataplane", *flags], port)
        _until_ready(port, lambda state: state["tokenizers"].get(MODEL) == "ready" and state["ready"])
        if metrics:
            _until_serves(metrics)

        def switch(policy: str) -> Callable[[], None]:
            return lambda: _switch(target, port, policy)

        return [Router(f"{kind}:{policy}", port, (control.pid, data.pid), switch(policy)) for policy in policies]

    # --- others ---

    def _nginx(self) -> Router:
        port = free_port()
        servers = "".join(f"server 127.0.0.1:{engine}; " for engine in self._engine_ports)
        path = self._directory / "nginx.conf"
        path.write_text(
            f"daemon off; worker_processes 1; pid {self._directory}/nginx.pid; error_log stderr error;\n"
            "events { worker_connections 16384; }\n"
            "http { access_log off; keepalive_requests 100000000; client_body_buffer_size 64k;\n"
            f"client_body_temp_path {self._directory}; proxy_temp_path {self._directory};\n"
            f"fastcgi_temp_path {self._directory}; uwsgi_temp_path {self._directory}; scgi_temp_path {self._directory};\n"
            f"upstream engines {{ {servers} keepalive 1024; keepalive_requests 100000000; }}\n"
            f"server {{ listen 127.0.0.1:{port} backlog=4096; location / {{ proxy_pass http://engines;\n"
            'proxy_http_version 1.1; proxy_set_header Connection ""; proxy_buffering off; proxy_request_buffering off; } } }\n'
        )
        return Router("nginx", port, (self._run("nginx", [_program("nginx"), "-c", str(path)], port).pid,))

    def _haproxy(self) -> Router:
        port = free_port()
        servers = "".join(f"  server s{engine} 127.0.0.1:{engine}\n" for engine in self._engine_ports)
        path = self._directory / "haproxy.cfg"
        path.write_text(
            "global\n  nbthread 1\n  maxconn 4096\n"
            "defaults\n  mode http\n  timeout connect 5s\n  timeout client 300s\n  timeout server 300s\n"
            "  option http-no-delay\n  http-reuse always\n"
            f"frontend front\n  bind 127.0.0.1:{port}\n  default_backend engines\n"
            f"backend engines\n  balance roundrobin\n{servers}"
        )
        return Router("haproxy", port, (self._run("haproxy", [_program("haproxy"), "-db", "-f", str(path)], port).pid,))

    def _rust(self, kind: str, policy: str) -> Router:
        port, metrics = free_port(), free_port()
        program = peers.binary(kind)
        if program is None:
            raise FileNotFoundError("not installed (--install-peers)")
        start = [program, "-m", "sglang_router.launch_router"] if kind == "sglang" else [program]
        flags = ["--policy", policy, "--host", "127.0.0.1", "--port", str(port), "--prometheus-port", str(metrics)]
        process = self._run(f"{kind}:{policy}", [*start, "--worker-urls", *self._urls, *flags], port)
        _until_answers(port)
        return Router(f"{kind}:{policy}", port, (process.pid,))

    def _litellm(self) -> Router:
        port = free_port()
        program = peers.binary("litellm")
        if program is None:
            raise FileNotFoundError("not installed (--install-peers)")
        entries = [
            {"model_name": MODEL, "litellm_params": {"model": f"openai/{MODEL}", "api_base": f"{url}/v1", "api_key": "none"}}
            for url in self._urls
        ]
        path = self._directory / "litellm.yaml"
        general = {"dangerously_permit_weak_or_unset_master_key": True}
        path.write_text(json.dumps({"model_list": entries, "general_settings": general}))  # JSON is YAML
        process = self._run("litellm", [program, "--config", str(path), "--host", "127.0.0.1", "--port", str(port)], port)
        _until_answers(port)
        return Router("litellm", port, (process.pid,))


def _program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise FileNotFoundError("not on the PATH")
    return found


def _switch(target: str, port: int, policy: str) -> None:
    with grpc.insecure_channel(target) as channel:
        fleet_pb2_grpc.FleetStub(channel).SetPolicy(fleet_pb2.SetPolicyRequest(name=policy), timeout=READY_TIMEOUT_S)
    _until_ready(port, lambda state: state["fleet"]["policy"] == policy)


def _until_ready(port: int, holds: Callable[[dict[str, dict[str, str]]], object]) -> None:
    """NotStarted: our data plane does not say so in time."""
    until, state = time.monotonic() + READY_TIMEOUT_S, b""
    while time.monotonic() < until:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/ready", timeout=2) as answer:
                state = answer.read()
                if holds(json.loads(state)):
                    return
        except OSError as error:
            state = str(error).encode()
        time.sleep(0.05)  # another process's state: there is no event to wait for
    raise NotStarted(f"the data plane is not ready: {state.decode(errors='replace')}")


def _until_serves(metrics_port: int) -> None:
    """NotStarted: our control plane has not taken the model in time."""
    until = time.monotonic() + READY_TIMEOUT_S
    while time.monotonic() < until:
        with (
            contextlib.suppress(OSError),
            urllib.request.urlopen(f"http://127.0.0.1:{metrics_port}/metrics", timeout=2) as answer,
        ):
            if SERVING in answer.read():
                return
        time.sleep(0.05)  # another process's state: there is no event to wait for
    raise NotStarted("the control plane does not take the model")


def _until_answers(port: int) -> None:
    """Peers listen before they know their workers. NotStarted."""
    body = json.dumps({"model": MODEL, "messages": [{"role": "user", "content": "hi"}]}).encode()
    until, why = time.monotonic() + READY_TIMEOUT_S, ""
    while time.monotonic() < until:
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/v1/chat/completions", body, {"content-type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=5):
                return
        except OSError as error:
            why = str(error)
        time.sleep(0.2)  # another process's state: there is no event to wait for
    raise NotStarted(f"does not answer: {why}")
