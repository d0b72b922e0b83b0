"""`headway workers`: the fleet as the control plane sees it."""

from __future__ import annotations

import argparse
import json
import os
import re
import time
import urllib.request
from collections.abc import Sequence
from typing import Literal

import grpc
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from headway import runfile
from headway.as_json import add_json_argument, print_message
from headway.control_client import CALL_TIMEOUT_S, add_control_argument, call_all, targets
from headway.errors import UsageError
from proto import fleet_pb2, fleet_pb2_grpc

WATCH_S = 0.5
READY_TIMEOUT_S = 1.0
WHY_CHARS_MAX = 160
_BREAKER_STYLE = {"CLOSED": "green", "HALF_OPEN": "yellow", "OPEN": "red"}
_INDEX_STYLE = {"EXACT": "green", "CATCHING_UP": "yellow", "DEGRADED": "red", "SPECULATIVE": "cyan"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_control_argument(parser)
    add_json_argument(parser)
    parser.add_argument("--watch", action="store_true", help="redraw twice a second until Ctrl-C")


def run(args: argparse.Namespace) -> int:
    seen = _ask(args)
    console = Console()
    if args.json:
        print_message(seen[0])
    elif args.watch:
        _watch(args, seen, console)
    else:
        console.print(_shown(seen, console))
    return 0


Seen = tuple[fleet_pb2.WorkerList, str, list[str]]
"""What `_ask` gives."""


def _shown(seen: Seen, console: Console) -> Group:
    reply, others, notes = seen
    return render(reply, console.width, others, notes)


def _watch(args: argparse.Namespace, seen: Seen, console: Console) -> None:
    """A control plane that is being replaced is waited for; meanwhile its last word stays, and says so."""
    with Live(_shown(seen, console), console=console, auto_refresh=False) as live:
        while True:
            time.sleep(WATCH_S)
            try:
                seen = _ask(args)
                shown = _shown(seen, console)
            except UsageError as error:
                shown = Group(_shown(seen, console), Text(str(error), style="bold red"))
            live.update(shown, refresh=True)


def _ask(args: argparse.Namespace) -> Seen:
    """Of several control planes, the fleet as that one sees it which data planes ask; a line about all of them; and those about
    tokenizers."""

    def ask(channel: grpc.Channel) -> fleet_pb2.WorkerList:
        return fleet_pb2_grpc.FleetStub(channel).ListWorkers(fleet_pb2.ListWorkersRequest(), timeout=CALL_TIMEOUT_S)

    replies = call_all(args, ask)
    _, serving = max(replies, key=lambda answer: answer[1].data_planes)
    return serving, _control_planes(targets(args), dict(replies)), _tokenizers(args)


def _tokenizers(args: argparse.Namespace) -> list[str]:
    """Models whose prompts the data plane of the stack started here cannot tokenize: the control plane does not know it."""
    facts = None if args.control or os.environ.get("HEADWAY_CONTROL") else runfile.read()
    if facts is None:
        return []
    try:
        with urllib.request.urlopen(f"{facts.get('url')}/ready", timeout=READY_TIMEOUT_S) as reply:
            return tokenizer_lines(json.load(reply)["tokenizers"])
    except (OSError, ValueError, KeyError, TypeError):
        return []


def tokenizer_lines(found: dict[str, str]) -> list[str]:
    """found: of `/ready`, by model."""
    lines = []
    for model, state in sorted(found.items()):
        if state == "loading":
            lines.append(f"{model}: its tokenizer is loading; until then prompts are not compared with caches")
        elif state != "ready":
            why = " ".join(state.removeprefix("text: ").split())
            shown = why if len(why) <= WHY_CHARS_MAX else why[:WHY_CHARS_MAX] + " ..."
            lines.append(f"{model}: prompts are compared as text, not tokens: {shown}")
    return lines


def _control_planes(named: list[str], replies: dict[str, fleet_pb2.WorkerList]) -> str:
    """Who decides, who stands by and who is away; "" where there is one alone."""
    if len(named) > 1:
        told = [f"{target} {_role(replies[target]) if target in replies else 'does not answer'}" for target in named]
        return "control planes: " + ", ".join(told)
    told = [f"{one.name} {_role(one)}" for one in replies[named[0]].replicas]
    return "other control planes: " + ", ".join(told) if told else ""


def _role(one: fleet_pb2.WorkerList | fleet_pb2.ReplicaStatus) -> str:
    count = one.data_planes
    return f"decides for {count} data-plane process{'' if count == 1 else 'es'}" if count else "stands by"


def render(reply: fleet_pb2.WorkerList, width: int = 0, others: str = "", notes: Sequence[str] = ()) -> Group:
    """A table with one line a worker and one for each rank that requests are steered to, then what an operator should know of
    the control plane itself.

    width: columns of the terminal; the least telling columns are left out where they do not fit. 0: all. others: a line about
    control planes; notes: lines beside the workers' alarms.
    """
    table = Table(box=None, padding=(0, 1), header_style="bold")
    rows = []
    for status in sorted(reply.workers, key=lambda status: _natural(status.worker)):
        rows.append(_row(status))
        rows += [_rank_row(rank) for rank in status.ranks]
    shown = _columns_that_fit(rows, width)
    for position in shown:
        name, justify, _ = _COLUMNS[position]
        table.add_column(name, justify=justify, no_wrap=True)
    for row in rows:
        table.add_row(*(row[position] for position in shown))
    redis = "connected" if reply.redis_connected else f"gone, last word {reply.redis_age_s:.1f} s ago: serving from memory"
    state = "" if reply.warm else "   still reading the fleet's state"
    foot = Text(f"policy {reply.policy}   {reply.index_blocks:,} distinct blocks   Redis {redis}{state}", style="dim")
    alarms = [f"{status.worker}: {status.alarm}" for status in reply.workers if status.alarm]
    return Group(
        table,
        foot,
        *[Text(line, style="dim") for line in (others,) if line],
        *[Text(line, style="yellow") for line in (*alarms, *notes)],
    )


# name, alignment, rank: those with a high rank are left out first on a narrow terminal
_COLUMNS: tuple[tuple[str, Literal["left", "right"], int], ...] = (
    ("worker", "left", 0),
    ("state", "left", 0),
    ("breaker", "left", 1),
    ("active", "right", 0),
    ("prefill tok", "right", 3),
    ("running", "right", 2),
    ("waiting", "right", 2),
    ("kv", "right", 2),
    ("blocks", "right", 1),
    ("index", "left", 1),
    ("match", "right", 1),
    ("requests", "right", 1),
    ("failed", "right", 1),
    ("age", "right", 2),
    ("url", "left", 3),
)


def _natural(name: str) -> list[tuple[int, str]]:
    """worker-2 before worker-10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def _columns_that_fit(rows: list[list[Text]], width: int) -> list[int]:
    """Positions of the columns to show, in order."""
    cells = [[len(name), *(row[position].cell_len for row in rows)] for position, (name, _, _) in enumerate(_COLUMNS)]
    shown = list(range(len(_COLUMNS)))
    while width and len(shown) > 1 and sum(max(cells[position]) + 2 for position in shown) > width:
        shown.remove(max(shown, key=lambda position: (_COLUMNS[position][2], position)))
    return shown


def _row(status: fleet_pb2.WorkerStatus) -> list[Text]:
    breaker = fleet_pb2.BreakerState.Name(status.breaker)
    index = _index(status.index)
    state, style = ("draining", "yellow") if status.draining else ("alive", "green") if status.alive else ("gone", "red")
    match = f"{status.match_ratio:.0%}" if status.HasField("match_ratio") else "-"
    return [
        Text(status.worker),
        Text(state, style),
        Text(breaker.lower(), _BREAKER_STYLE.get(breaker, "")),
        *_load(status),
        Text(f"{status.blocks:,}/{status.cache_blocks:,}"),
        Text(index.lower(), _INDEX_STYLE.get(index, "")),
        Text(match),
        Text(f"{status.requests:,}"),
        Text(f"{status.failures:,}"),
        Text(f"{status.report_age_s:.1f} s"),
        Text(status.url),
    ]


def _index(state: fleet_pb2.IndexState.ValueType) -> str:
    """Its name; "-" of a worker that has left with its blocks."""
    return fleet_pb2.IndexState.Name(state) if state else "-"


def _load(status: fleet_pb2.WorkerStatus | fleet_pb2.RankStatus) -> list[Text]:
    return [
        Text(str(status.active)),
        Text(f"{status.prefill_tokens:,}"),
        Text(str(status.running)),
        Text(str(status.waiting)),
        Text(f"{status.kv_usage:.0%}"),
    ]


def _rank_row(status: fleet_pb2.RankStatus) -> list[Text]:
    """What its worker's line does not say of all."""
    breaker = fleet_pb2.BreakerState.Name(status.breaker)
    index = _index(status.index)
    match = f"{status.match_ratio:.0%}" if status.HasField("match_ratio") else "-"
    return [
        Text(f"  rank {status.rank}", "dim"),
        Text(""),
        Text(breaker.lower(), _BREAKER_STYLE.get(breaker, "")) if status.breaker else Text(""),
        *_load(status),
        Text(f"{status.blocks:,}"),
        Text(index.lower(), _INDEX_STYLE.get(index, "")),
        Text(match),
        Text(f"{status.requests:,}"),
        Text(""),
        Text(""),
        Text(""),
    ]
