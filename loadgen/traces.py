"""Readers of recorded workloads. The format is found from the first line; every complaint names file and line.

mooncake       JSONL  timestamp (ms), input_length, output_length, hash_ids (one a 512-token block)
agentic        JSONL  one conversation a line: block_size, requests [{t, in, out, blocks as [first id, count] runs}]
conversations  JSONL  {id, messages}: each assistant message becomes a request of everything before it
edits          JSONL  conversation_id, t_ms, keep, add, output: the prompt before, cut to `keep` characters, then `add`
azure          CSV    TIMESTAMP, ContextTokens, GeneratedTokens
servegen       CSV    timestamp_s, client_id, input_tokens, output_tokens
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from loadgen import chats, tables
from loadgen.errors import TraceError
from loadgen.rows import Row, Trace
from loadgen.tables import Lines

LINE_BYTES_MAX = 64 * 1024 * 1024
"""A longer line is no trace."""


@dataclass(frozen=True, slots=True)
class Options:
    """How to read, where a format leaves it open."""

    at_once: int = 32
    """conversations: how many run beside each other; their turns take turns"""
    conversation_gap_s: float = 30.0
    """agentic, edits: conversations have clocks of their own; a new one starts this often"""
    idle_s_max: float = 60.0
    """agentic, edits: longer pauses between two turns are cut to this"""
    client_prompt_tokens: int = 0
    """servegen: the trace says nothing of prefixes; this many first tokens are the client's own system prompt"""


@dataclass(frozen=True, slots=True)
class _Format:
    rows: Callable[[Lines, Options], Iterator[Row]]
    timed: bool = True


_FORMATS = {
    "mooncake": _Format(lambda lines, _: tables.mooncake(lines)),
    "agentic": _Format(lambda lines, o: tables.agentic(lines, gap_s=o.conversation_gap_s, idle_s_max=o.idle_s_max)),
    "azure": _Format(lambda lines, _: tables.azure(lines)),
    "servegen": _Format(lambda lines, o: tables.servegen(lines, client_prompt_tokens=o.client_prompt_tokens)),
    "conversations": _Format(lambda lines, o: chats.conversations(lines, at_once=o.at_once), timed=False),
    "edits": _Format(lambda lines, o: chats.edits(lines, gap_s=o.conversation_gap_s, idle_s_max=o.idle_s_max)),
}


def read(path: Path, *, limit: int, options: Options | None = None) -> Trace:
    """The first `limit` requests of a file, .gz or plain. TraceError: absent, empty, or a line that does not fit."""
    name, rows = open_rows(path, options or Options())
    taken = list(islice(rows, limit))
    if not taken:
        raise TraceError(str(path), 0, "there is no request in it")
    timed = _FORMATS[name].timed
    return Trace(path.name, sorted(taken, key=lambda row: row.at_s) if timed else taken, timed)


def open_rows(path: Path, options: Options) -> tuple[str, Iterator[Row]]:
    """The format's name and a stream of rows. TraceError, now or while the rows are read."""
    first = next(_lines(path), None)
    if first is None:
        raise TraceError(str(path), 0, "the file is empty")
    name = _format_of(path, first[1])
    return name, _named(path, _FORMATS[name].rows(_lines(path), options))


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Line numbers from 1, and lines without their end; blank lines are left out."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            number = 0
            while line := file.readline(LINE_BYTES_MAX):
                number += 1
                if stripped := line.strip():
                    yield number, stripped
    except EOFError:
        raise TraceError(str(path), 0, "the compressed file is cut off") from None
    except zlib.error as error:
        raise TraceError(str(path), 0, f"the compressed file is damaged: {error}") from None
    except OSError as error:
        raise TraceError(str(path), 0, error.strerror or str(error)) from None


def _named(path: Path, rows: Iterator[Row]) -> Iterator[Row]:
    try:
        yield from rows
    except tables.BadLine as error:
        raise TraceError(str(path), error.line, str(error)) from None


def _format_of(path: Path, line: bytes) -> str:
    """TraceError: none that is known here."""
    if line.startswith(b"{"):
        try:
            keys = set(json.loads(line))
        except ValueError as error:
            raise TraceError(str(path), 1, f"not JSON: {error}") from None
        for name, wanted in (
            ("mooncake", "hash_ids"),
            ("agentic", "requests"),
            ("conversations", "messages"),
            ("edits", "keep"),
        ):
            if wanted in keys:
                return name
        raise TraceError(str(path), 1, f"no known trace: an object with {', '.join(sorted(keys)[:6]) or 'nothing'}")
    columns = line.decode("utf-8", "replace").replace(" ", "").split(",")
    if "ContextTokens" in columns:
        return "azure"
    if "timestamp_s" in columns:
        return "servegen"
    raise TraceError(str(path), 1, f"no known trace: it begins with {line[:40].decode('utf-8', 'replace')!r}")
