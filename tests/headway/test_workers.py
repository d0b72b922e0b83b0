"""`headway workers`: what an operator must see of the fleet without asking for it."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from headway import workers
from headway.up import _is_grave
from proto import fleet_pb2


def shown(reply: fleet_pb2.WorkerList, *, width: int = 0, notes: list[str] | None = None) -> str:
    out = io.StringIO()
    Console(file=out, width=width or 200).print(workers.render(reply, width, notes=notes or []))
    return out.getvalue()


def test_a_model_without_its_tokenizer_is_a_line_of_its_own() -> None:
    lines = workers.tokenizer_lines({"a": "ready", "b": "loading", "c": "text: no such\nfile", "d": "text: " + "x" * 500})
    assert lines[0] == "b: its tokenizer is loading; until then prompts are not compared with caches"
    assert lines[1] == "c: prompts are compared as text, not tokens: no such file"
    assert lines[2].endswith("x ...")
    assert len(lines) == 3
    assert lines[1] in shown(fleet_pb2.WorkerList(), notes=lines)


def test_a_worker_that_has_left_has_no_index_and_leaves_room_for_the_other_columns() -> None:
    gone = fleet_pb2.WorkerStatus(worker="w1", breaker=fleet_pb2.CLOSED)
    found = shown(fleet_pb2.WorkerList(workers=[gone]), width=80)
    assert "unspecified" not in found
    assert "failed" in found.splitlines()[0]


@pytest.mark.parametrize(
    ("name", "line", "grave"),
    [
        ("dataplane", "12:00:00.000 W dataplane      prompts are hashed as text, not tokens model=m why=x", True),
        ("dataplane", "12:00:00.000 W dataplane/prompts prompts are hashed as text, not tokens model=m why=x", False),
        ("dataplane", "12:00:00.000 W dataplane      listening without knowing the fleet", False),
        ("agent-1", "12:00:00.000 W worker_agent   prompts are hashed as text", False),
    ],
)
def test_of_warnings_the_one_that_makes_figures_worthless_is_on_the_terminal(name: str, line: str, grave: bool) -> None:
    assert _is_grave(name, line) is grave
