"""What a stack has to tell when a test on it fails: of every process what it waits for, its log's last lines, its sockets.

Bounded throughout: what a failed run prints is read by people, and kept by machines that cut it.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
import urllib.request
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

LOG_LINES_MAX = 25
"""Of one process, its last."""
LINE_CHARS_MAX = 600
TELL_S_MAX = 3.0
"""How long processes may take to tell, all together."""
QUIET_S = 0.3
"""They have told when nothing more came for so long."""
PAGE_S_MAX = 2.0
METRICS_MAX = 60
CHARS_MAX = 60_000

_STATES = {"01": "established", "02": "syn sent", "03": "syn received", "08": "close wait", "0A": "listens"}
_LOOKED_AT = re.compile(
    r"in_flight|connection|reservation|waiting|queue|breaker|active|running|pending|shed|fallback|decisions|retries"
    r"|attempts|late|lag|idle|connected|available|alive|outcomes"
)


def told(log: Path, processes: Mapping[str, Sequence[int]], pages: Sequence[str]) -> str:
    """processes: pids by name; pages: URLs of metrics. Asks all of them, now: while they still wait for whatever it is."""
    before = log.stat().st_size if log.exists() else 0
    asked = [(name, pid) for name, pids in processes.items() for pid in pids if _tells(pid)]
    for _, pid in asked:
        os.kill(pid, signal.SIGUSR1)
    _wait_for_quiet(log)
    parts = [
        "--- processes", *_safely(lambda: _processes(processes)),
        "--- sockets", *_safely(lambda: _sockets(pages)),
        "--- what they tell", *_safely(lambda: _shortened(_by_process(_text(log, before)))),
        "--- logs before", *_safely(lambda: _tails(_text(log, 0, before))),
    ]  # fmt: skip
    for page in pages:
        parts += [f"--- {page}", *_safely(lambda page=page: _metrics(page))]  # type: ignore[misc]
    text = "\n".join(parts)
    return text if len(text) <= CHARS_MAX else text[:CHARS_MAX] + "\n(cut)"


def _tells(pid: int) -> bool:
    """It catches the signal: another process would be ended by it."""
    found = re.search(r"^SigCgt:\s*(\w+)", _status(pid), re.MULTILINE)
    return found is not None and bool(int(found[1], 16) >> (signal.SIGUSR1 - 1) & 1)


def _wait_for_quiet(log: Path) -> None:
    deadline, size, since = time.monotonic() + TELL_S_MAX, -1, time.monotonic()
    while time.monotonic() < deadline and time.monotonic() - since < QUIET_S:
        now = log.stat().st_size if log.exists() else 0
        if now != size:
            size, since = now, time.monotonic()
        time.sleep(0.02)  # a file has no event


def _processes(processes: Mapping[str, Sequence[int]]) -> list[str]:
    ticks = os.sysconf("SC_CLK_TCK")
    lines = [f"load {os.getloadavg()}, {Path('/proc/pressure/cpu').read_text().splitlines()[0]}"]
    for name, pids in processes.items():
        for pid in pids:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            cpu_s = (int(fields[11]) + int(fields[12])) / ticks
            waits = Path(f"/proc/{pid}/wchan").read_text() if os.access(f"/proc/{pid}/wchan", os.R_OK) else "?"
            files = len(os.listdir(f"/proc/{pid}/fd"))
            lines.append(f"{name} ({pid}): {fields[0]}, {cpu_s:.2f} s of CPU, {files} files, waits in {waits}")
    return lines


def _sockets(pages: Sequence[str]) -> list[str]:
    """Of each port that listens: connections waiting to be accepted, and by state how many have bytes that nobody read, or that
    are not acknowledged."""
    listening: dict[str, str] = {}
    states: dict[str, Counter[str]] = {}
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    ours = range(*_ports(pages))
    for row in rows:
        local, remote = (int(address.rpartition(":")[2], 16) for address in row[1:3])
        sent, got = (int(size, 16) for size in row[4].split(":"))
        if row[3] == "0A" and local in ours:
            listening[str(local)] = f"port {local}: {got} connections wait to be accepted"
        side, port = ("at", local) if local in ours else ("to", remote)
        if row[3] != "0A" and port in ours:
            what = _STATES.get(row[3], row[3]) + (", unread" if got else "") + (", unsent" if sent else "")
            states.setdefault(str(port), Counter())[f"{side} it: {what}"] += 1
    lines = [listening.get(port, f"port {port}: nobody listens") for port in {**listening, **states}]
    lines += [f"port {port} {what}: {count}" for port, counts in states.items() for what, count in counts.most_common()]
    return lines + [line for line in _run("nstat", "-az") if re.search(r"Listen(Over|Drop)|SynRetrans|Timeouts ", line)]


def _ports(pages: Sequence[str]) -> tuple[int, int]:
    ports = [int(found[1]) for page in pages if (found := re.search(r":(\d+)/", page))]
    return (min(ports), max(ports) + 1) if ports else (0, 0)


def _tails(text: str) -> list[str]:
    """The last lines of each process; a log's line begins with the name of who wrote it."""
    last: dict[str, deque[str]] = {}
    for line in text.splitlines():
        last.setdefault(line.partition("|")[0], deque(maxlen=LOG_LINES_MAX)).append(line)
    return _shortened([line for lines in last.values() for line in lines])


def _by_process(text: str) -> list[str]:
    return sorted(text.splitlines(), key=lambda line: line.partition("|")[0])


def _metrics(page: str) -> list[str]:
    with urllib.request.urlopen(page, timeout=PAGE_S_MAX) as reply:
        lines = reply.read().decode().splitlines()
    found = [line for line in lines if not line.startswith("#") and "_bucket" not in line and not line.endswith((" 0", " 0.0"))]
    return [line for line in found if _LOOKED_AT.search(line.partition("{")[0])][:METRICS_MAX]


def _shortened(lines: Sequence[str]) -> list[str]:
    return [line if len(line) <= LINE_CHARS_MAX else line[:LINE_CHARS_MAX] + "..." for line in lines]


def _text(log: Path, start: int, stop: int | None = None) -> str:
    with log.open("rb") as file:
        file.seek(start)
        return file.read(-1 if stop is None else max(0, stop - start)).decode(errors="replace")


def _run(*command: str) -> list[str]:
    done = subprocess.run(command, capture_output=True, text=True, timeout=PAGE_S_MAX, check=False)
    return done.stdout.splitlines()


def _status(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return ""


def _safely(part: Callable[[], list[str]]) -> list[str]:
    """A process that ended meanwhile, a tool that is not there: the other parts are told all the same."""
    try:
        return part()
    except Exception as error:
        return [f"({type(error).__name__}: {error})"]
