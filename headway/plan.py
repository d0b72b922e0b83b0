"""Which processes a stack is made of, in the order in which they start. Pure: no process is started here."""

from __future__ import annotations

import errno
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from headway import embedded_redis
from headway.errors import UsageError
from runtime import addresses

Value = TypeVar("Value", int, float, str)


@dataclass(frozen=True)
class StackOptions:
    """What `headway up` was asked for."""

    workers: int = 4
    presets: tuple[str, ...] = ("llama3-8b-h100",)  # of each emulated worker in turn
    model: str = ""  # empty: the preset's
    policy: str = "lmetric"
    host: str = "127.0.0.1"
    port: int = 8000
    grpc_port: int = 50051  # of the first control plane
    metrics_port: int = 9101  # likewise
    controls: int = 1  # control planes: the first decides, the others stand by
    worker_port: int = 9001  # the first; the others follow
    processes: int = 1
    speed: float = 1.0
    worker_speeds: tuple[float, ...] = ()  # of each emulated worker in turn, times `speed`; empty: all alike
    worker_blocks: tuple[int, ...] = ()  # KV blocks of each in turn, 0 the preset's; empty: all the preset's
    ranks: int = 1  # data-parallel engines of each emulated worker
    steer_ranks: str = "auto"  # off: an engine of several ranks balances by itself
    redis_url: str = ""  # empty: a server of our own
    engine_faults: bool = False  # the emulators take orders to misbehave: for tests
    engines: tuple[str, ...] = ()  # base URLs of running vLLM servers, instead of emulated workers
    tokenizer: str = ""  # of these engines; empty: the model path that they report
    trainer_dir: str = ""  # where models of TTFT and their samples are kept; empty: no trainer

    def preset(self, number: int) -> str:
        """Of emulated worker `number`, from 1."""
        return _in_turn(self.presets, number, "")

    @property
    def grpc_ports(self) -> list[int]:
        """Of each control plane: those after the first a hundred apart."""
        return [self.grpc_port + 100 * number for number in range(self.controls)]

    @property
    def metrics_ports(self) -> list[int]:
        return [self.metrics_port + 100 * number if self.metrics_port else 0 for number in range(self.controls)]

    @property
    def control(self) -> str:
        """Their addresses for commands."""
        return ",".join([f"{self.host}:{port}" for port in self.grpc_ports])

    def ports(self) -> dict[str, int]:
        """Every TCP port the stack listens on, by the flag that moves it."""
        named = {"--port": self.port, "--grpc-port": self.grpc_port, "--metrics-port": self.metrics_port}
        for number in range(2, self.controls + 1):
            named |= {
                f"--grpc-port (control plane {number})": self.grpc_ports[number - 1],
                f"--metrics-port (control plane {number})": self.metrics_ports[number - 1],
            }
        if not self.engines:
            named |= {f"--worker-port (worker {i + 1})": self.worker_port + i for i in range(self.workers)}
        return {flag: port for flag, port in named.items() if port}


@dataclass(frozen=True)
class Process:
    """One child: how it starts, and how it says that it is up."""

    name: str
    command: list[str]
    health: str  # "redis:URL", "grpc:TARGET", "http:URL", "worker:NAME" (known to the control plane) or "" for none
    environment: dict[str, str] = field(default_factory=dict)
    stage: int = 0  # processes of one stage start together, once the stage before is healthy
    stop_grace_s: float = 5.0


def python(module: str, *arguments: str) -> list[str]:
    return [sys.executable, "-m", module, *arguments]


