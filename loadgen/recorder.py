"""One request as one JSON line: what was scheduled, what was sent, what came back.

Times are seconds; `scheduled_s`, `sent_s` count from the run's start; -1 is "not known". TTFT and E2E count from `sent_s`,
connecting included; how much later than scheduled that was is `lateness_s`.
"""

from __future__ import annotations

from pathlib import Path
from types import TracebackType

import msgspec
import numpy as np

from loadgen.answer import Answer
from loadgen.client import Exchange
from loadgen.errors import LoadError
from loadgen.workload import TimedRequest


class Gaps(msgspec.Struct, frozen=True):
    """Seconds between one event with content and the next, of one request."""

    count: int
    mean_s: float
    p50_s: float
    p99_s: float
    max_s: float


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the file."""

    index: int
    round: int = 0
    policy: str = ""  # the round's, or the router's own word for it
    request_id: str
    session: str = ""
    scheduled_s: float
    sent_s: float
    lateness_s: float
    ttft_s: float = -1.0
    e2e_s: float
    itl: Gaps | None = None
    tpot_s: float = -1.0  # (last token - first token) / (output tokens - 1)
    input_tokens: int = 0  # as the workload says; 0: it does not
    output_tokens_asked: int
    prompt_tokens: int = -1  # as the engine says
    output_tokens: int = -1
    cached_tokens: int = -1
    matched_tokens: int = -1  # as the router predicted
    events: int = 0
    worker: str = ""
    decision: str = ""
    attempts: int = 0
    fallback: bool = False  # decided without the control plane
    reconnects: int = 0
    status: int = 0
    end: str
    error: str = ""
    finish_reason: str = ""


def gaps_of(gaps: list[float]) -> Gaps | None:
    """None: fewer than two events."""
    if not gaps:
        return None
    values = np.asarray(gaps)
    p50, p99 = np.percentile(values, (50, 99))
    return Gaps(len(gaps), *(round(float(value), 6) for value in (values.mean(), p50, p99, values.max())))


def _whole(text: str | None, default: int) -> int:
    return int(text) if text is not None and text.isdecimal() else default


def _tpot_s(answer: Answer, tokens: int) -> float:
    if answer.first is None or answer.last is None or tokens < 2:
        return -1.0
    return round((answer.last - answer.first) / (tokens - 1), 6)


def record(request: TimedRequest, exchange: Exchange, *, start: float, round_index: int = 0, policy: str = "") -> Record:
    """start: the clock's time of the run's beginning, on the clock that stamped the exchange."""
    answer, headers, usage = exchange.answer, exchange.headers, exchange.answer.usage
    tokens = usage.completion_tokens if usage is not None and usage.completion_tokens is not None else -1
    cached = usage.cached_tokens if usage is not None else None
    sent_s = exchange.sent - start
    return Record(
        index=request.index,
        round=round_index,
        policy=policy or headers.get("x-headway-policy", ""),
        request_id=request.request_id,
        session=request.session,
        scheduled_s=round(request.at_s, 6),
        sent_s=round(sent_s, 6),
        lateness_s=round(sent_s - request.at_s, 6),
        ttft_s=-1.0 if answer.first is None else round(answer.first - exchange.sent, 6),
        e2e_s=round(exchange.ended - exchange.sent, 6),
        itl=gaps_of(answer.gaps),
        tpot_s=_tpot_s(answer, tokens if tokens > 0 else answer.events),
        input_tokens=request.input_tokens,
        output_tokens_asked=request.output_tokens,
        prompt_tokens=usage.prompt_tokens if usage is not None else -1,
        output_tokens=tokens,
        cached_tokens=-1 if cached is None else cached,
        matched_tokens=_whole(headers.get("x-headway-matched-tokens"), -1),
        events=answer.events,
        worker=headers.get("x-headway-worker", ""),
        decision=headers.get("x-headway-decision", ""),
        attempts=_whole(headers.get("x-headway-attempts"), 0),
        fallback=headers.get("x-headway-fallback") == "1",
        reconnects=exchange.reconnects,
        status=exchange.status,
        end=exchange.end,
        error=exchange.error,
        finish_reason=answer.finish_reason or "",
    )


class Recorder:
    """A file of records, written as requests end; use as a context manager. LoadError: it cannot be begun.

    why: it could not be written to its end, "" where it could: a full disk shall not cost a long run its figures.
    """

    def __init__(self, path: Path) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("wb", buffering=1 << 20)
        except OSError as error:
            raise LoadError(f"{path}: {error.strerror or error}") from None
        self._encode = msgspec.json.Encoder().encode
        self.why = ""

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            self._file.close()
        except OSError as failure:
            self.why = failure.strerror or str(failure)

    def write(self, entry: Record) -> None:
        if self.why:
            return
        try:
            self._file.write(self._encode(entry) + b"\n")
        except OSError as failure:
            self.why = failure.strerror or str(failure)


def read(path: Path) -> list[Record]:
    """A file of records back. LoadError: absent, or a line that is none."""
    decode = msgspec.json.Decoder(Record).decode
    records = []
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise LoadError(f"{path}: {error.strerror or error}") from None
    for number, line in enumerate(lines, start=1):
        try:
            records.append(decode(line))
        except msgspec.MsgspecError as error:
            raise LoadError(f"{path}:{number}: {error}") from None
    return records
