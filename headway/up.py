"""`headway up`: the whole stack on one machine.

Starts Redis, then the control plane and the engines, then the agents and the data plane, each stage once the one before is
healthy; prints where everything is and a curl line that streams; keeps every process alive; Ctrl-C (or SIGTERM, or `headway
down`) ends them all.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO, TypeVar

from controlplane.profiles import NAMES as POLICIES
from controlplane.ranks import AUTO, OFF
from emulator.presets import PRESETS
from headway import health, runfile
from headway.arguments import positive
from headway.embedded_redis import RedisUnavailable
from headway.errors import UsageError
from headway.plan import Process, StackOptions, check_ports, stack, trainer_target
from headway.supervisor import Child, describe_exit

Number = TypeVar("Number", int, float)

REDIS_SCHEMES = ("redis://", "rediss://", "unix://")
PATIENCE_S = 5.0
"""After it, what a process says that is not up yet is shown."""
START_TIMEOUT_S = 90.0
"""For one stage: a cold machine imports slowly."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    default = StackOptions()
    parser.add_argument("--workers", type=int, default=default.workers, help="emulated workers (default: %(default)s)")
    parser.add_argument(
        "--preset",
        default=default.presets[0],
        metavar="NAME,NAME,...",
        help=f"what they emulate, in turn: of {', '.join(PRESETS)} (default: %(default)s)",
    )
    parser.add_argument("--model", default="", help="model name they serve (default: the presets' own)")
    parser.add_argument("--policy", default=default.policy, help="routing policy at start (default: %(default)s)")
    parser.add_argument("--host", default=default.host, help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=default.port, help="OpenAI API (default: %(default)s)")
    parser.add_argument("--grpc-port", type=int, default=default.grpc_port, help="control plane (default: %(default)s)")
    parser.add_argument(
        "--metrics-port", type=int, default=default.metrics_port, help="control plane's /metrics (default: %(default)s)"
    )
    parser.add_argument(
        "--controls",
        type=int,
        default=1,
        help="control planes: the first decides, the others stand by, their ports a hundred up each (default: 1)",
    )
    parser.add_argument(
        "--worker-port", type=int, default=default.worker_port, help="first engine; the others follow (default: %(default)s)"
    )
    parser.add_argument("--processes", type=int, default=1, help="data-plane processes on one port (default: 1)")
    parser.add_argument("--speed", type=positive, default=1.0, help="emulated time runs this many times faster (default: 1)")
    parser.add_argument(
        "--worker-speeds",
        default="",
        metavar="X,X,...",
        help="an unequal fleet: how fast each emulated worker is beside the others, in turn (such as 1,1,0.4,0.4)",
    )
    parser.add_argument(
        "--worker-blocks", default="", metavar="N,N,...", help="KV blocks of each emulated worker, in turn; 0: the preset's"
    )
    parser.add_argument(
        "--ranks", type=int, default=default.ranks, help="data-parallel engines behind each emulated worker (default: 1)"
    )
    parser.add_argument(
        "--steer-ranks",
        choices=(AUTO, OFF),
        default=default.steer_ranks,
        help="whether requests are sent to ranks, or engines balance over theirs (default: %(default)s)",
    )
    parser.add_argument(
        "--engine",
        action="append",
        default=[],
        metavar="URL",
        help="a running vLLM server, instead of emulated workers (repeat)",
    )
    parser.add_argument("--tokenizer", default="", help="path or hub name, for --engine (default: the model path they report)")
    parser.add_argument("--redis-url", default="", help="an existing Redis (default: an embedded one)")
    parser.add_argument("--no-trainer", action="store_true", help="no models of TTFT are learned from this stack's traffic")
    parser.add_argument("--engine-faults", action="store_true", help="emulators take orders to misbehave")
    parser.add_argument("--log", default="", help="log file (default: .headway/up.log)")
    parser.add_argument("--verbose", action="store_true", help="every process's log on the terminal, too")


