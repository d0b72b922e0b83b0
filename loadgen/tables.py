"""Traces of lengths, times and shared blocks: lines in, rows out. Pure."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import TypeVar

import msgspec

from loadgen.rows import NAMESPACE_BITS, Blocks, Row, own_blocks, runs

Lines = Iterable[tuple[int, bytes]]
T = TypeVar("T")

MOONCAKE_BLOCK_TOKENS = 512
PLAIN_BLOCK_TOKENS = 512
"""For traces without prefix information: only how a prompt's text is cut into pieces."""


class BadLine(Exception):
    def __init__(self, line: int, message: str) -> None:
        super().__init__(message)
        self.line = line


def decode(decoder: msgspec.json.Decoder[T], number: int, line: bytes) -> T:
    """BadLine: not JSON, or a field missing or of the wrong kind."""
    try:
        return decoder.decode(line)
    except msgspec.ValidationError as error:
        raise BadLine(number, str(error)) from None
    except msgspec.DecodeError as error:
        raise BadLine(number, f"not JSON: {error}") from None


class _MooncakeLine(msgspec.Struct):
    timestamp: float
    input_length: int
    output_length: int
    hash_ids: list[int]


def mooncake(lines: Lines) -> Iterator[Row]:
    """Ids are chained: equal id, equal prefix up to and including that block."""
    decoder = msgspec.json.Decoder(_MooncakeLine)
    for number, line in lines:
        entry = decode(decoder, number, line)
        needed = -(-entry.input_length // MOONCAKE_BLOCK_TOKENS)
        if entry.input_length < 1 or len(entry.hash_ids) != needed:
            raise BadLine(number, f"{entry.input_length} input tokens need {needed} hash ids, not {len(entry.hash_ids)}")
        blocks = Blocks(entry.input_length, runs(entry.hash_ids), MOONCAKE_BLOCK_TOKENS)
        yield Row(entry.timestamp / 1000, blocks, max(1, entry.output_length))


class _AgenticRequest(msgspec.Struct):
    t: float
    out: int
    blocks: list[tuple[int, int]]
    input: int = msgspec.field(name="in")


class _AgenticLine(msgspec.Struct):
    conversation_id: str
    block_size: int
    requests: list[_AgenticRequest]


def agentic(lines: Lines, *, gap_s: float, idle_s_max: float) -> Iterator[Row]:
    """Conversations with clocks of their own, started `gap_s` apart, long pauses cut; block ids are a conversation's own."""
    decoder = msgspec.json.Decoder(_AgenticLine)
    rows: list[Row] = []
    for place, (number, line) in enumerate(lines):
        entry = decode(decoder, number, line)
        base = (place + 1) << NAMESPACE_BITS
        own = base + (1 << NAMESPACE_BITS - 1)
        clock = Pauses(place * gap_s, idle_s_max)
        for request in entry.requests:
            ids = tuple(range(base + first, base + first + count) for first, count in request.blocks)
            missing = -(-request.input // entry.block_size) - sum(map(len, ids))
            if missing > 0:  # only full blocks have an id: what is left over is this request's own
                ids += (range(own, own + missing),)
                own += missing
            blocks = Blocks(request.input, ids, entry.block_size)
            rows.append(Row(clock.at(request.t), blocks, max(1, request.out), entry.conversation_id))
    rows.sort(key=lambda row: row.at_s)
    yield from rows


class Pauses:
    """A conversation's own clock on the run's: it starts at `start_s`, and no pause is longer than `idle_s_max`."""

    def __init__(self, start_s: float, idle_s_max: float) -> None:
        self._at = start_s
        self._last: float | None = None
        self._idle_s_max = idle_s_max

    def at(self, own_s: float) -> float:
        """own_s: ascending (a step back counts as no pause)."""
        if self._last is not None:
            self._at += min(max(0.0, own_s - self._last), self._idle_s_max)
        self._last = own_s
        return self._at


def _records(lines: Lines, wanted: tuple[str, ...]) -> Iterator[tuple[int, tuple[str, ...]]]:
    """The wanted columns of a CSV, by their names in its first line."""
    places: list[int] = []
    for number, line in lines:
        fields = [field.strip() for field in next(csv.reader([line.decode("utf-8", "replace")]))]
        if not places:
            missing = [name for name in wanted if name not in fields]
            if missing:
                raise BadLine(number, f"no column {missing[0]}")
            places = [fields.index(name) for name in wanted]
        elif len(fields) <= max(places):
            raise BadLine(number, f"{len(fields)} columns")
        else:
            yield number, tuple(fields[place] for place in places)


def _count(number: int, text: str) -> int:
    try:
        return max(0, int(text))
    except ValueError:
        raise BadLine(number, f"{text!r} is not a whole number") from None


def azure(lines: Lines) -> Iterator[Row]:
    """No prefix information: no two prompts share a block."""
    start: datetime | None = None
    for number, (at, tokens, output) in _records(lines, ("TIMESTAMP", "ContextTokens", "GeneratedTokens")):
        try:
            moment = datetime.fromisoformat(at)
        except ValueError:
            raise BadLine(number, f"{at!r} is not a time") from None
        start = start or moment
        blocks = own_blocks(number, max(1, _count(number, tokens)), PLAIN_BLOCK_TOKENS)
        yield Row((moment - start).total_seconds(), blocks, max(1, _count(number, output)))


def servegen(lines: Lines, *, client_prompt_tokens: int) -> Iterator[Row]:
    """No prefix information: each client's prompts begin alike for `client_prompt_tokens`, as system prompts do."""
    step = min(PLAIN_BLOCK_TOKENS, client_prompt_tokens) or PLAIN_BLOCK_TOKENS
    columns = ("timestamp_s", "client_id", "input_tokens", "output_tokens")
    for number, (at, client, tokens, output) in _records(lines, columns):
        try:
            at_s = float(at)
        except ValueError:
            raise BadLine(number, f"{at!r} is not a number of seconds") from None
        length = max(1, _count(number, tokens))
        system = (_count(number, client) + 1) << 20
        shared = min(client_prompt_tokens, length - 1) // step
        blocks = own_blocks(number, length, step, shared=(range(system, system + shared),) if shared else ())
        yield Row(at_s, blocks, max(1, _count(number, output)), f"client-{client}")
