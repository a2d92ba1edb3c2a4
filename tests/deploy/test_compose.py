"""docker-compose.yml: valid by the Compose Specification's schema, and true to the files and settings it names."""

import importlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from contracts.settings import load_settings

ROOT = Path(__file__).resolve().parents[2]
FILE = ROOT / "docker-compose.yml"
COMPOSE: dict[str, Any] = yaml.safe_load(FILE.read_text(encoding="utf-8"))
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = ("learner", "scorer", "simulator")


def validator() -> str:
    """The command `check-jsonschema`, which carries the Compose Specification's schema."""
    beside = Path(sys.executable).with_name("check-jsonschema")
    found = str(beside) if beside.exists() else shutil.which("check-jsonschema")
    if found is None:
        reason = "check-jsonschema is not installed; `make setup` installs it"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    return found


def validate(file: Path) -> subprocess.CompletedProcess[str]:
    command = [validator(), "--builtin-schema", "vendor.compose-spec", str(file)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_file_follows_the_compose_specification() -> None:
    result = validate(FILE)
    assert result.returncode == 0, result.stdout + result.stderr


def test_the_schema_would_find_a_misspelt_key(tmp_path: Path) -> None:
    wrong = tmp_path / "docker-compose.yml"
    wrong.write_text(FILE.read_text(encoding="utf-8").replace("depends_on:", "depend_on:", 1), encoding="utf-8")
    result = validate(wrong)
    assert result.returncode == 1
    assert "depend_on" in result.stdout


def test_docker_compose_itself_reads_the_file() -> None:
    if (
        shutil.which("docker") is None
        or subprocess.run(["docker", "compose", "version"], capture_output=True, check=False).returncode
    ):
        pytest.skip("docker has no compose plugin here")
    command = ["docker", "compose", "-f", str(FILE), "--profile", "demo", "config", "--quiet"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_every_image_from_elsewhere_has_its_version() -> None:
    images = [service["image"] for service in SERVICES.values()]
    assert all(re.fullmatch(r"[a-z/-]+:v?\d+\.\d+\.\d+", image) for image in images), images


def test_every_port_is_published_on_the_loopback_address_only() -> None:
    ports = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports), ports


@pytest.mark.parametrize("name", SERVICES)
def test_each_service_restarts_stops_gently_and_has_limits_and_a_health_check(name: str) -> None:
    service = SERVICES[name]
    assert service["restart"] == "unless-stopped"
    assert int(service["stop_grace_period"].removesuffix("s")) >= 20
    assert set(service["deploy"]["resources"]["limits"]) == {"cpus", "memory"}
    assert "healthcheck" in service


def test_what_a_service_waits_for_exists_and_can_become_healthy() -> None:
    for name, service in SERVICES.items():
        for other, wait in service.get("depends_on", {}).items():
            assert other in SERVICES, f"{name} waits for {other}"
            if wait["condition"] == "service_healthy":
                assert SERVICES[other]["healthcheck"].get("test"), f"{name} waits for {other} without a health check"


def test_mounted_files_exist_and_named_volumes_are_declared() -> None:
    for name, service in SERVICES.items():
        for volume in service.get("volumes", []):
            source = volume.split(":", 1)[0]
            there = (ROOT / source).exists() if source.startswith(".") else source in COMPOSE["volumes"]
            assert there, f"{name} mounts {source}"


def test_the_learner_writes_the_snapshots_that_the_scorer_may_only_read() -> None:
    settings = load_settings(ROOT / "deploy/settings.toml")
    assert f"snapshots:{settings.snapshot.directory}" in SERVICES["learner"]["volumes"]
    assert f"snapshots:{settings.snapshot.directory}:ro" in SERVICES["scorer"]["volumes"]


def test_the_mounted_settings_listen_where_compose_and_prometheus_look() -> None:
    settings = load_settings(ROOT / "deploy/settings.toml")
    prometheus = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text(encoding="utf-8"))
    targets = {job["job_name"]: job["static_configs"][0]["targets"] for job in prometheus["scrape_configs"]}
    assert (settings.metrics.host, settings.serve.host) == ("0.0.0.0", "0.0.0.0")
    assert targets["anabranch-learner"] == [f"learner:{settings.metrics.port}"]
    assert targets["anabranch-scorer"] == [f"scorer:{settings.serve.port}"]
    assert SERVICES["learner"]["ports"] == [f"127.0.0.1:{settings.metrics.port}:{settings.metrics.port}"]
    assert SERVICES["scorer"]["ports"] == [f"127.0.0.1:{settings.serve.port}:{settings.serve.port}"]


def test_the_settings_that_compose_overrides_are_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in OURS:
        for key, value in SERVICES[name]["environment"].items():
            default = re.fullmatch(r"\$\{" + key + r":-(.+)\}", value)
            assert default, f"{name}: {key} should pass the same variable on, with a default"
            monkeypatch.setenv(key, default[1])
    # An unknown section or key is an error here.
    assert load_settings(ROOT / "deploy/settings.toml").kafka.bootstrap_servers == "kafka:9092"


def test_a_plain_up_starts_no_simulated_shop() -> None:
    assert [name for name, service in SERVICES.items() if service.get("profiles")] == ["simulator"]


@pytest.mark.parametrize("name", OURS)
def test_the_command_and_its_options_exist(name: str) -> None:
    """The real command parses the line that compose gives it, without running it."""
    settings = str(ROOT / "deploy/settings.toml")
    words = [re.sub(r"\$\{\w+:-(.+)\}", r"\1", word) for word in SERVICES[name]["command"]]
    assert f"./deploy/settings.toml:{words[-1]}:ro" in SERVICES[name]["volumes"] or name == "simulator"
    app = typer.Typer()
    app.command()(importlib.import_module(f"cli.{words[0]}").command)
    arguments = [settings if word == "/etc/anabranch/settings.toml" else word for word in words[1:]]
    assert typer.main.get_command(app).make_context(words[0], arguments).args == []


def test_the_commands_for_alerts_name_services_and_folders_of_this_file(alert_commands: list[str]) -> None:
    found = [shlex.split(one)[2:] for one in alert_commands if one.startswith("docker compose ")]
    assert {verb for verb, *_ in found} == {"logs", "ps", "restart", "stop", "exec"}
    for verb, *rest in found:
        service, *inside = [word for word in rest if word not in {"--since", "15m"}] or ["learner"]
        assert service in SERVICES, (verb, rest)
        assert bool(inside) == (verb == "exec")
        if inside:
            *_, folder = inside
            assert any(volume.split(":")[1] == folder for volume in SERVICES[service]["volumes"]), folder
