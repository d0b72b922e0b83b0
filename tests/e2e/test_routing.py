"""What the router is for: conversations go to the worker that holds their beginning, and predictions come true."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.e2e.stack import RunningStack


def replayed(stack: RunningStack, tmp_path: Path, *arguments: str) -> list[dict[str, Any]]:
    """`headway replay` of the shipped conversations: one summary per policy."""
    done = subprocess.run(
        [sys.executable, "-m", "headway", "replay", "--json", "--out", str(tmp_path / "out.jsonl"), *arguments],
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
        env={**os.environ, "HEADWAY_HOME": str(stack.home)},
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def test_prefix_aware_policies_find_more_in_the_caches_than_turns_do(stack: RunningStack, tmp_path: Path) -> None:
    rounds = replayed(
        stack,
        tmp_path,
        "--limit",
        "60",
        "--rate",
        "16",
        "--max-tokens",
        "24",
        "--policy",
        "round_robin,prefix,weighted,lmetric",
        "--salt",
        secrets.token_hex(4),  # the stack is shared, and a second try must not find the caches of the first
    )
    cached = {round["policy"]: round["cached_share"] for round in rounds}
    assert all(round["failed"] == 0 for round in rounds), rounds
    predicting = [round for round in rounds if round["policy"] != "round_robin"]  # which reads no prompt
    assert all(round["match_equal_share"] >= 0.99 for round in predicting), predicting
    assert cached["prefix"] > cached["round_robin"] + 0.1
    assert cached["weighted"] > cached["round_robin"] + 0.1
    assert cached["lmetric"] > cached["round_robin"] + 0.1
