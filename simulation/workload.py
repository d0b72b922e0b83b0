"""A trace as the simulated fleet sees it: prompts as token ids and as block hashes, without text or tokenizer.

Token ids are drawn from the trace's block ids: equal ids give equal tokens, so engines and router hash and match for real.
Recorded messages become tokens four bytes at a time: equal beginnings stay equal. Blocks are made once and kept (bounded), a
prompt is put together when its request arrives, and its hash chain goes from block to block of the trace where sizes allow.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain as joined
from typing import Any

import msgspec

from contract import blocks
from loadgen import workload
from loadgen.rows import Blocks, Messages, Row

PIECES_CACHED_MAX = 65_536
"""At 512 tokens: 2 KB of token ids, 32 block hashes of 16 tokens, about 200 MB in all for a long trace."""


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """One request to come. at_s: virtual seconds from the start; leaves_s: how long its client waits for the whole answer;
    model: empty for that of the first worker."""

    index: int
    at_s: float
    row: Row
    input_tokens: int
    output_tokens: int
    leaves_s: float | None = None
    model: str = ""


def jobs(rows: Iterable[Row], times: Iterator[float], shape: workload.Shape, *, model_len_max: int) -> tuple[list[Job], int]:
    """Requests in order of arrival, and how many were left out because no engine would take prompt and answer."""
    kept: list[Job] = []
    unfit = 0
    for row, at_s in zip(rows, times, strict=False):
        prompt = _prompt_tokens(row, shape)
        answer = workload.output_tokens(row, shape)
        if prompt + answer > model_len_max:
            unfit += 1
        else:
            kept.append(Job(len(kept), at_s, row, prompt, answer))
    return kept, unfit


def _prompt_tokens(row: Row, shape: workload.Shape) -> int:
    if isinstance(row.prompt, Blocks):
        return workload.scaled_tokens(row.prompt, shape.scale)
    return len(_message_tokens(row.prompt)) // 4


def _message_tokens(messages: Messages) -> bytes:
    text = b"\n".join(_plain(item) for item in messages.items)
    return text + b" " * (-len(text) % 4)


def _plain(item: dict[str, Any]) -> bytes:
    content = item.get("content")
    if isinstance(content, str):
        return f"{item.get('role', '')}: {content}".encode()
    return msgspec.json.encode(item)


class Prompts:
    """Token ids and block hashes by job. block_size: tokens a KV block; root: parent of every first block."""

    def __init__(self, shape: workload.Shape, *, block_size: int, root: int) -> None:
        self._shape = shape
        self._block_size = block_size
        self._root = root
        self._tokens: dict[tuple[int, int], bytes] = {}
        self._chains: dict[tuple[int, int, int], array[int]] = {}

    def tokens(self, job: Job) -> bytes:
        """Flat little-endian uint32, `job.input_tokens` of them."""
        prompt = job.row.prompt
        if isinstance(prompt, Messages):
            return _message_tokens(prompt)
        return b"".join(self._piece(block_id, count) for block_id, count in self._pieces(prompt))

    def chain(self, job: Job) -> array[int]:
        """Block hashes of the prompt's full blocks."""
        prompt = job.row.prompt
        if isinstance(prompt, Messages) or workload.scaled_block_tokens(prompt, self._shape.scale) % self._block_size:
            return blocks.chain(self.tokens(job), self._block_size, self._root)
        hashes = array("Q")
        parent = self._root
        for block_id, count in self._pieces(prompt):
            if count < self._block_size:
                break
            links = self._links(block_id, count, parent)
            hashes.extend(links)
            parent = links[-1]
        return hashes

    def _pieces(self, prompt: Blocks) -> Iterator[tuple[int, int]]:
        step = workload.scaled_block_tokens(prompt, self._shape.scale)
        left = workload.scaled_tokens(prompt, self._shape.scale)
        for block_id in joined.from_iterable(prompt.ids):
            yield block_id, min(step, left)
            left -= step

    def _piece(self, block_id: int, count: int) -> bytes:
        piece = self._tokens.get((block_id, count))
        if piece is None:
            _bound(self._tokens)
            piece = hashlib.shake_128(b"%d" % block_id).digest(4 * count)
            self._tokens[block_id, count] = piece
        return piece

    def _links(self, block_id: int, count: int, parent: int) -> array[int]:
        key = (parent, block_id, count)
        links = self._chains.get(key)
        if links is None:
            _bound(self._chains)
            links = self._chains[key] = blocks.chain(self._piece(block_id, count), self._block_size, parent)
        return links


def _bound(cache: dict[Any, Any]) -> None:
    """Room for one more: the oldest goes."""
    if len(cache) >= PIECES_CACHED_MAX:
        del cache[next(iter(cache))]
