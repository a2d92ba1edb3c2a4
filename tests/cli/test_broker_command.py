import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from kafka import KafkaAdminClient

from streamer.broker import EmbeddedBroker

ROOT = Path(__file__).parents[2]
SCRIPT = "import typer; from cli.broker import command; typer.run(command)"


@contextmanager
def _command(*options: str) -> Iterator["subprocess.Popen[str]"]:
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


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_runs_until_it_is_told_to_stop(number: signal.Signals) -> None:
    with _command("--port", "0", "--topic", "a", "--topic", "b", "--partitions", "2") as process:
        assert process.stdout is not None
        said = process.stdout.readline() + process.stdout.readline()
        assert "in memory only" in said
        servers = re.search(r"127\.0\.0\.1:\d+", said)
        assert servers is not None
        admin = KafkaAdminClient(bootstrap_servers=servers[0])
        found = {topic["name"]: len(topic["partitions"]) for topic in admin.describe_topics(["a", "b"])}
        admin.close()
        assert found == {"a": 2, "b": 2}
        process.send_signal(number)
        assert process.wait(20) == 0


def test_a_port_in_use_ends_it_with_a_message() -> None:
    with EmbeddedBroker() as broker:
        port = broker.bootstrap_servers.split(":")[1]
        with _command("--port", port) as process:
            _, error = process.communicate(timeout=30)
    assert process.returncode == 1
    assert f"Port {port} is in use" in error
    assert "Traceback" not in error
