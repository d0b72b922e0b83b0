"""The configuration, the alarms and the dashboard's questions, as Prometheus itself reads them."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]
IMAGE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]["prometheus"]["image"]


def promtool(directory: Path, *arguments: str) -> str:
    """In a container that sees `directory` at /in. Fails where promtool does."""
    command = ["docker", "run", "--rm", "-v", f"{directory}:/in:ro", "--entrypoint", "promtool", IMAGE, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_configuration_and_alarms_are_valid() -> None:
    rules = yaml.safe_load((ROOT / "deploy/prometheus/rules.yml").read_text())["groups"]
    said = promtool(ROOT / "deploy/prometheus", "check", "config", "/in/prometheus.yml")
    assert f"{sum(len(group['rules']) for group in rules)} rules found" in said


def test_every_question_of_the_dashboard_is_valid(tmp_path: Path) -> None:
    panels = json.loads((ROOT / "deploy/grafana/headway.json").read_text())["panels"]
    questions = [target["expr"].replace("$__rate_interval", "1m") for panel in panels for target in panel.get("targets", ())]
    rules = [{"record": f"dashboard:question:{number}", "expr": question} for number, question in enumerate(questions)]
    tmp_path.chmod(0o755)  # promtool is another user there
    (tmp_path / "rules.yml").write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    assert f"{len(questions)} rules found" in promtool(tmp_path, "check", "rules", "/in/rules.yml")


def test_nobody_left_is_an_alarm_and_a_full_fleet_is_none(tmp_path: Path) -> None:
    alarm = {"alertname": "HeadwayNoWorker", "eval_time": "3m"}
    raised = {
        "exp_labels": {"severity": "critical"},
        "exp_annotations": {
            "summary": "No worker may get requests",
            "description": "`headway workers` says why: gone, draining, or its breaker is open.",
        },
    }

    def fleet(values: str, *expected: object) -> dict[str, object]:
        series = [{"series": f'headway_worker_available{{worker="w{number}"}}', "values": values} for number in (1, 2)]
        return {"interval": "30s", "input_series": series, "alert_rule_test": [{**alarm, "exp_alerts": list(expected)}]}

    tests = {"rule_files": ["rules.yml"], "tests": [fleet("0x10", raised), fleet("1x10")]}
    tmp_path.chmod(0o755)
    (tmp_path / "rules.yml").write_text((ROOT / "deploy/prometheus/rules.yml").read_text())
    (tmp_path / "test.yml").write_text(yaml.safe_dump(tests))
    promtool(tmp_path, "test", "rules", "/in/test.yml")
