"""What the dashboard and the alarms ask Prometheus for is what a running stack exports."""

from __future__ import annotations

import json
import re
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import openai
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from tests.e2e.stack import RunningStack
from tests.ports import free_ports
from tests.trainer import process
from tests.waiting import wait_until

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
OF_PROMETHEUS = {"up", "instance", "job", "le"}
"""What Prometheus adds by itself, or a histogram has."""
SOMETIMES = {"rank"}
"""Labels of engines with several ranks only, which this stack has none of."""
_NAME = re.compile(r"\b(?:headway|process|vllm:)_?[a-z_]+\b")
_LABELS = re.compile(r"\b(?:by|on|group_left)\s*\(([^)]*)\)")


@dataclass
class Exported:
    """Names as they are asked for (`..._total`, `..._bucket`), with the labels seen on each."""

    labels: dict[str, set[str]] = field(default_factory=dict)

    def add(self, page: str) -> None:
        for family in text_string_to_metric_families(page):
            suffixes = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}.get(family.type, ("",))
            for suffix in suffixes:
                self.labels.setdefault(family.name + suffix, set())
            for sample in family.samples:
                self.labels.setdefault(sample.name, set()).update(sample.labels)

    @staticmethod
    def names(text: str) -> set[str]:
        """Those that an expression names."""
        return set(_NAME.findall(re.sub(r'"[^"]*"', '""', text))) - {"process"}

    def check(self, text: str, legend: str = "") -> None:
        names = self.names(text)
        assert names or text.startswith("up{"), text
        assert names <= set(self.labels), f"nobody exports {names - set(self.labels)}: {text}"
        known = (OF_PROMETHEUS | SOMETIMES).union(*(self.labels[name] for name in names))
        if all(self.labels[name] for name in names):  # a family without a sample shows no labels
            asked = {label.strip() for part in _LABELS.findall(text) for label in part.split(",")}
            asked |= set(re.findall(r"[{,]\s*(\w+)\s*(?:=~|!~|!=|=)", text)) | set(
                re.findall(r"\{\{ ?\$?(?:labels\.)?(\w+)", legend)
            )
            assert asked - {"value", ""} <= known, f"{asked - known} of {text}"


def page(url: str) -> str:
    with urllib.request.urlopen(url, timeout=5) as reply:
        return str(reply.read().decode())


@pytest.fixture(scope="module")
def exported(stack: RunningStack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Exported]:
    """After a stream, a refusal, and with a trainer whose metrics are on."""
    client = openai.OpenAI(base_url=stack.url + "/v1", api_key="none", max_retries=0)
    model = client.models.list().data[0].id
    list(client.chat.completions.create(model=model, messages=[{"role": "user", "content": "hi"}], max_tokens=4, stream=True))
    with pytest.raises(openai.NotFoundError):
        client.completions.create(model="none", prompt="hi")
    host, _, port = stack.control.rpartition(":")
    found, trainer_port = Exported(), free_ports(1)
    directory = tmp_path_factory.mktemp("t")
    with process.running(directory, stack.facts()["redis_url"], metrics_port=trainer_port):
        trainer = f"http://127.0.0.1:{trainer_port}/metrics"
        wait_until(lambda: _answers(trainer), seconds_max=60, what="the trainer's /metrics")
        for url in (f"{stack.url}/metrics", f"http://{host}:{int(port) + 1}/metrics", trainer):
            found.add(page(url))
        yield found


def _answers(url: str) -> bool:
    try:
        return bool(page(url))
    except OSError:
        return False


def panels() -> list[dict[str, Any]]:
    dashboard = json.loads((DEPLOY / "grafana/headway.json").read_text())
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load((DEPLOY / "prometheus/rules.yml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def test_every_panel_asks_for_metrics_and_labels_that_there_are(exported: Exported) -> None:
    for panel in panels():
        assert panel["targets"], panel["title"]
        for target in panel["targets"]:
            exported.check(target["expr"], target["legendFormat"])


def test_every_alarm_asks_for_metrics_and_labels_that_there_are(exported: Exported) -> None:
    for rule in rules():
        exported.check(rule["expr"], rule["annotations"]["summary"])


def test_a_name_or_label_that_nobody_exports_would_be_found(exported: Exported) -> None:
    for wrong in ("headway_proxy_request_total", "sum by (wokrer) (headway_worker_alive)", 'headway_worker_alive{name="a"}'):
        with pytest.raises(AssertionError):
            exported.check(wrong)


def test_panels_do_not_overlap_and_alarms_have_names_of_their_own() -> None:
    cells = [
        (x, y)
        for panel in panels()
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(set(cells)) == len(cells)
    assert max(x for x, _ in cells) < 24
    names = [rule["alert"] for rule in rules()]
    assert len(set(names)) == len(names)
    assert all(rule["labels"]["severity"] in ("info", "warning", "critical") for rule in rules())
