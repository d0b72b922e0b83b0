"""One readable line an event on stderr; `json` for machines.

A record's extra fields come as `log.info("breaker opened", extra={"f": {"worker": "w1"}})` and print as `worker=w1`.
Nothing secret is passed to a log: keys and prompts stay out by habit, and authorization headers never enter a record.
"""

from __future__ import annotations

import logging
import sys
import time
from typing import Any

import msgspec

LEVELS = ("debug", "info", "warning", "error")
FORMATS = ("text", "json")

_json = msgspec.json.Encoder()


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    fields = getattr(record, "f", None)
    return fields if isinstance(fields, dict) else {}


class TextFormatter(logging.Formatter):
    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        stamp = time.strftime("%H:%M:%S", time.localtime(record.created))
        line = f"{stamp}.{int(record.msecs):03d} {record.levelname[0]} {self._process:<14} {record.getMessage()}"
        for name, value in _fields(record).items():
            line += f" {name}={value}"
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line


class JsonFormatter(logging.Formatter):
    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, Any] = {
            "at": round(record.created, 3),
            "level": record.levelname.lower(),
            "process": self._process,
            "message": record.getMessage(),
            **{
                name: value if isinstance(value, int | float | str | bool) else str(value)
                for name, value in _fields(record).items()
            },
        }
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        return _json.encode(entry).decode()


def configure(process: str, *, level: str = "info", format: str = "text") -> None:
    """Call once, from `__main__`."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter(process) if format == "json" else TextFormatter(process))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for noisy in ("asyncio", "urllib3", "filelock", "transformers", "datasets", "httpx"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