def stack(options: StackOptions, run_dir: Path) -> list[Process]:
    """The processes of one stack. run_dir: short path for sockets."""
    redis_url = options.redis_url or f"unix://{run_dir / 'redis.sock'}"
    control_sockets = [f"unix:{run_dir / name}.sock" for name in control_names(options)]
    processes = []
    if not options.redis_url:
        processes.append(Process("redis", embedded_redis.command(run_dir), f"redis:{redis_url}", stage=0))
    for number, socket in enumerate(control_sockets):
        processes.append(
            Process(
                "controlplane" if not number else f"controlplane-{number + 1}",
                python(
                    "controlplane",
                    *("--listen", f"{options.host}:{options.grpc_ports[number]},{socket}"),
                    *("--redis-url", redis_url),
                    *("--metrics-port", str(options.metrics_ports[number])),
                    *("--steer-ranks", options.steer_ranks),
                ),
                f"grpc:{socket}",
                # The policy at start; the environment, so that a switch made later is not undone by a look at the command line.
                environment={"ROUTING_STRATEGY": options.policy},
                stage=1,
            )
        )
    for number, url in enumerate(options.engines, start=1):
        processes.append(_agent(number, url, redis_url, options.tokenizer, "", stage=2))
    if not options.engines:
        for number in range(1, options.workers + 1):
            url = f"http://127.0.0.1:{options.worker_port + number - 1}"
            processes.append(Process(f"engine-{number}", _emulator(options, number), f"http:{url}/health", stage=1))
            processes.append(_agent(number, url, redis_url, "headway-8k", f"emulated-{options.preset(number)}", stage=2))
    processes.append(
        Process(
            "dataplane",
            python(
                "dataplane",
                *("--host", options.host),
                *("--port", str(options.port)),
                *("--control", ",".join(control_sockets)),
                *("--processes", str(options.processes)),
            ),
            f"http:http://{options.host}:{options.port}/ready",
            stage=2,
            stop_grace_s=10.0,
        )
    )
    if options.trainer_dir:
        processes.append(
            Process(
                "trainer",
                python(
                    "trainer",
                    *("--listen", trainer_target(run_dir)),
                    *("--redis-url", redis_url),
                    *("--metrics-port", "0"),
                    *("--data-dir", options.trainer_dir),
                ),
                "",  # nobody waits for it: the stack serves without models, too
                stage=3,
            )
        )
    return processes


def control_names(options: StackOptions) -> list[str]:
    """Of the control planes' sockets."""
    return ["control", *[f"control-{number}" for number in range(2, options.controls + 1)]]


def trainer_target(run_dir: Path) -> str:
    """Where the trainer's gRPC is."""
    return f"unix:{run_dir / 'trainer.sock'}"


def _emulator(options: StackOptions, number: int) -> list[str]:
    return python(
        "emulator",
        *("--port", str(options.worker_port + number - 1)),
        *("--preset", options.preset(number)),
        *("--speed", str(options.speed * _in_turn(options.worker_speeds, number, 1.0))),
        *("--num-blocks", str(_in_turn(options.worker_blocks, number, 0))),
        *(("--data-parallel-size", str(options.ranks)) if options.ranks > 1 else ()),
        *(("--model", options.model) if options.model else ()),
        *(("--faults",) if options.engine_faults else ()),
    )


def _in_turn(values: tuple[Value, ...], number: int, default: Value) -> Value:
    return values[(number - 1) % len(values)] if values else default


def _agent(number: int, url: str, redis_url: str, tokenizer: str, accelerator: str, *, stage: int) -> Process:
    name = f"worker-{number}"
    command = python(
        "worker_agent",
        *("--worker", name),
        *("--engine-url", url),
        *("--redis-url", redis_url),
        *(("--tokenizer", tokenizer) if tokenizer else ()),
        *(("--accelerator", accelerator) if accelerator else ()),
    )
    return Process(f"agent-{number}", command, f"worker:{name}", stage=stage)


def check_ports(options: StackOptions) -> None:
    """UsageError: an address that the stack cannot have, and the flag that moves it."""
    seen: dict[int, str] = {}
    for flag, port in options.ports().items():
        name = flag.split()[0]
        if port in seen:
            raise UsageError(f"{name}: port {port} is that of {seen[port]}, too")
        seen[port] = flag
        try:
            addresses.probe(f"{options.host}:{port}")
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise UsageError(f"port {port} is taken by another process; choose another with {name}") from error
            raise UsageError(str(error.strerror or error)) from error
