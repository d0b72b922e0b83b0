"""What the running stack wrote down about itself, so that the other commands find it without being told."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

CONTROL_DEFAULT = "127.0.0.1:50051"
TRAINER_DEFAULT = "127.0.0.1:50052"
URL_DEFAULT = "http://127.0.0.1:8000"


def directory() -> Path:
    """`.headway` in the working directory, or where HEADWAY_HOME says."""
    return Path(os.environ.get("HEADWAY_HOME", ".headway"))


def _path() -> Path:
    return directory() / "run.json"


def write(**facts: Any) -> None:
    directory().mkdir(parents=True, exist_ok=True)
    temporary = _path().with_suffix(".new")
    temporary.write_text(json.dumps(facts, indent=2))
    temporary.replace(_path())


def read() -> dict[str, Any] | None:
    """None: no stack was started here, or its process is gone."""
    try:
        facts = json.loads(_path().read_text())
        os.kill(int(facts["pid"]), 0)
    except (OSError, ValueError, KeyError):
        return None
    return dict(facts)


def remove(pid: int) -> None:
    """Only the one who wrote it removes it."""
    facts = read()
    if facts is not None and facts.get("pid") == pid:
        _path().unlink(missing_ok=True)


def trainer_target(given: str) -> str:
    """What was given, else HEADWAY_TRAINER, else the trainer of the stack started here, else the default address."""
    facts = read()
    return given or os.environ.get("HEADWAY_TRAINER", "") or (str(facts.get("trainer", "")) if facts else "") or TRAINER_DEFAULT


def control_target(given: str) -> str:
    """What was given, else HEADWAY_CONTROL, else the stack started here, else the default address."""
    facts = read()
    return given or os.environ.get("HEADWAY_CONTROL", "") or (str(facts["control"]) if facts else CONTROL_DEFAULT)


def proxy_url(given: str) -> str:
    """What was given, else HEADWAY_URL, else the stack started here, else the default address."""
    facts = read()
    return given or os.environ.get("HEADWAY_URL", "") or (str(facts["url"]) if facts else URL_DEFAULT)