def options_of(args: argparse.Namespace) -> StackOptions:
    """UsageError: values that make no sense."""
    if not 1 <= args.workers <= 64:
        raise UsageError(f"--workers: {args.workers} is not between 1 and 64")
    if not 1 <= args.ranks <= 16:
        raise UsageError(f"--ranks: {args.ranks} is not between 1 and 16")
    if not 1 <= args.controls <= 8:
        raise UsageError(f"--controls: {args.controls} is not between 1 and 8")
    if args.processes < 1:
        raise UsageError(f"--processes: {args.processes} must be at least 1")
    if args.policy not in POLICIES:
        raise UsageError(f"--policy: no policy {args.policy!r}; there are {', '.join(POLICIES)}")
    if args.redis_url and not args.redis_url.startswith(REDIS_SCHEMES):
        raise UsageError(f"--redis-url: {args.redis_url!r} begins with none of {', '.join(REDIS_SCHEMES)}")
    if args.tokenizer and not args.engine:
        raise UsageError("--tokenizer: of the engines that --engine names; emulated workers have their own")
    for url in args.engine:
        if not url.startswith(("http://", "https://")):
            raise UsageError(f"--engine: {url!r} is not a base URL such as http://127.0.0.1:8001")
    presets = tuple(args.preset.split(","))
    if unknown := [name for name in presets if name not in PRESETS]:
        raise UsageError(f"--preset: no preset {unknown[0]!r}; there are {', '.join(PRESETS)}")
    lists: dict[str, Any] = {
        "presets": presets,
        "worker_speeds": _numbers("--worker-speeds", args.worker_speeds, float, 0.01),
        "worker_blocks": _numbers("--worker-blocks", args.worker_blocks, int, 0),
        "engines": tuple(url.rstrip("/") for url in args.engine),
        "trainer_dir": "" if args.no_trainer else str(runfile.directory() / "trainer"),
    }
    options = StackOptions(
        **{name: getattr(args, name) for name in StackOptions.__dataclass_fields__ if name not in lists}, **lists
    )
    for flag, port in options.ports().items():
        if not 1 <= port <= 65_535:
            raise UsageError(f"{flag}: {port} is not a TCP port")
    return options


def _numbers(flag: str, text: str, kind: type[Number], least: float) -> tuple[Number, ...]:
    try:
        values = tuple(kind(part) for part in text.split(",")) if text else ()
    except ValueError:
        raise UsageError(f"{flag}: {text!r} is not a list of numbers such as 1,1,2") from None
    if any(not value >= least for value in values):
        raise UsageError(f"{flag}: {text!r} has a number below {least}")
    return values


def run(args: argparse.Namespace) -> int:
    options = options_of(args)
    facts = runfile.read()
    if facts is not None:
        raise UsageError(
            f"a stack is up here already, at {facts.get('url')}: `headway down` ends it, another HEADWAY_HOME lets both be"
        )
    check_ports(options)
    if not options.redis_url:
        os.environ.pop(runfile.PASSWORD_VARIABLE, None)  # of another Redis: ours has none, and refuses who gives one
    home = runfile.make_directory()
    run_dir = Path(tempfile.mkdtemp(prefix="headway-"))  # short: a Unix socket's path has room for 107 bytes
    log_path = Path(args.log or home / "up.log")
    try:
        with _opened(log_path) as log:
            processes = stack(options, run_dir)
            return asyncio.run(Stack(options, processes, run_dir, log, log_path, verbose=args.verbose).run())
    except RedisUnavailable as error:
        raise UsageError(str(error)) from error
    finally:
        shutil.rmtree(run_dir, ignore_errors=True)


def _opened(path: Path) -> TextIO:
    """For writing. UsageError: it cannot be."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("w", encoding="utf-8")
    except OSError as error:
        raise UsageError(f"the log {path} cannot be written: {error.strerror or error}") from error


@dataclass
class _Terminal:
    """What the person sees: one line a step, redrawn in place where the output is a terminal."""

    out: TextIO
    verbose: bool

    def say(self, text: str = "") -> None:
        print(text, file=self.out, flush=True)

    def on_line(self, name: str, line: str) -> None:
        if self.verbose or " E " in line[:24] or "; starting again in " in line or "Traceback" in line or _is_grave(name, line):
            self.say(f"{name:<13}| {line}")


def _is_grave(name: str, line: str) -> bool:
    """A warning that whoever looks at the fleet's figures must have read; once, of the two processes that give it."""
    return name == "dataplane" and "prompts are hashed as text" in line and "dataplane/prompts" not in line


