"""Apache Kafka itself, one KRaft node, as a child process. Loaded by `tests/conftest.py`."""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import uuid
from base64 import urlsafe_b64encode
from pathlib import Path
from typing import Self

JARS = Path(__file__).parents[2] / ".kafka" / "libs"
START_SECONDS = 60.0
STOP_SECONDS = 20.0

# No retention: tests write records with old timestamps, which it would delete in the middle of a test.
_PROPERTIES = """
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller}
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}
advertised.listeners=PLAINTEXT://127.0.0.1:{port}
controller.listener.names=CONTROLLER
log.dirs={data}
num.partitions=1
auto.create.topics.enable=false
offsets.topic.num.partitions=1
offsets.topic.replication.factor=1
transaction.state.log.num.partitions=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
share.coordinator.state.topic.num.partitions=1
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=500
log.retention.ms=-1
"""


def why_not() -> str:
    """What is missing to run it; empty where nothing is."""
    if not any(JARS.glob("kafka_2.13-*.jar")):
        return "the jars of Apache Kafka are absent: run `make kafka`"
    return "" if shutil.which("java") else "Java is absent: install a JRE, version 17 or newer"


class ApacheKafka:
    """One broker on random ports with a temporary folder; :meth:`restart` keeps port and records."""

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="anabranch-kafka-"))
        self._port, controller = _free_port(), _free_port()
        self._properties = self._folder / "server.properties"
        text = _PROPERTIES.format(port=self._port, controller=controller, data=self._folder / "data")
        self._properties.write_text(text)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def bootstrap_servers(self) -> str:
        return f"127.0.0.1:{self._port}"

    def start(self) -> Self:
        if not (self._folder / "data").exists():
            # Not a leading "-": it would be read as an option.
            cluster = "A" + urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")[1:]
            arguments = ["format", "--cluster-id", cluster, "--config", str(self._properties)]
            subprocess.run(self._java("kafka.tools.StorageTool", *arguments), check=True, capture_output=True)
        output = self._folder / "output.txt"
        with output.open("ab") as file:
            self._process = subprocess.Popen(
                self._java("kafka.Kafka", str(self._properties)), stdout=file, stderr=file, start_new_session=True
            )
        deadline = time.monotonic() + START_SECONDS
        while not _answers(self._port):
            if self._process.poll() is not None or time.monotonic() > deadline:
                said = output.read_text(errors="replace")[-3000:]
                self.stop()
                raise RuntimeError(f"Apache Kafka did not start. It said:\n{said}")
            time.sleep(0.1)
        return self

    def restart(self) -> None:
        self._end_process()
        self.start()

    def stop(self) -> None:
        self._end_process()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _end_process(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _java(self, *command: str) -> list[str]:
        return [
            "java", "-Xmx512m", "-Xms128m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1",
            "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", "-cp", f"{JARS}{os.sep}*", *command,
        ]  # fmt: skip


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True
