"""The Grafana dashboard: its queries parse, its panels explain themselves, and provisioning finds it."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
GRAFANA = ROOT / "deploy" / "grafana"
DASHBOARD: dict[str, Any] = json.loads((GRAFANA / "dashboards" / "anabranch.json").read_text(encoding="utf-8"))
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
EXPRESSIONS = [target["expr"] for panel in PANELS for target in panel["targets"]]
EXPRESSIONS += [annotation["expr"] for annotation in DASHBOARD["annotations"]["list"]]


def test_the_dashboard_has_a_row_for_each_part_of_the_flow() -> None:
    rows = [panel["title"].split(",")[0] for panel in DASHBOARD["panels"] if panel["type"] == "row"]
    assert rows == ["Stream", "Quality", "Learning", "Embedding table", "Snapshots", "Serving"]


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
def test_each_panel_has_a_description_a_unit_and_a_legend(panel: dict[str, Any]) -> None:
    assert len(panel["description"]) > 20
    assert panel["fieldConfig"]["defaults"]["unit"]
    if panel["type"] == "timeseries":
        assert all(target["legendFormat"] for target in panel["targets"])


def test_panels_neither_overlap_nor_leave_the_grid() -> None:
    taken: dict[tuple[int, int], str] = {}
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24, panel["title"]
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                assert (x, y) not in taken, f"{panel['title']} covers {taken[x, y]}"
                taken[x, y] = panel["title"]


def test_panel_ids_differ() -> None:
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(ids) == len(set(ids))


def test_each_query_is_promql_that_prometheus_parses(tmp_path: Path) -> None:
    if shutil.which("promtool") is None:
        pytest.skip("promtool is not here (Debian, Ubuntu: apt-get install prometheus)")
    filled = [expr.replace("$__rate_interval", "1m").replace("$task", ".*") for expr in EXPRESSIONS]
    assert not [expr for expr in filled if "$" in expr], "an unknown variable"
    rules = [{"record": f"dashboard:query:{i}", "expr": expr} for i, expr in enumerate(filled)]
    file = tmp_path / "rules.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}), encoding="utf-8")
    result = subprocess.run(
        ["promtool", "check", "rules", "--lint=none", str(file)], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr


def test_a_counter_is_only_ever_read_as_a_rate() -> None:
    for expr in EXPRESSIONS:
        for counter in re.finditer(r"anabranch_\w+_(?:total|bucket)", expr):
            before = expr[: counter.start()]
            assert re.search(r"(rate|increase)\($", before), f"{counter[0]} is plotted raw in {expr}"


def test_the_task_is_chosen_by_a_variable_that_quality_panels_obey() -> None:
    assert [variable["name"] for variable in DASHBOARD["templating"]["list"]] == ["task"]
    quality = [expr for expr in EXPRESSIONS if re.search(r"anabranch_(prequential|calibration|train_loss|drift)", expr)]
    assert quality
    assert all('task=~"$task"' in expr for expr in quality)


def test_drift_alarms_are_marked_on_the_panels() -> None:
    assert any("anabranch_drift_alarms_total" in mark["expr"] for mark in DASHBOARD["annotations"]["list"])


def test_provisioning_gives_the_data_source_the_dashboard_names_and_the_folder_compose_mounts() -> None:
    source = yaml.safe_load((GRAFANA / "provisioning/datasources/prometheus.yml").read_text(encoding="utf-8"))
    provider = yaml.safe_load((GRAFANA / "provisioning/dashboards/anabranch.yml").read_text(encoding="utf-8"))
    mounts = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))["services"]["grafana"]["volumes"]
    used = {target["datasource"]["uid"] for panel in PANELS for target in panel["targets"]}
    assert used == {source["datasources"][0]["uid"]}
    folder = provider["providers"][0]["options"]["path"]
    assert f"./deploy/grafana/dashboards:{folder}:ro" in mounts
