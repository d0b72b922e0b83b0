"""The supervisor: what ends is started again, what is stopped stays stopped, what refuses to end is ended."""

from __future__ import annotations

import asyncio
import io
import os
import signal
import subprocess
import sys
from functools import partial

from headway.plan import Process
from headway.supervisor import Child, describe_exit, die_with

WAIT_S_MAX = 20.0


class Lines:
    """What a child said, to wait for."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self._more = asyncio.Event()

    def __call__(self, name: str, line: str) -> None:
        self.seen.append(line)
        self._more.set()

    async def until(self, text: str) -> None:
        async with asyncio.timeout(WAIT_S_MAX):
            while not any(text in line for line in self.seen):
                self._more.clear()
                await self._more.wait()


def child_of(code: str, *, grace_s: float = 5.0) -> tuple[Child, Lines]:
    lines = Lines()
    process = Process("example", [sys.executable, "-c", code], "", stop_grace_s=grace_s)
    return Child(process, io.StringIO(), lines), lines


async def next_change(child: Child) -> None:
    await asyncio.wait_for(child.changed.wait(), WAIT_S_MAX)
    child.changed.clear()


async def test_a_killed_child_is_started_again() -> None:
    child, lines = child_of("import signal; print('here', flush=True); signal.pause()")
    child.start()
    await lines.until("here")
    first = child.pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    async with asyncio.timeout(WAIT_S_MAX):
        while child.starts < 2:
            await next_change(child)
    assert any("SIGKILL" in line for line in lines.seen)
    await child.stop()
    assert child.pid is None


async def test_a_stopped_child_stays_stopped() -> None:
    child, lines = child_of("import signal; print('here', flush=True); signal.pause()")
    child.start()
    await lines.until("here")
    await child.stop()
    assert child.starts == 1
    assert child.exit_code == -signal.SIGTERM


async def test_a_child_deaf_to_sigterm_is_killed_after_its_grace() -> None:
    deaf = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); signal.pause()"
    child, lines = child_of(deaf, grace_s=0.3)
    child.start()
    await lines.until("deaf")
    await child.stop()
    assert "killed" in lines.seen[-1]
    assert child.exit_code == -signal.SIGKILL


async def test_a_child_that_cannot_live_does_not_block_the_end() -> None:
    child, lines = child_of("raise SystemExit(3)")
    child.start()
    await lines.until("exit code 3")
    await child.stop()


def test_a_child_whose_supervisor_died_before_it_began_does_not_begin() -> None:
    """Else the one that was being started in that moment would be left behind."""
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    for parent, code, says in ((gone.pid, -signal.SIGKILL, ""), (os.getpid(), 0, "began\n")):
        child = subprocess.Popen(
            [sys.executable, "-c", "print('began')"], stdout=subprocess.PIPE, text=True, preexec_fn=partial(die_with, parent)
        )
        said, _ = child.communicate(timeout=WAIT_S_MAX)
        assert (child.returncode, said) == (code, says)


def test_exits_are_described_in_words() -> None:
    assert describe_exit(-9) == "SIGKILL"
    assert describe_exit(3) == "exit code 3"
