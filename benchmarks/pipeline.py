"""The whole of Anabranch over a log or a topic, timed from its first batch to its last.

What comes before the first batch is not counted: start of processes, loading of compiled code, connecting.
"""

import os
import re
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
from prometheus_client import CollectorRegistry

from cli._assembly import assemble_behind
from cli._children import free_port
from cli._ingest import log_inputs
from contracts.batch import Batch
from contracts.events import Event
from contracts.settings import Settings
from learner.metrics import LearnerMetrics
from learner.snapshot import SnapshotStore
from streamer.process import ProcessFeed, start_feed

_LOOK_SECONDS = 0.25
_LIMIT_SECONDS = 900.0


@dataclass(frozen=True)
class Run:
    """One run.

    :param ne: normalised entropy per task, last half.
    :param peak_mib: resident memory at its peak since the processes began, both together; 0 where nobody looked.
    :param cpu_us_per_event: processor time of both, while the events passed; 0 where nobody looked.
    """

    events_per_second: float
    ne: dict[str, float | None]
    peak_mib: float = 0.0
    cpu_us_per_event: float = 0.0


class Span:
    """Events over the time from the first sight of them to the last."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._first: tuple[float, int] | None = None
        self._last = (0.0, 0)

    def see(self, n_events: int) -> None:
        """So many events are through by now."""
        now = (self._clock(), n_events)
        self._first = self._first or now
        if n_events != self._last[1]:
            self._last = now

    @property
    def events_per_second(self) -> float:
        """:raises RuntimeError: it was over before a second look."""
        if self._first is None or self._last[0] <= self._first[0]:
            raise RuntimeError("Too few batches to time; give more events.")
        return (self._last[1] - self._first[1]) / (self._last[0] - self._first[0])


def write_log(path: Path, events: Iterable[Event]) -> None:
    """Events as JSON lines."""
    encode = msgspec.json.Encoder().encode
    with path.open("wb") as file:
        file.writelines(encode(event) + b"\n" for event in events)


def evaluate(
    path: Path, settings: Settings, store: SnapshotStore | None = None, registry: CollectorRegistry | None = None
) -> Run:
    """What `anabranch evaluate --ranking 0` does, in one process or two as the settings say.

    :param store: also writes snapshots and deltas, as `learn` does.
    :param registry: of the metrics.
    """
    registry, span, n_events = registry or CollectorRegistry(), Span(), 0
    saved = settings if store else settings.unsaved()
    with start_feed(settings.processes) as feed:
        feed.open(saved, partial(log_inputs, settings, None, path, None), registry, lambda: False)
        metrics = LearnerMetrics(registry, settings.evaluation.detector)
        assembly = assemble_behind(saved, feed, metrics, store=store)
        pids = {os.getpid(), feed.pid if isinstance(feed, ProcessFeed) else os.getpid()}
        began: tuple[float, int] | None = None

        def progress(batch: Batch) -> None:
            nonlocal n_events, began
            n_events += batch.n_events
            began = began or (_cpu_seconds(pids), n_events)
            span.see(n_events)

        assembly.run(progress)
        cpu_seconds, n_first = began or (0.0, 0)
        cpu_us = 1e6 * (_cpu_seconds(pids) - cpu_seconds) / max(n_events - n_first, 1)
        assembly.close_open_windows()
        ne = quality(assembly.report(1.0, settings.model.name))
        return Run(span.events_per_second, ne, sum(peak_mib(pid) for pid in pids if pid), cpu_us)


def _cpu_seconds(pids: set[int | None]) -> float:
    """Processor time so far."""
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def peak_mib(pid: int) -> float:
    """What a process held at most since it began."""
    # Not `getrusage`: what it tells of a process begins with the memory of the one that started it.
    found = re.search(r"^VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return int(found[1]) / 1024 if found else 0.0


def quality(report: dict[str, Any]) -> dict[str, float | None]:
    """NE per task of a report, last half."""
    return {name: task["last_half"]["ne"] for name, task in report["tasks"].items()}


def learn(settings: str, servers: str, topic: str) -> Run:
    """`anabranch learn --until-end`, a process as a user starts it; how far it is, it tells Prometheus.

    :param settings: the TOML of everything but Kafka, snapshots and metrics.
    :raises RuntimeError: it failed; the message holds the end of its log.
    """
    with tempfile.TemporaryDirectory() as directory:
        folder, port = Path(directory), free_port()
        config, report, log = folder / "settings.toml", folder / "report.json", folder / "log.txt"
        # A group for each run: they all start from the earliest record.
        config.write_text(
            f'{settings}\n[kafka]\ngroup = "bench-{port}"\nsession_timeout = "10s"\n'
            f'[metrics]\nport = {port}\n[snapshot]\ndirectory = "{folder / "snapshots"}"\n'
        )
        command = ["-m", "cli.main", "learn", "-c", str(config), "--kafka", servers, "--topic", topic]
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, *command, "--until-end", "--json", str(report)], stdout=output, stderr=output
            )
        span, deadline = Span(), time.monotonic() + _LIMIT_SECONDS
        try:
            while process.poll() is None and time.monotonic() < deadline:
                n_events = _n_consumed(port)
                if n_events:
                    span.see(n_events)
                time.sleep(_LOOK_SECONDS)
        finally:
            process.terminate()
            process.wait()
        if process.returncode != 0 or not report.exists():
            said = log.read_text(errors="replace")[-2000:]
            raise RuntimeError(f"`anabranch learn` ended with {process.returncode}. It said:\n{said}")
        return Run(span.events_per_second, quality(msgspec.json.decode(report.read_bytes())))


def _n_consumed(port: int) -> int:
    """Events it has read; 0 while, or when, it does not answer."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=2) as reply:
            text = reply.read().decode()
    except (urllib.error.URLError, OSError):
        return 0
    return sum(
        int(float(count)) for count in re.findall(r"^anabranch_events_consumed_total\{.*\} (.+)$", text, re.MULTILINE)
    )
