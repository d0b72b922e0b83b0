"""Mutated requests and responses for as long as one likes: no crash, no hang, and the same answer however the bytes arrive.

    python -m tests.bench.fuzz --seconds 300

Method: requests that are good, that are smuggling, and that real clients sent, put together, changed, cut, repeated and torn
by one seed; each is fed in one read, in the reads that it was made of, and byte by byte, and the answers must agree. Responses
of real and of scripted engines likewise. Whoever takes longer than HANG_S for one input hangs. The test suite does the same,
for seconds.
"""

from __future__ import annotations

import argparse
import random
import signal
import sys
import time
from collections.abc import Callable
from types import FrameType

from tests.dataplane.client import chat, request
from tests.dataplane.test_fuzz import CAPTURES as REQUESTS
from tests.dataplane.test_fuzz import MORE_SMUGGLING, answers
from tests.dataplane.test_fuzz_upstream import CAPTURES as RESPONSES
from tests.dataplane.test_fuzz_upstream import MADE, relayed, split
from tests.dataplane.test_requests import SMUGGLING

HANG_S = 5.0
WORDS = (
    b"\r\n",
    b"\n",
    b"\r\n\r\n",
    b"0\r\n\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"Content-Length: 5\r\n",
    b"Content-Length: 0\r\n",
    b"Connection: close\r\n",
    b"Expect: 100-continue\r\n",
    b"ffffffff\r\n",
    b"data: [DONE]\n\n",
    b'"choices":[',
    b"HTTP/1.1 ",
    b"HTTP/1.0 200 OK\r\n",
    b"\0",
    b"\xff\xfe",
)
WHOLE_REQUESTS = [
    *SMUGGLING,
    *MORE_SMUGGLING,
    *REQUESTS,
    request(chat()),
    request(chat("again", stream=True)),
    request(path="/health", method="GET"),
    request(path="/v1/models", method="GET"),
    request({"query": "a", "documents": ["b"]}, "/v1/rerank"),
]
WHOLE_RESPONSES = [*RESPONSES.values(), *MADE]


class Hung(Exception):
    """One input took longer than HANG_S."""


def mutated(data: bytes, rng: random.Random) -> bytes:
    """A few changes of one kind or another."""
    found = bytearray(data)
    for _ in range(rng.choice((0, 1, 1, 2, 4))):
        place = rng.randrange(len(found) + 1)
        kind = rng.randrange(5)
        if kind == 0 and found:
            found[place % len(found)] = rng.randrange(256)
        elif kind == 1:
            found[place:place] = rng.choice(WORDS)
        elif kind == 2:
            del found[place : place + rng.choice((1, 2, 10, 100))]
        elif kind == 3:
            found[place:place] = found[place : place + rng.choice((1, 4, 40))]
        else:
            found[place:] = found[place:].swapcase()
    return bytes(found)


def check_requests(rng: random.Random) -> bytes:
    """The input; AssertionError where its answers differ."""
    parts = [mutated(rng.choice(WHOLE_REQUESTS), rng) for _ in range(rng.randint(1, 4))]
    data = b"".join(parts)
    whole = answers([data])
    assert answers([part for part in parts if part]) == whole, data
    assert answers([data[index : index + 1] for index in range(len(data))]) == whole, data
    return data


def check_response(rng: random.Random) -> bytes:
    """The same for what an engine may send."""
    data = mutated(rng.choice(WHOLE_RESPONSES), rng)
    dechunk = rng.random() < 0.2
    whole = relayed([data], dechunk=dechunk)
    torn = split(data, [rng.randrange(len(data) + 1) for _ in range(rng.randint(1, 6))]) if data else []
    assert relayed(torn, dechunk=dechunk) == whole, data
    assert relayed([data[index : index + 1] for index in range(len(data))], dechunk=dechunk) == whole, data
    return data


def run(arguments: list[str] | None = None) -> int:
    """0: nothing was found."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.fuzz")
    parser.add_argument("--seconds", type=float, default=20.0, help="half of it requests, half of it responses")
    parser.add_argument("--seed", type=int, default=20_261_121)
    asked = parser.parse_args(arguments or [])
    print(f"seed {asked.seed}; method: python -m pydoc tests.bench.fuzz", flush=True)
    signal.signal(signal.SIGALRM, _hung)
    for what, check in (("requests", check_requests), ("responses", check_response)):
        count, size, slowest_s = _for(asked.seconds / 2, check, random.Random(f"{asked.seed} {what}"))
        print(
            f"{what:<10}{count:>10,} inputs, {size:>12,} bytes, the slowest took {1000 * slowest_s:.0f} ms: nothing found",
            flush=True,
        )
    return 0


def _for(seconds: float, check: Callable[[random.Random], bytes], rng: random.Random) -> tuple[int, int, float]:
    """Inputs, bytes, the longest that one took, fed three times."""
    count, size, slowest_s, until = 0, 0, 0.0, time.monotonic() + seconds
    while (began := time.monotonic()) < until:
        signal.setitimer(signal.ITIMER_REAL, HANG_S)
        size += len(check(rng))
        signal.setitimer(signal.ITIMER_REAL, 0)
        slowest_s = max(slowest_s, time.monotonic() - began)
        count += 1
    return count, size, slowest_s


def _hung(number: int, frame: FrameType | None) -> None:
    raise Hung(f"more than {HANG_S:g} s for one input")


if __name__ == "__main__":
    raise SystemExit(run(sys.argv[1:]))
