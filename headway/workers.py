"""`headway workers`: the fleet as the control plane sees it."""

from __future__ import annotations

import argparse
import time

from google.protobuf.json_format import MessageToJson
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from headway.control_client import CALL_TIMEOUT_S, add_control_argument, call
from proto import fleet_pb2, fleet_pb2_grpc

_BREAKER_STYLE = {"CLOSED": "green", "HALF_OPEN": "yellow", "OPEN": "red"}
_INDEX_STYLE = {"EXACT": "green", "CATCHING_UP": "yellow", "DEGRADED": "red", "SPECULATIVE": "cyan"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_control_argument(parser)
    parser.add_argument("--json", action="store_true", help="as JSON, with every field")
    parser.add_argument("--watch", action="store_true", help="redraw twice a second until Ctrl-C")


def run(args: argparse.Namespace) -> int:
    reply = _ask(args)
    console = Console()
    if args.json:
        print(MessageToJson(reply, preserving_proto_field_name=True, always_print_fields_with_no_presence=True))
    elif args.watch:
        with Live(render(reply), console=console, auto_refresh=False) as live:
            while True:
                time.sleep(0.5)
                live.update(render(_ask(args)), refresh=True)
    else:
        console.print(render(reply))
    return 0


def _ask(args: argparse.Namespace) -> fleet_pb2.WorkerList:
    return call(
        args,
        lambda channel: fleet_pb2_grpc.FleetStub(channel).ListWorkers(fleet_pb2.ListWorkersRequest(), timeout=CALL_TIMEOUT_S),
    )


def render(reply: fleet_pb2.WorkerList) -> Group:
    """A table with one line a worker, then what an operator should know of the control plane itself."""
    table = Table(box=None, padding=(0, 1), header_style="bold")
    for name, justify in _COLUMNS:
        table.add_column(name, justify=justify, no_wrap=True)  # type: ignore[arg-type]
    for status in reply.workers:
        table.add_row(*_row(status))
    redis = "connected" if reply.redis_connected else f"gone, last word {reply.redis_age_s:.1f} s ago: serving from memory"
    state = "" if reply.warm else "   still reading the fleet's state"
    foot = Text(f"policy {reply.policy}   {reply.index_blocks:,} distinct blocks   Redis {redis}{state}", style="dim")
    alarms = [Text(f"{status.worker}: {status.alarm}", style="yellow") for status in reply.workers if status.alarm]
    return Group(table, foot, *alarms)


_COLUMNS = (
    ("worker", "left"),
    ("state", "left"),
    ("breaker", "left"),
    ("active", "right"),
    ("prefill tok", "right"),
    ("running", "right"),
    ("waiting", "right"),
    ("kv", "right"),
    ("blocks", "right"),
    ("index", "left"),
    ("match", "right"),
    ("requests", "right"),
    ("failed", "right"),
    ("age", "right"),
    ("url", "left"),
)


def _row(status: fleet_pb2.WorkerStatus) -> list[Text]:
    breaker = fleet_pb2.BreakerState.Name(status.breaker)
    index = fleet_pb2.IndexState.Name(status.index)
    state, style = ("draining", "yellow") if status.draining else ("alive", "green") if status.alive else ("gone", "red")
    match = f"{status.match_ratio:.0%}" if status.HasField("match_ratio") else "-"
    return [
        Text(status.worker),
        Text(state, style),
        Text(breaker, _BREAKER_STYLE.get(breaker, "")),
        Text(str(status.active)),
        Text(f"{status.prefill_tokens:,}"),
        Text(str(status.running)),
        Text(str(status.waiting)),
        Text(f"{status.kv_usage:.0%}"),
        Text(f"{status.blocks:,}/{status.cache_blocks:,}"),
        Text(index, _INDEX_STYLE.get(index, "")),
        Text(match),
        Text(f"{status.requests:,}"),
        Text(f"{status.failures:,}"),
        Text(f"{status.report_age_s:.1f} s"),
        Text(status.url),
    ]
