"""What the flow tests share: Anabranch's commands as processes, streams of simulated events, snapshots side by side."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import pytest
from kafka import KafkaAdminClient
from prometheus_client.parser import text_string_to_metric_families

from contracts.events import Event
from contracts.settings import load_settings
from learner.snapshot import Snapshot, SnapshotStore
from streamer.broker import create_topics
from streamer.publish import EventPublisher
from streamer.simulator import ShopSimulator, SimulatorSettings

ROOT = Path(__file__).parents[2]
PATIENCE_SECONDS = 120.0
CLICK_WINDOW_MS, PURCHASE_WINDOW_MS = 10_000, 20_000

ALL_TASKS = '[{ name = "content_view" }, { name = "click", window = "10s" }, { name = "purchase", window = "20s" }]'
SETTINGS = """
tasks = {tasks}
fields = [
    {{ source = "item.category" }},
    {{ source = "item.price", kind = "numeric" }},
    {{ source = "user.country" }},
    {{ source = "context.position" }},
]
[kafka]
bootstrap_servers = "{servers}"
topic = "{topic}"
group = "{group}"
session_timeout = "1s"
max_poll_records = {max_poll_records}
[events]
max_bytes = 20_000
[features]
users = 2000
items = 2000
pairs = 8192
values = 8192
[embedding]
max_mib = 8
[train]
threads = 1
[snapshot]
directory = "{directory}"
every_events = {every_events}
every = "{every}"
keep = 20
[metrics]
port = 0
[serve]
port = 0
reload = "50ms"
"""


class Running:
    """An `anabranch` command as a process, its output in a file.

    :param program: what Python runs to be `anabranch`.
    :param folder: where it is started.
    """

    def __init__(
        self,
        log: Path,
        arguments: Sequence[object],
        environment: dict[str, str] | None = None,
        program: Sequence[object] = ("-m", "cli.main"),
        folder: Path = ROOT,
    ) -> None:
        self._log = log
        plain = {name: value for name, value in os.environ.items() if not name.startswith("ANABRANCH__")}
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, *map(str, (*program, *arguments))],
                cwd=folder,
                env={**plain, "PYTHONPATH": str(ROOT), **(environment or {})},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    @property
    def output(self) -> str:
        return self._log.read_text(encoding="utf-8", errors="replace")

    def wait(self, seconds: float = PATIENCE_SECONDS) -> int:
        return self.process.wait(seconds)

    def kill(self) -> None:
        """SIGKILL. The process must have been alive: a test of a crash that did not happen shows nothing."""
        assert self.process.poll() is None, self.output
        self.process.kill()
        assert self.process.wait(10) == -9

    def stop(self) -> None:
        """SIGTERM, which must be answered by a good end."""
        self.process.send_signal(signal.SIGTERM)
        assert self.wait() == 0, self.output

    def until(self, happened: Callable[[], Any]) -> Any:
        """Wait for something while the process lives; returns what was true."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not (found := happened()):
            assert self.process.poll() is None, self.output
            assert time.monotonic() < deadline, self.output
            time.sleep(0.002)
        return found

    def said(self, pattern: str) -> re.Match[str]:
        """Wait until the output matches."""
        found: re.Match[str] = self.until(lambda: re.search(pattern, self.output))
        return found

    def metrics(self) -> dict[str, float]:
        """Every sample of `/metrics`: ``name``, or ``name reason`` (or ``what``); summed over other labels."""
        url = self.said(r"Metrics on (http://\S+/metrics)")[1]
        try:
            with urllib.request.urlopen(url, timeout=10) as reply:
                text = reply.read().decode()
        except OSError as error:  # the process may be about to end, and to say why
            time.sleep(1)
            raise AssertionError(f"{error}, after:\n{self.output}") from error
        found: dict[str, float] = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                name = " ".join([sample.name, *filter(None, [sample.labels.get("reason"), sample.labels.get("what")])])
                found[name] = found.get(name, 0.0) + sample.value
        return found

    def consumed(self) -> int:
        """Events that this process took into the stream."""
        return int(self.metrics().get("anabranch_events_consumed_total", 0))

    def children(self) -> list[int]:
        """The processes that it started: the ingest and multiprocessing's tracker."""
        pid = self.process.pid
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


