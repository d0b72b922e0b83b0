"""Whoever is woken by an alarm finds an entry for it, and the entry names what is there."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
RUNBOOK = (ROOT / "docs/runbook.md").read_text()


def alarms() -> list[dict[str, object]]:
    groups = yaml.safe_load((ROOT / "deploy/prometheus/rules.yml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def test_every_alarm_has_an_entry_and_every_entry_an_alarm() -> None:
    assert sorted(re.findall(r"^## (\w+)$", RUNBOOK, re.MULTILINE)) == sorted(str(rule["alert"]) for rule in alarms())


def test_every_entry_says_what_callers_feel() -> None:
    for entry in RUNBOOK.split("\n## ")[1:]:
        assert re.search(r"^\*Callers\*", entry, re.MULTILINE), entry.splitlines()[0]


def test_flags_and_metrics_of_the_runbook_exist() -> None:
    sources = "\n".join(path.read_text() for folder in SOURCES for path in (ROOT / folder).glob("*.py"))
    for flag in set(re.findall(r"`--(?:no-)?([a-z-]+)", RUNBOOK)) - ENGINES:
        assert flag.replace("-", "_") in sources or f'"--{flag}"' in sources, f"--{flag}"
    for metric in set(re.findall(r"\bheadway_\w+", RUNBOOK)):
        assert metric.removesuffix("_total") in sources, metric


SOURCES = ("dataplane", "controlplane", "worker_agent", "trainer", "headway", "runtime")
ENGINES = {"kv-events-config", "max-num-seqs", "chat-template"}
"""vLLM's own flags."""
