"""What the running stack wrote down about itself, so that the other commands find it without being told."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from headway.errors import UsageError
from runtime.redis_url import check_redis_url, with_password

CONTROL_DEFAULT = "127.0.0.1:50051"
TRAINER_DEFAULT = "127.0.0.1:50052"
URL_DEFAULT = "http://127.0.0.1:8000"
PASSWORD_VARIABLE = "REDIS_PASSWORD"


def directory() -> Path:
    """`.headway` in the working directory, or where HEADWAY_HOME says."""
    return Path(os.environ.get("HEADWAY_HOME", ".headway"))


def make_directory() -> Path:
    """UsageError: it cannot be had."""
    wanted = directory()
    try:
        wanted.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        why = error.strerror or str(error)
        raise UsageError(f"{wanted} cannot be made: {why} (HEADWAY_HOME names another directory)") from error
    return wanted


def _path() -> Path:
    return directory() / "run.json"


def write(*, pid: int, **facts: Any) -> None:
    """pid: of the stack, while which lives the facts hold."""
    facts |= {"pid": pid, "pid_started": _started(pid)}
    make_directory()
    temporary = _path().with_suffix(".new")
    temporary.write_text(json.dumps(facts, indent=2))
    temporary.replace(_path())


def read() -> dict[str, Any] | None:
    """None: no stack was started here, or its process is gone."""
    try:
        facts = json.loads(_path().read_text())
        pid = int(facts["pid"])
        if pid <= 0:  # a group, or everybody
            return None
        os.kill(pid, 0)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if facts.get("pid_started", 0) not in (0, _started(pid)):
        return None  # another process has that number now, and `down` would end it
    return dict(facts)


def _started(pid: int) -> int:
    """When a process was started, in clock ticks since boot; 0 where the system does not say."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return 0
    return int(stat.rpartition(")")[2].split()[19])


def remove(pid: int) -> None:
    """Only the one who wrote it removes it."""
    facts = read()
    if facts is not None and facts.get("pid") == pid:
        _path().unlink(missing_ok=True)


def redis_url(given: str) -> str:
    """What was given, else that of the stack started here, with the password that REDIS_PASSWORD says; "": none is known.
    The Redis that `headway up` starts has none, whatever the variable says. ValueError: no Redis URL."""
    password = os.environ.get(PASSWORD_VARIABLE, "")
    if not given and (facts := read()) is not None:
        given = str(facts.get("redis_url", ""))
        password = "" if facts.get("redis_embedded") else password
    if given:
        check_redis_url("--redis-url", given)
    return with_password(given, password)


def trainer_target(given: str) -> str:
    """What was given, else HEADWAY_TRAINER, else the trainer of the stack started here, else the default address."""
    facts = read()
    return given or os.environ.get("HEADWAY_TRAINER", "") or (str(facts.get("trainer", "")) if facts else "") or TRAINER_DEFAULT


def control_target(given: str) -> str:
    """What was given, else HEADWAY_CONTROL, else the stack started here, else the default address; several with commas."""
    facts = read()
    return given or os.environ.get("HEADWAY_CONTROL", "") or (str(facts["control"]) if facts else CONTROL_DEFAULT)


def proxy_url(given: str) -> str:
    """What was given, else HEADWAY_URL, else the stack started here, else the default address."""
    facts = read()
    return given or os.environ.get("HEADWAY_URL", "") or (str(facts["url"]) if facts else URL_DEFAULT)
