"""WildChat to a workload: recorded conversations streamed, filtered, cleaned, sorted into buckets of prompt length, and saved.

Each kept conversation becomes one line of `processed_workload.jsonl`: one request, its last question that was answered and all
that was said before it. `headway replay` reads such lines as well: messages, with the answer that was recorded at their end.

    {"id", "language", "model", "turn", "bucket", "input_tokens", "output_tokens", "messages": [{"role", "content"}, ...]}

The data set is read as a stream: nothing but the rows asked for is downloaded. Any data set of the same columns does, also a
directory of Parquet or JSONL files.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from loadgen.errors import LoadError, TraceError
from loadgen.rows import Messages, Row, Trace
from loadgen.sweep import BUCKETS, bucket_of

DATASET = "allenai/WildChat-1M"
FILE = "processed_workload.jsonl"
ROLES = ("system", "user", "assistant")

CountTokens = Callable[[str], int]


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which conversations are kept. language: as the data set writes it, "" for any; per_bucket: no more of each length."""

    language: str = "English"
    toxic: bool = False
    turns_max: int = 8
    tokens_max: int = 16_384
    per_bucket: int = 1_000
    rows_max: int = 200_000


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One line. input_tokens: of the messages without the last, as text; output_tokens: of the last, which is the answer."""

    id: str
    language: str = ""
    model: str = ""
    turn: int = 1
    bucket: str
    input_tokens: int
    output_tokens: int
    messages: list[dict[str, str]]


@dataclass(slots=True)
class Tally:
    """What became of the rows read."""

    read: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    kept: Counter[str] = field(default_factory=Counter)

    @property
    def total(self) -> int:
        return sum(self.kept.values())


def stream(source: str, split: str = "train") -> Iterator[Mapping[str, Any]]:
    """Rows of a data set on the hub or in a directory, in its order. LoadError: it is not there, or cannot be reached."""
    import datasets

    try:
        yield from datasets.load_dataset(source, split=split, streaming=True)
    except LoadError:
        raise
    except Exception as error:  # the library raises its own, its back ends' and the network's errors
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise LoadError(f"data set {source}: {reason}") from None


def select(rows: Iterable[Mapping[str, Any]], wanted: Wanted, count: CountTokens, tally: Tally) -> Iterator[Entry]:
    """Ends when every bucket is full, or with the rows. LoadError: a row without a conversation."""
    seen: set[str] = set()
    for row in rows:
        if tally.read >= wanted.rows_max or all(tally.kept[name] >= wanted.per_bucket for name in BUCKETS):
            return
        tally.read += 1
        found = _entry(row, wanted, count)
        if isinstance(found, str):
            tally.dropped[found] += 1
        elif (prompt := "\n".join(message["content"] for message in found.messages[:-1])) in seen:
            tally.dropped["the same prompt again"] += 1
        elif tally.kept[found.bucket] >= wanted.per_bucket:
            tally.dropped["bucket full"] += 1
        else:
            seen.add(prompt)
            tally.kept[found.bucket] += 1
            yield found


def _entry(row: Mapping[str, Any], wanted: Wanted, count: CountTokens) -> Entry | str:
    """Why it is dropped, in a few words, where it is."""
    conversation = row.get("conversation")
    if not isinstance(conversation, list):
        raise LoadError(f"no column `conversation` in the data set; there are {', '.join(sorted(row)) or 'none'}")
    if wanted.language and row.get("language") != wanted.language:
        return "language"
    if not wanted.toxic and (row.get("toxic") or any(turn.get("toxic") for turn in conversation)):
        return "toxic"
    messages = cleaned(conversation)
    if messages is None:
        return "not question and answer in turn"
    turns = sum(message["role"] == "user" for message in messages)
    if turns > wanted.turns_max:
        return "too many turns"
    tokens = sum(count(message["content"]) for message in messages[:-1])
    if tokens > wanted.tokens_max:
        return "too long"
    return Entry(
        id=str(row.get("conversation_hash") or row.get("conversation_id") or ""),
        language=str(row.get("language") or ""),
        model=str(row.get("model") or ""),
        turn=turns,
        bucket=bucket_of(tokens),
        input_tokens=tokens,
        output_tokens=max(1, count(messages[-1]["content"])),
        messages=messages,
    )


def cleaned(conversation: list[Any]) -> list[dict[str, str]] | None:
    """Its messages up to the last answer, roles and texts only. None: empty texts, or roles out of turn."""
    messages: list[dict[str, str]] = []
    for turn in conversation:
        if not isinstance(turn, Mapping) or turn.get("role") not in ROLES or not isinstance(turn.get("content"), str):
            return None
        text = _clean(turn["content"])
        if not text:
            return None
        messages.append({"role": turn["role"], "content": text})
    while messages and messages[-1]["role"] != "assistant":
        messages.pop()
    spoken = [message["role"] for message in messages if message["role"] != "system"]
    alternating = all(role == ("user", "assistant")[place % 2] for place, role in enumerate(spoken))
    return messages if spoken and alternating else None


def _clean(text: str) -> str:
    """Composed Unicode, newlines as \\n, no control characters, no white space around it."""
    text = unicodedata.normalize("NFC", text.replace("\r\n", "\n").replace("\r", "\n"))
    return "".join(char for char in text if char in "\n\t" or unicodedata.category(char)[0] != "C").strip()


def prepare(
    source: str, path: Path, wanted: Wanted, count: CountTokens, tell: Callable[[Tally], None] = lambda _: None
) -> Tally:
    """Writes the file whole or not at all. tell: called after each row kept. LoadError."""
    tally = Tally()
    encode = msgspec.json.Encoder().encode
    new = path.with_name(path.name + ".new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with new.open("wb") as file:
            for entry in select(stream(source), wanted, count, tally):
                file.write(encode(entry) + b"\n")
                tell(tally)
        if not tally.total:
            reasons = ", ".join(f"{number} {why}" for why, number in tally.dropped.most_common(3)) or "no rows"
            raise LoadError(f"data set {source}: nothing left of {tally.read} rows ({reasons})")
        new.replace(path)
    except OSError as error:
        raise LoadError(f"{path}: {error.strerror or error}") from None
    finally:
        new.unlink(missing_ok=True)
    return tally


def is_processed(line: bytes) -> bool:
    """Whether a file that begins with this line was written here."""
    try:
        msgspec.json.decode(line, type=Entry)
    except msgspec.MsgspecError:
        return False
    return True


def read(path: Path) -> tuple[Trace, list[int]]:
    """The requests of a processed workload, and the tokens of each prompt. TraceError."""
    rows: list[Row] = []
    tokens: list[int] = []
    decode = msgspec.json.Decoder(Entry).decode
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise TraceError(str(path), 0, error.strerror or str(error)) from None
    for number, line in enumerate(lines, start=1):
        try:
            entry = decode(line)
        except msgspec.MsgspecError as error:
            raise TraceError(str(path), number, str(error)) from None
        prompt: list[dict[str, Any]] = [*entry.messages[:-1]]
        rows.append(Row(0.0, Messages(prompt), entry.output_tokens))
        tokens.append(entry.input_tokens)
    if not rows:
        raise TraceError(str(path), 0, "there is no request in it")
    return Trace(path.name, rows, timed=False), tokens
