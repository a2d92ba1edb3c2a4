"""`anabranch serve` as a process: it listens, serves what the learner made, stops in good order."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import msgspec
import pytest
from prometheus_client import CollectorRegistry

from cli._assembly import assemble
from contracts.records import Record
from contracts.settings import load_settings
from learner.snapshot import SnapshotStore
from streamer.deadletter import MemoryDeadLetters
from streamer.decode import EventDecoder
from streamer.simulator import ShopSimulator, SimulatorSettings
from streamer.sources.memory import MemorySource

ROOT = Path(__file__).parents[2]
SCRIPT = "import typer; from cli.serve import command; typer.run(command)"
SMALL = """
[features]
users = 1000
items = 1000
pairs = 1024
values = 1024
[embedding]
max_mib = 1.0
[model]
width = 4
experts = 2
expert_layers = [8, 6]
"""


@contextmanager
def running(*options: str) -> Iterator["subprocess.Popen[str]"]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, "-c", SCRIPT, *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def address(process: "subprocess.Popen[str]") -> str:
    assert process.stderr is not None
    for line in process.stderr:
        if found := re.search(r"http://127\.0\.0\.1:\d+", line):
            return found[0]
    raise AssertionError("it never said where it listens")


@pytest.fixture
def config(tmp_path: Path) -> Path:
    made = tmp_path / "settings.toml"
    made.write_text(f"{SMALL}[snapshot]\ndirectory = '{tmp_path / 'snapshots'}'\n", encoding="utf-8")
    return made


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_serves_what_the_learner_made_until_it_is_told_to_stop(config: Path, number: signal.Signals) -> None:
    settings = load_settings(config)
    events = list(ShopSimulator(SimulatorSettings(events=300, n_users=100, n_items=100)).events())
    records = [Record("events", 0, offset, None, msgspec.json.encode(event)) for offset, event in enumerate(events)]
    with SnapshotStore(Path(settings.snapshot.directory)) as store:
        assemble(
            settings,
            MemorySource({("events", 0): records}),
            EventDecoder(settings, None, lambda: events[-1].ts_ms),
            MemoryDeadLetters(),
            CollectorRegistry(),
            store=store,
        ).run()
    with running("-c", str(config), "--port", "0") as process:
        with httpx.Client(base_url=address(process), timeout=30) as client:
            deadline = time.monotonic() + 60
            while client.get("/readyz").status_code != 200:
                assert time.monotonic() < deadline
                time.sleep(0.05)
            assert client.get("/v1/model").json()["n_events"] == 300
            reply = client.post("/v1/score", json={"user_id": events[-1].user_id, "items": [events[0].item_id, "new"]})
            assert reply.json()["fallback"] == "personalised"
            assert [item["known"] for item in reply.json()["items"]] == [True, False]
        process.send_signal(number)
        assert process.wait(30) == 0
        assert process.stderr is not None
        assert "Traceback" not in process.stderr.read()


def test_a_port_in_use_ends_it_with_a_message(config: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with running("-c", str(config), "--port", str(port)) as process:
            _, error = process.communicate(timeout=60)
    assert process.returncode == 1
    assert f"127.0.0.1:{port} cannot be listened on: Address already in use" in error
    assert "Traceback" not in error


def test_settings_that_cannot_be_used_end_it_with_a_line_per_error(config: Path) -> None:
    config.write_text("[serve]\nmax_items = 0\nprot = 3\n", encoding="utf-8")
    with running("-c", str(config)) as process:
        _, error = process.communicate(timeout=60)
    assert process.returncode == 1
    assert f"{config}: serve.max_items" in error
    assert f"{config}: serve.prot" in error
    assert "Traceback" not in error