class Stream(NamedTuple):
    """Events in a topic, and what it takes to learn them."""

    servers: str
    topic: str
    events: list[Event]


class Flow:
    """A folder with settings, logs and snapshots of one test."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.snapshots = folder / "snapshots"
        self.config = folder / "settings.toml"
        self._n_runs = 0

    def configure(
        self,
        stream: Stream,
        *,
        tasks: str = ALL_TASKS,
        every_events: int = 400,
        every: str = "365d",
        max_poll_records: int = 100,
    ) -> Path:
        text = SETTINGS.format(
            servers=stream.servers,
            topic=stream.topic,
            group=f"group-{self.folder.name}-{stream.topic}",
            tasks=tasks,
            every_events=every_events,
            every=every,
            max_poll_records=max_poll_records,
            directory=self.snapshots.as_posix(),
        )
        self.config.write_text(text, encoding="utf-8")
        load_settings(self.config)
        return self.config

    def start(self, *arguments: object, **how: Any) -> Running:
        """A command, begun; the rest is as :class:`Running` says."""
        self._n_runs += 1
        return Running(self.folder / f"run-{self._n_runs}.log", arguments, **how)

    def learn(self, *options: object) -> Running:
        return self.start("learn", "-c", self.config, *options)

    def run(self, *arguments: object, environment: dict[str, str] | None = None) -> str:
        """Run a command to its end, which must be a good one; returns its output."""
        with self.start(*arguments, environment=environment) as running:
            assert running.wait() == 0, running.output
            return running.output

    def learn_to_the_end(self, *options: object) -> str:
        return self.run("learn", "-c", self.config, "--until-end", *options)

    def newest(self) -> Snapshot:
        return SnapshotStore(self.snapshots).load()


def make_events(n_events: int, seed: int = 0, start_ms: int = 1_735_689_600_000) -> list[Event]:
    """Simulated events, whose outcomes all lie inside the windows of `SETTINGS`."""
    shop = SimulatorSettings(
        seed=seed,
        events=n_events,
        start_ms=start_ms,
        n_users=400,
        n_items=300,
        click_rate=0.15,
        purchase_rate=0.3,
        click_window_ms=CLICK_WINDOW_MS,
        purchase_window_ms=PURCHASE_WINDOW_MS,
        click_delay_ms=1_500,
        purchase_delay_ms=3_000,
    )
    return list(ShopSimulator(shop).events())


def publish(stream: Stream, events: Sequence[Event], n_partitions: int = 1, rate_per_s: float | None = None) -> None:
    """Events into the topic, made where it is not there."""
    create_topics(stream.servers, {stream.topic: n_partitions})
    with EventPublisher(stream.servers, stream.topic, rate_per_s) as publisher:
        for event in events:
            publisher.publish(event)


def assert_same_state(found: Snapshot, expected: Snapshot, topic: str = "", expected_topic: str = "") -> None:
    """Every array of every group and every state, bit for bit.

    Only the manifest's number and its time of creation may differ: a snapshot's number counts the snapshots made.

    :param topic: the name of the one topic, where it was learned from another one than expected.
    """

    def renamed(value: Any) -> Any:
        if isinstance(value, dict):
            return {renamed(key): renamed(one) for key, one in value.items()}
        if isinstance(value, list | tuple):
            return [renamed(one) for one in value]
        return expected_topic if topic and value == topic else value

    assert found.groups.keys() == expected.groups.keys()
    differ = []
    for group, arrays in expected.groups.items():
        assert found.groups[group].keys() == arrays.keys(), group
        for name, array in arrays.items():
            other = found.groups[group][name]
            # Bytes, not values: NaN equals itself here, and -0.0 does not equal 0.0.
            if (other.dtype, other.shape, other.tobytes()) != (array.dtype, array.shape, array.tobytes()):
                count = int(np.sum(other != array)) if other.shape == array.shape else f"{other.shape} {array.shape}"
                differ.append(f"{group}.{name}: {count}")
    assert differ == []
    assert renamed(found.states) == renamed(expected.states)
    for name in ("event_time_ms", "n_events", "offsets", "settings_fingerprint", "tasks", "layout"):
        assert renamed(getattr(found.manifest, name)) == renamed(getattr(expected.manifest, name)), name


class Straight(NamedTuple):
    """One run of a stream without interruption: what every interrupted one must come to."""

    stream: Stream
    flow: Flow
    report: dict[str, Any]


@pytest.fixture(scope="session")
def flow_in() -> Callable[[Path], Flow]:
    """A flow in a folder, which is made."""

    def flow(folder: Path) -> Flow:
        folder.mkdir(exist_ok=True)
        return Flow(folder)

    return flow


@pytest.fixture
def flow(tmp_path: Path) -> Flow:
    return Flow(tmp_path)


@pytest.fixture(scope="session")
def straight(embedded_broker: str, tmp_path_factory: pytest.TempPathFactory) -> Straight:
    """4,500 events in one partition, learned without interruption, in two processes."""
    flow = Flow(tmp_path_factory.mktemp("straight"))
    stream = Stream(embedded_broker, "flow-straight", make_events(4_500))
    publish(stream, stream.events)
    flow.configure(stream, max_poll_records=4_000)
    report = flow.folder / "report.json"
    learn = ("learn", "-c", flow.config, "--until-end", "--json", report)
    flow.run(*learn, environment={"ANABRANCH__PROCESSES": "2"})
    return Straight(stream, flow, json.loads(report.read_text(encoding="utf-8")))


@pytest.fixture(scope="session")
def undisturbed(apache_kafka: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Stream, Snapshot]:
    """3,000 events in one partition of Apache Kafka, learned without a fault, then stopped."""
    flow = Flow(tmp_path_factory.mktemp("undisturbed"))
    stream = Stream(apache_kafka, "undisturbed", make_events(3_000, seed=7))
    publish(stream, stream.events)
    flow.configure(stream)
    with flow.learn() as run:
        run.until(lambda: run.consumed() >= len(stream.events))
        run.stop()
    return stream, flow.newest()


@pytest.fixture(scope="session")
def make() -> Callable[..., list[Event]]:
    return make_events


@pytest.fixture(scope="session")
def produce() -> Callable[..., None]:
    return publish


@pytest.fixture
def load() -> Iterator[Callable[[Stream, int, int], threading.Thread]]:
    """Publishes a stream's events from one index to another in the background, 500 a second."""
    threads: list[threading.Thread] = []

    def start(stream: Stream, begin: int, end: int) -> threading.Thread:
        threads.append(threading.Thread(target=publish, args=(stream, stream.events[begin:end], 1, 500.0)))
        threads[-1].start()
        return threads[-1]

    yield start
    for thread in threads:
        thread.join()


def n_members_of(servers: str, group: str) -> int:
    admin = KafkaAdminClient(bootstrap_servers=servers)
    try:
        return len(admin.describe_groups([group])[group]["members"])
    finally:
        admin.close()


@pytest.fixture(scope="session")
def n_members() -> Callable[[str, str], int]:
    """How many a group has, as Apache Kafka tells it (the embedded broker's answer cannot be read)."""
    return n_members_of


@pytest.fixture(scope="session")
def same_state() -> Callable[..., None]:
    return assert_same_state


@pytest.fixture(scope="session")
def stream_of() -> type[Stream]:
    return Stream
