"""A whole stack for a test: `headway up` as a person starts it, on free ports."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from proto import fleet_pb2, fleet_pb2_grpc
from tests.e2e.told import told
from tests.ports import free_ports
from tests.waiting import wait_until

START_S_MAX = 90.0
TOLD = "What the stack had to tell: "
UP = "Ctrl-C ends everything"
"""The last line of a stack that is up."""
PATIENT = {"HEADWAY_DATAPLANE_DECISION_TIMEOUT_MS": "5000"}
"""For stacks of tests that say where requests go: on a machine that stands still for a moment the fallback would decide."""


running: list[RunningStack] = []
"""Those that are up: a failed test shows what each has to tell."""


@dataclass
class RunningStack:
    """What a test may ask of a stack that is up."""

    process: subprocess.Popen[str]
    home: Path
    url: str
    control: str
    workers: int
    output: list[str] = field(default_factory=list)

    def facts(self) -> dict[str, Any]:
        return dict(json.loads((self.home / "run.json").read_text()))

    def list_workers(self) -> fleet_pb2.WorkerList:
        with grpc.insecure_channel(self.control) as channel:
            return fleet_pb2_grpc.FleetStub(channel).ListWorkers(fleet_pb2.ListWorkersRequest(), timeout=5)

    def alive_workers(self) -> set[str]:
        """Empty, too, while the control plane does not answer."""
        try:
            return {status.worker for status in self.list_workers().workers if status.alive}
        except grpc.RpcError:
            return set()

    def sees(self, processes: int) -> bool:
        """Requests are served before, by the text of their prompts and a part of the fleet."""
        if self.log().count("tokenizer ready") < processes:
            return False
        try:
            workers = self.list_workers().workers
        except grpc.RpcError:
            return False
        return len(workers) == self.workers and all(one.alive and one.index == fleet_pb2.EXACT for one in workers)

    def set_policy(self, name: str) -> None:
        with grpc.insecure_channel(self.control) as channel:
            fleet_pb2_grpc.FleetStub(channel).SetPolicy(fleet_pb2.SetPolicyRequest(name=name), timeout=5)

    def child_pids(self) -> dict[str, list[int]]:
        """Processes of the stack right now, by a name made of module and its arguments' worker number."""
        found: dict[str, list[int]] = {}
        for pid in descendants(self.process.pid):
            command = command_line(pid)
            found.setdefault(_name_of(command), []).append(pid)
        return found

    def kill(self, name: str) -> int:
        """SIGKILL to the one process of that name; its pid."""
        pids = self.child_pids().get(name, [])
        assert len(pids) == 1, f"{name}: {pids}"
        os.kill(pids[0], signal.SIGKILL)
        return pids[0]

    def log(self) -> str:
        return (self.home / "up.log").read_text(errors="replace")

    def told(self) -> str:
        """What its processes wait for right now, their logs, sockets and figures; kept in its home, too."""
        port = int(self.url.rpartition(":")[2])
        pages = [f"http://127.0.0.1:{at}/metrics" for at in (port, port + 2, *range(port + 3, port + 3 + self.workers))]
        text = told(self.home / "up.log", self.all_pids(), pages)
        with (self.home / "told.txt").open("a") as file:
            file.write(text + "\n")
        return text

    def all_pids(self) -> dict[str, list[int]]:
        """`child_pids` with the processes that those started themselves, under `name/`."""
        found = self.child_pids()
        for name, pids in list(found.items()):
            if below := [child for pid in pids for child in descendants(pid)]:
                found[name + "/"] = below
        return found


def _name_of(command: list[str]) -> str:
    if any("redis-server" in part for part in command[:1]):
        return "redis"
    if "-m" in command:
        module = command[command.index("-m") + 1]
        if "--worker" in command:
            return "agent-" + command[command.index("--worker") + 1].rpartition("-")[2]
        if module == "controlplane" and any("control-2.sock" in part for part in command):
            return "controlplane-2"
        if module == "emulator":
            return "engine@" + command[command.index("--port") + 1]
        return module
    return " ".join(command[:2])


def command_line(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")[:-1]
    except OSError:
        return []


def descendants(pid: int) -> list[int]:
    """Direct children of a process, alive (no zombies)."""
    pids = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid and fields[0] != "Z":
            pids.append(int(stat.parent.name))
    return pids


@contextmanager
def running_stack(
    home: Path, *arguments: str, workers: int = 2, environment: Mapping[str, str] | None = None
) -> Iterator[RunningStack]:
    """`headway up` with these arguments; ended, and checked to have left nothing behind, at the end.

    environment: variables beside those of this process: settings of the children.
    """
    first = free_ports(3 + workers)
    command = [
        *(sys.executable, "-m", "headway", "up"),
        *("--workers", str(workers)),
        *("--port", str(first), "--grpc-port", str(first + 1), "--metrics-port", str(first + 2)),
        *("--worker-port", str(first + 3)),
        *arguments,
    ]
    environment = {**os.environ, **(environment or {}), "HEADWAY_HOME": str(home)}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, start_new_session=True
    )
    stack = RunningStack(process, home, f"http://127.0.0.1:{first}", f"127.0.0.1:{first + 1}", workers)
    up = threading.Event()
    reader = threading.Thread(target=_read, args=(process, stack.output, up), daemon=True)
    reader.start()
    children: list[int] = []
    try:
        assert up.wait(START_S_MAX), "did not come up:\n" + "".join(stack.output)
        assert any(UP in line for line in stack.output), "ended at start:\n" + "".join(stack.output)
        processes = int(arguments[arguments.index("--processes") + 1]) if "--processes" in arguments else 1
        wait_until(lambda: stack.sees(processes), seconds_max=START_S_MAX, what="prompts are read, the caches known")
        running.append(stack)
        yield stack
        children = descendants(process.pid)
    except (GeneratorExit, KeyboardInterrupt):
        raise
    except BaseException as error:  # a test's own failure and its timeout are no Exception
        add_told(error, stack)
        raise
    finally:
        if stack in running:
            running.remove(stack)
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(timeout=45)
            except subprocess.TimeoutExpired:
                error = AssertionError("did not end within 45 s of Ctrl-C:\n" + "".join(stack.output[-30:]))
                add_told(error, stack)
                process.kill()
                process.wait()
                raise error from None
        reader.join(timeout=5)
    left = [pid for pid in children if command_line(pid)]
    assert not left, f"left behind: {[command_line(pid) for pid in left]}"


def add_told(error: BaseException, stack: RunningStack) -> None:
    """Shown with the error, once."""
    if not any(note.startswith(TOLD) for note in getattr(error, "__notes__", ())):
        error.add_note(f"{TOLD}{stack.url} (also in {stack.home}/told.txt)\n{stack.told()}")


def _read(process: subprocess.Popen[str], lines: list[str], up: threading.Event) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        lines.append(line)
        if UP in line:
            up.set()
    up.set()


def curl_line(output: list[str]) -> str:
    """The command that `headway up` printed for pasting."""
    (line,) = [line for line in output if re.match(r"\s*curl ", line)]
    return line.strip()
