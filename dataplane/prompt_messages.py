"""What a data plane and the process that prepares its long prompts say to each other, as frames on a stream socket. Pure.

A frame is two lengths, a head (msgpack) and a body. To the process: `Models`, or a `Job` with the request's body as it came;
from it: `Answer`, without a body.
"""

from __future__ import annotations

import struct

import msgspec

from dataplane.errors import ApiError
from dataplane.openai import Ask
from dataplane.prompts import UNREAD, ModelSeen, Prompt

LENGTHS = struct.Struct("<II")
"""Bytes of the head, bytes of the body."""


class Models(msgspec.Struct, array_like=True, frozen=True, tag="models"):
    """The fleet's models, in place of those said before. only: of requests that name none."""

    models: tuple[ModelSeen, ...]
    only: str = ""


class Job(msgspec.Struct, array_like=True, frozen=True, tag="job"):
    """A request whose prompt is to be prepared."""

    id: int
    path: str


class Loaded(msgspec.Struct, array_like=True, frozen=True, tag="loaded"):
    """A tokenizer is there."""

    tokenizer: str


class Answer(msgspec.Struct, array_like=True, frozen=True, tag="answer"):
    """What became of a job. ask or refusal: of the body, both None where it was not read; prompt: None where it was not
    prepared; seconds: what it took."""

    id: int
    ask: Ask | None = None
    refusal: ApiError | None = None
    prompt: Prompt | None = None
    seconds: float = 0.0


NOT_DONE = Answer(0)
"""The process did nothing about it."""
SUSPECT = Answer(0, prompt=UNREAD)
"""The process ended over it: nobody else had better try."""

_encode = msgspec.msgpack.Encoder().encode
read_order = msgspec.msgpack.Decoder(Models | Job).decode
"""The head of a frame to the process."""
read_report = msgspec.msgpack.Decoder(Loaded | Answer).decode
"""The head of a frame from it."""


def frame(message: Models | Job | Loaded | Answer, body_bytes: int = 0) -> bytes:
    """All of a frame but its body, which is that long."""
    head = _encode(message)
    return LENGTHS.pack(len(head), body_bytes) + head


class Reports:
    """Frames without bodies, read from a stream as it comes."""

    def __init__(self) -> None:
        self._rest = bytearray()

    def feed(self, data: bytes) -> list[Loaded | Answer]:
        """What is whole by now. msgspec.DecodeError: the other side is not ours."""
        rest, start = self._rest, 0
        rest += data
        found = []
        while len(rest) >= start + LENGTHS.size:
            head_bytes, _ = LENGTHS.unpack_from(rest, start)
            end = start + LENGTHS.size + head_bytes
            if len(rest) < end:
                break
            found.append(read_report(memoryview(rest)[start + LENGTHS.size : end]))
            start = end
        del rest[:start]
        return found