class Stack:
    """One stack's life, from the first process to the last."""

    def __init__(
        self, options: StackOptions, processes: list[Process], run_dir: Path, log: TextIO, log_path: Path, *, verbose: bool
    ) -> None:
        self._options = options
        self._run_dir = run_dir
        self._log_path = log_path
        self._terminal = _Terminal(sys.stdout, verbose)
        self._control = f"unix:{run_dir / 'control.sock'}"
        self._children = [Child(process, log, self._terminal.on_line) for process in processes]
        self._ending = asyncio.Event()

    async def run(self) -> int:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, self._ending.set)
        try:
            if not await self._start():
                return 0 if self._ending.is_set() else 1
            self._announce()
            await self._ending.wait()
            return 0
        finally:
            await self._stop()

    async def _start(self) -> bool:
        """False: a process did not come up, or we were told to end meanwhile."""
        for stage in sorted({child.process.stage for child in self._children}):
            children = [child for child in self._children if child.process.stage == stage]
            for child in children:
                child.start()
            for child in children:
                if not await self._wait_up(child):
                    return False
        return True

    async def _wait_up(self, child: Child) -> bool:
        if not child.process.health:
            return True
        started = time.monotonic()
        ending = asyncio.create_task(self._ending.wait())
        broken = asyncio.create_task(_ended(child))
        healthy = asyncio.create_task(health.wait_healthy(child.process.health, self._control, START_TIMEOUT_S))
        tasks = {ending, broken, healthy}
        done, _ = await asyncio.wait(tasks, timeout=PATIENCE_S, return_when=asyncio.FIRST_COMPLETED)
        if not done:
            said = _last_lines(self._log_path, child.process.name, 1) or ["nothing said yet"]
            self._terminal.say(f"  {child.process.name:<13} not up yet: {said[0].partition('| ')[2] or said[0]}")
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if ending.done() and not ending.cancelled():
            return False
        if healthy.done() and not healthy.cancelled() and healthy.result():
            self._terminal.say(f"  {child.process.name:<13} up after {time.monotonic() - started:.1f} s")
            return True
        why = describe_exit(child.exit_code) if not broken.cancelled() else f"no sign of health within {START_TIMEOUT_S:.0f} s"
        self._terminal.say(f"headway up: {child.process.name} did not come up ({why}). Its last words:")
        for line in _last_lines(self._log_path, child.process.name):
            self._terminal.say(f"  {line}")
        return False

    def _announce(self) -> None:
        options = self._options
        model = _served_model(f"http://{options.host}:{options.port}") or options.model or options.presets[0]
        runfile.write(
            pid=os.getpid(),
            url=f"http://{options.host}:{options.port}",
            control=options.control,
            model=model,
            log=str(self._log_path),
            redis_url=options.redis_url or f"unix://{self._run_dir / 'redis.sock'}",
            redis_embedded=not options.redis_url,
            speed=1.0 if options.engines else options.speed,
            sockets=str(self._run_dir),
            trainer=trainer_target(self._run_dir) if options.trainer_dir else "",
        )
        body = json.dumps(
            {
                "model": model,
                "stream": True,
                "max_tokens": 40,
                "messages": [
                    {"role": "system", "content": "You are a friendly guide to the railways of Europe."},
                    {"role": "user", "content": "How do I get from Lisbon to Tallinn?"},
                ],
            }
        )
        say = self._terminal.say
        say()
        fleet = (
            f"{len(options.engines)} engine{'' if len(options.engines) == 1 else 's'}"
            if options.engines
            else f"{options.workers} emulated workers ({', '.join(options.presets)})"
        )
        say(f"Headway is up: {fleet}, policy {options.policy}.")
        say()
        say(f"  OpenAI API   http://{options.host}:{options.port}/v1")
        standby = f"; {', '.join(options.control.split(',')[1:])} stands by" if options.controls > 1 else ""
        say(f"  gRPC         {options.host}:{options.grpc_port}   (reflection is on{standby})")
        say(
            f"  metrics      http://{options.host}:{options.port}/metrics   http://{options.host}:{options.metrics_port}/metrics"
        )
        say(f"  log          {self._log_path}")
        say()
        say("Stream a chat; the x-headway-* headers say which worker served it:")
        say()
        url = f"http://{options.host}:{options.port}/v1/chat/completions"
        say(f"curl -sS -N -i {url} -H 'content-type: application/json' -d '{body}'")
        say()
        command = _command()
        say(f"Then: {command} explain    {command} workers    {command} policy prefix    {command} replay    {command} models")
        say("Ctrl-C ends everything.")

    async def _stop(self) -> None:
        self._terminal.say("ending ...")
        # Reverse order: callers before what they call, so that streams can end well.
        for stage in sorted({child.process.stage for child in self._children}, reverse=True):
            await asyncio.gather(*(child.stop() for child in self._children if child.process.stage == stage))
        runfile.remove(os.getpid())
        self._terminal.say("ended.")


async def _ended(child: Child) -> None:
    """Returns when the child has ended: during start that is a failure, not a reason to try again."""
    while True:
        await child.changed.wait()
        child.changed.clear()
        if child.exit_code is not None:
            return


def _last_lines(path: Path, name: str, count: int = 12) -> list[str]:
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    return [line for line in lines if line.startswith(f"{name:<13}|")][-count:]


def _command() -> str:
    """How whoever typed this one types the others."""
    typed = Path(sys.argv[0])
    if typed.name == "__main__.py":
        return "python -m headway"
    return typed.name if shutil.which(typed.name) else os.path.relpath(typed)


def _served_model(url: str) -> str:
    """The first model of the fleet, as a caller sees it; "" where it cannot be asked."""
    import urllib.request

    try:
        with urllib.request.urlopen(f"{url}/v1/models", timeout=5) as reply:
            models = json.load(reply)["data"]
    except (OSError, ValueError, KeyError):
        return ""
    return str(models[0]["id"]) if models else ""
