"""What a profile's prompts are: made up to measure, a recorded workload, or WildChat, which is prepared first."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from contract import tokens
from contract.tokens import PromptTokenizer
from headway.errors import UsageError
from loadgen import traces, wildchat
from loadgen.errors import LoadError
from loadgen.rows import Blocks, Trace
from loadgen.sweep_rows import MadeUp, Recorded, Source
from loadgen.wildchat import Tally, Wanted

MADE_UP = "synthetic"
WILDCHAT = "wildchat"
RECORDED_MAX = 200_000
TELL_EVERY = 250
PROMPT_TOKENS_DEFAULT = 8_192
"""Of made-up prompts, where the model takes more."""


def add_arguments(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--workload",
        default=MADE_UP,
        metavar="W",
        help=f"{MADE_UP} (default); {WILDCHAT} or {WILDCHAT}:SOURCE (a name on the hub or a directory; default "
        f"{wildchat.DATASET}); or a file: a processed workload, conversations, or any trace of `headway replay`. "
        "With --simulate four bytes of a text are a token",
    )
    group.add_argument("--tokens-max", type=_count, default=0, help="of a prompt (default: what the model takes, up to 8192)")
    group.add_argument("--tokenizer", default=tokens.BUILTIN, help="of the model: prompts are measured with it")
    wanted = Wanted()
    group.add_argument("--language", default=wanted.language, help="wildchat: default %(default)s; empty for all")
    group.add_argument("--toxic", action="store_true", help="wildchat: keep what is marked so (default: leave it out)")
    group.add_argument("--turns-max", type=_count, default=wanted.turns_max, help="wildchat: default %(default)s")
    group.add_argument("--per-bucket", type=_count, default=wanted.per_bucket, help="wildchat: default %(default)s")


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value


def source(args: argparse.Namespace, directory: Path, room: int) -> Source:
    """room: prompt tokens that the model takes beside the longest answer. LoadError, UsageError."""
    most = min(room, args.tokens_max or PROMPT_TOKENS_DEFAULT)
    if args.tokens_max > room:
        raise UsageError(f"profile: --tokens-max: {args.tokens_max} is above the {room} that the model takes beside an answer")
    name, _, where = args.workload.partition(":")
    if args.workload == MADE_UP:
        return MadeUp(most)
    if name == WILDCHAT:
        path = directory / wildchat.FILE
        if not path.exists():
            _prepare(args, where or wildchat.DATASET, path, most)
        return _fitting(*wildchat.read(path), most)
    return _recorded(args, Path(args.workload), most)


def recorded_mixes(found: Source) -> tuple[str, ...]:
    """The buckets a recorded workload fills; empty for made-up prompts, which fill all."""
    return found.mixes if isinstance(found, Recorded) else ()


def tokenizer(spec: str) -> PromptTokenizer:
    """LoadError."""
    try:
        return tokens.load(spec)
    except tokens.TokenizerUnavailable as error:
        raise LoadError(f"--tokenizer: {str(error).splitlines()[0]}") from None


def _prepare(args: argparse.Namespace, source_name: str, path: Path, most: int) -> None:
    measure = tokenizer(args.tokenizer)
    wanted = Wanted(
        language=args.language, toxic=args.toxic, turns_max=args.turns_max, tokens_max=most, per_bucket=args.per_bucket
    )

    def tell(tally: Tally) -> None:
        if tally.total % TELL_EVERY == 0:
            print(f"{source_name}: {tally.total} kept of {tally.read} read", file=sys.stderr, flush=True)

    tally = wildchat.prepare(source_name, path, wanted, lambda text: len(measure.encode(text)) // 4, tell)
    by_bucket = ", ".join(f"{name}: {count}" for name, count in tally.kept.items())
    print(f"{path}: {tally.total} requests of {tally.read} conversations read ({by_bucket})", file=sys.stderr)


def _recorded(args: argparse.Namespace, path: Path, most: int) -> Source:
    try:
        with path.open("rb") as file:
            processed = wildchat.is_processed(file.readline())
    except OSError as error:
        raise LoadError(f"--workload: {path}: {error.strerror or error}") from None
    if processed:
        return _fitting(*wildchat.read(path), most)
    trace = traces.read(path, limit=RECORDED_MAX)
    return _fitting(trace, _lengths(args, trace), most)


def _lengths(args: argparse.Namespace, trace: Trace) -> list[int]:
    measure = None
    found = []
    for row in trace.rows:
        if isinstance(row.prompt, Blocks):
            found.append(row.prompt.tokens)
            continue
        measure = measure or tokenizer(args.tokenizer)
        texts = (item.get("content") for item in row.prompt.items)
        found.append(sum(len(measure.encode(text)) // 4 for text in texts if isinstance(text, str)))
    return found


def _fitting(trace: Trace, lengths: list[int], most: int) -> Recorded:
    kept = [place for place, count in enumerate(lengths) if 0 < count <= most]
    if not kept:
        raise LoadError(f"{trace.name}: every prompt is longer than {most} tokens")
    if left_out := len(lengths) - len(kept):
        print(f"profile: {left_out} of {len(lengths)} prompts are longer than {most} tokens, left out", file=sys.stderr)
    rows = [trace.rows[place] for place in kept]
    return Recorded(Trace(trace.name, rows, timed=False), [lengths[place] for place in kept])
