"""How soon `anabranch learn` learns again after SIGKILL, with a million embedding rows in its snapshot.

python -m benchmarks.bench_recovery [--runs 5]
"""

import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from prometheus_client import CollectorRegistry

from benchmarks.bench_snapshot import touch
from benchmarks.figures import RUNS, Figure, arguments, say, show
from benchmarks.kafka import apache_kafka
from benchmarks.workloads import shop_events, shop_toml
from cli._assembly import assemble
from cli._children import free_port
from cli._inputs import wall_clock_ms
from contracts.events import Event
from contracts.records import Record
from contracts.settings import load_settings
from learner.snapshot import SnapshotStore
from streamer.broker import create_topics
from streamer.deadletter import MemoryDeadLetters
from streamer.decode import EventDecoder
from streamer.publish import EventPublisher
from streamer.sources.memory import MemorySource

TITLE = "Recovery: process start → first batch learned, after SIGKILL, 1 million embedding rows of width 16"

_N_ROWS = 1_000_000
_N_BEFORE, _N_BEHIND = 20_000, 100_000
_TOPIC = "events"
_LIMIT_SECONDS = 120.0
_LOOK_SECONDS = 0.01


def _prepare(config: Path, events: Sequence[Event]) -> None:
    """A snapshot as `learn` writes it: these events learned, and a million rows in the table."""
    settings = load_settings(config)
    records = [Record(_TOPIC, 0, offset, None, msgspec.json.encode(event)) for offset, event in enumerate(events)]
    store = SnapshotStore(Path(settings.snapshot.directory))
    assembly = assemble(
        settings,
        MemorySource({(_TOPIC, 0): records}),
        EventDecoder(settings, None, wall_clock_ms),
        MemoryDeadLetters(),
        CollectorRegistry(),
        store=store,
    )
    table = assembly.trainer.table
    touch(assembly.trainer, np.arange(1, _N_ROWS - table.n_rows + 1))
    with store:
        assembly.run()


def _started(config: Path, log: Path, *options: str, port: int, instance: str) -> "subprocess.Popen[bytes]":
    environment = {"ANABRANCH__METRICS__PORT": str(port), "ANABRANCH__KAFKA__INSTANCE": instance}
    with log.open("wb") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "cli.main", "learn", "-c", str(config), *options],
            stdout=output,
            stderr=output,
            env=os.environ | environment,
        )


def _seconds_until(port: int, process: "subprocess.Popen[bytes]", log: Path, learned: Callable[[bytes], bool]) -> float:
    """From now until `/metrics` shows it."""
    started = time.perf_counter()
    while (seconds := time.perf_counter() - started) < _LIMIT_SECONDS and process.poll() is None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=2) as reply:
                if learned(reply.read()):
                    return time.perf_counter() - started
        except OSError:
            pass
        time.sleep(_LOOK_SECONDS)
    raise RuntimeError(f"Nothing was learned within {seconds:.0f} s. It said:\n{log.read_text(errors='replace')}")


def _has_learned(metrics: bytes) -> bool:
    at = metrics.find(b"anabranch_train_batch_seconds_count ")
    return at >= 0 and float(metrics[at:].split(b"\n", 1)[0].split()[1]) > 0


def _stands_by(metrics: bytes) -> bool:
    return b"anabranch_standby 1.0" in metrics


def _takeovers(config: Path, folder: Path, runs: int, instance: str) -> list[float]:
    """Seconds from SIGKILL of a learner to the first batch learned by its standby, which is the next run's learner."""
    found: list[float] = []
    port, log = free_port(), folder / "log-0.txt"
    process = _started(config, log, port=port, instance=instance)
    try:
        _seconds_until(port, process, log, _has_learned)
        for run in range(1, runs + 1):
            say(f"  run {run} of {runs}")
            port, log, owner = free_port(), folder / f"log-{run}.txt", process
            process = _started(config, log, "--standby", port=port, instance=instance)
            try:
                _seconds_until(port, process, log, _stands_by)
            finally:
                owner.kill()
            found.append(_seconds_until(port, process, log, _has_learned))
            owner.wait()
    finally:
        process.kill()
        process.wait()
    return found


def _recoveries(config: Path, folder: Path, runs: int, instance: str) -> list[float]:
    """Seconds from process start to the first batch learned, each behind a SIGKILL; the first one is not behind any."""
    found: list[float] = []
    port, log = free_port(), folder / "log.txt"
    for run in range(runs + 1):
        say(f"  run {run} of {runs}")
        process = _started(config, log, port=port, instance=instance)
        try:
            found.append(_seconds_until(port, process, log, _has_learned))
        finally:
            process.kill()
            process.wait()
    return found[1:]


def figures(runs: int = RUNS) -> list[Figure]:
    """A restart and a standby, without a name in the group and with one."""
    apache: Any = apache_kafka()
    name = "`anabranch learn` from Apache Kafka"
    if missing := apache.why_not():
        return [Figure(name, [], "s", note=f"Apache Kafka did not run: {missing}.")]
    broker, made = apache.ApacheKafka().start(), []
    try:
        events = list(shop_events(_N_BEFORE + _N_BEHIND))
        create_topics(broker.bootstrap_servers, {_TOPIC: 1})
        with EventPublisher(broker.bootstrap_servers, _TOPIC) as publisher:
            for event in events:
                publisher.publish(event)
        with tempfile.TemporaryDirectory() as directory:
            folder = Path(directory)
            config = folder / "settings.toml"
            config.write_text(
                f'{shop_toml()}\n[kafka]\nbootstrap_servers = "{broker.bootstrap_servers}"\ntopic = "{_TOPIC}"\n'
                "[embedding]\nadmit_after = 1\n"
                # The next run starts where this one did.
                f'[snapshot]\ndirectory = "{folder / "snapshots"}"\nevery = "1d"\nevery_events = 1_000_000_000\n'
            )
            _prepare(config, events[:_N_BEFORE])
            for instance, how in (("", ""), ("learner", ", `kafka.instance` set")):
                for what, measure in (("restart", _recoveries), ("SIGKILL → its `--standby` learns", _takeovers)):
                    say(f"{what}{how}")
                    made.append(Figure(f"{what}{how}", measure(config, folder, runs, instance), "s", 2))
    finally:
        broker.stop()
    return made


if __name__ == "__main__":
    show({TITLE: figures(arguments("Recovery after SIGKILL.", _N_BEFORE + _N_BEHIND).runs)})
