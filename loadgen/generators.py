"""Made-up workloads, in the parameters that other load generators use. Pure.

shared-prefix:groups=64,prompts=16,system=2048,question=128,output=256      system prompts times questions
multi-round:users=32,rounds=10,system=1000,history=2000,question=20,output=100    each user's history grows by the round
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from random import Random

from loadgen.errors import LoadError
from loadgen.rows import NAMESPACE_BITS, Blocks, Row, Trace

PIECE_TOKENS = 16
"""Prompts are made of pieces this long, so that lengths are kept to a piece."""
GENERATED_ROWS_MAX = 1_000_000

_DEFAULTS = {
    "shared-prefix": {"groups": 64, "prompts": 16, "system": 2048, "question": 128, "output": 256},
    "multi-round": {"users": 32, "rounds": 10, "system": 1000, "history": 2000, "question": 20, "output": 100},
}
NAMES = tuple(_DEFAULTS)


def is_generated(text: str) -> bool:
    return text.partition(":")[0] in _DEFAULTS


def generate(text: str, *, limit: int, rng: Random) -> Trace:
    """The first `limit` rows of `name:key=number,...`. LoadError: an unknown key, or a number that is none."""
    name, _, rest = text.partition(":")
    values = dict(_DEFAULTS[name])
    for part in filter(None, rest.split(",")):
        key, _, number = part.partition("=")
        if key not in values:
            raise LoadError(f"{name}: no {key!r}; there are {', '.join(values)}")
        if not number.isdecimal() or (key != "history" and int(number) < 1):
            raise LoadError(f"{name}: {key}={number!r} is not a whole number above 0")
        values[key] = int(number)
    make = shared_prefix if name == "shared-prefix" else multi_round
    rows = list(islice(make(rng=rng, **values), limit))
    return Trace(text, rows, timed=False)


def _pieces(tokens: int) -> int:
    return -(-tokens // PIECE_TOKENS)


def _span(owner: int, pieces: int, *, begin: int = 0) -> range:
    first = ((owner + 1) << NAMESPACE_BITS) + begin
    return range(first, first + pieces)


def shared_prefix(*, groups: int, prompts: int, system: int, question: int, output: int, rng: Random) -> Iterator[Row]:
    """`groups` system prompts with `prompts` questions each, in a shuffled order."""
    if groups * prompts > GENERATED_ROWS_MAX:
        raise LoadError(f"shared-prefix: {groups * prompts} requests are more than {GENERATED_ROWS_MAX}")
    order = [(group, place) for group in range(groups) for place in range(prompts)]
    rng.shuffle(order)
    tokens = (_pieces(system) + _pieces(question)) * PIECE_TOKENS
    for group, place in order:
        own = groups + group * prompts + place
        ids = (_span(group, _pieces(system)), _span(own, _pieces(question)))
        yield Row(0.0, Blocks(tokens, ids, PIECE_TOKENS), output, f"group-{group}")


def multi_round(
    *, users: int, rounds: int, system: int, history: int, question: int, output: int, rng: Random
) -> Iterator[Row]:
    """Round by round, all users in a new order each; a prompt is the system text, the user's history, and every round so far.

    The answer's place in the next prompt is taken by a text of the same length.
    """
    if users * rounds > GENERATED_ROWS_MAX:
        raise LoadError(f"multi-round: {users * rounds} requests are more than {GENERATED_ROWS_MAX}")
    order = list(range(users))
    for turn in range(rounds):
        rng.shuffle(order)
        for user in order:
            pieces = _pieces(history) + _pieces(question) + turn * (_pieces(question) + _pieces(output))
            ids = (_span(0, _pieces(system)), _span(user + 1, pieces))
            tokens = (_pieces(system) + pieces) * PIECE_TOKENS
            yield Row(0.0, Blocks(tokens, ids, PIECE_TOKENS), output, f"user-{user}")
