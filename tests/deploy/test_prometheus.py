"""Prometheus' own tool reads configuration, alerts and their tests; each alert has its section in the runbook."""

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "deploy" / "prometheus"
ALERTS: list[dict[str, Any]] = [
    rule
    for group in yaml.safe_load((FOLDER / "alerts.yml").read_text(encoding="utf-8"))["groups"]
    for rule in group["rules"]
]


def promtool(*words: str) -> subprocess.CompletedProcess[str]:
    if shutil.which("promtool") is None:
        reason = "promtool is not here (Debian, Ubuntu: apt-get install prometheus)"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    return subprocess.run(["promtool", *words], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("words", [("check", "config", "prometheus.yml"), ("check", "rules", "alerts.yml")])
def test_prometheus_accepts(words: tuple[str, str, str]) -> None:
    result = promtool(*words[:2], str(FOLDER / words[2]))
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.slow
def test_each_alert_fires_on_its_fault_and_none_on_a_healthy_stream() -> None:
    result = promtool("test", "rules", str(FOLDER / "alerts_test.yml"))
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert["alert"])
def test_each_alert_is_expected_to_fire_in_the_alert_tests(alert: dict[str, Any]) -> None:
    cases = yaml.safe_load((FOLDER / "alerts_test.yml").read_text(encoding="utf-8"))["tests"]
    fired = {
        name
        for case in cases
        for check in case.get("promql_expr_test", [])
        for sample in check["exp_samples"]
        for name in re.findall(r'alertname="(\w+)"', sample["labels"])
    }
    fired |= {check["alertname"] for case in cases for check in case.get("alert_rule_test", []) if check["exp_alerts"]}
    assert alert["alert"] in fired


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert["alert"])
def test_each_alert_says_what_it_means_and_where_the_runbook_tells_what_to_do(alert: dict[str, Any]) -> None:
    runbook = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    notes = alert["annotations"]
    assert set(notes) == {"summary", "description", "runbook"}
    assert alert["labels"]["severity"] in {"critical", "warning", "info"}
    assert notes["runbook"] == f"docs/operations.md#{alert['alert'].lower()}"
    section = re.search(rf"^### {alert['alert']}$\n(.*?)(?=^##|\Z)", runbook, re.MULTILINE | re.DOTALL)
    assert section, f"docs/operations.md has no section {alert['alert']}"
    assert "**Means**" in section[1]
    assert "**Do**" in section[1]


def test_the_runbook_has_no_section_for_an_alert_that_is_gone() -> None:
    runbook = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^### (Anabranch\w+)$", runbook, re.MULTILINE)) == {alert["alert"] for alert in ALERTS}


def test_the_alerts_follow_the_settings_they_are_shipped_with() -> None:
    from contracts.settings import load_settings

    every_seconds = load_settings(ROOT / "deploy/settings.toml").snapshot.every_ms // 1000
    expressions = {alert["alert"]: alert["expr"] for alert in ALERTS}
    assert f"> {3 * every_seconds}\n" in expressions["AnabranchSnapshotOld"]
    assert f"> {5 * every_seconds}\n" in expressions["AnabranchModelOld"]
    assert expressions["AnabranchFreshnessMissed"].endswith(f"> {2 * every_seconds}")
