"""A long run: `anabranch learn` over simulated weeks, killed and stopped again and again; does anything grow?

python -m benchmarks.soak [--minutes 25] [--plot docs/soak.svg] [--json soak.json]

Ends with 1 where something grows by more than its bound (`BOUNDS`), or one look in ten found nothing more learned.
Every cap is small enough to be reached, but that of open exposures (`benchmarks.open_exposures`).
"""

import argparse
import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console

from benchmarks.figures import say
from benchmarks.flatness import Bound, Sample, judge, share_moved, table
from benchmarks.kafka import apache_kafka
from benchmarks.workloads import shop_toml
from cli._children import free_port
from streamer.broker import create_topics
from streamer.simulator import START_MS

RATE_PER_SECOND = 5.0
"""Events per second of event time: a week is three million."""
BOUNDS = {
    "resident memory, MiB": Bound(0.05, 16.0),
    "descriptors": Bound(0.05, 3.0),
    "threads": Bound(0.05, 3.0),
    "snapshot directory, files": Bound(0.10, 40.0),
    "snapshot directory, MiB": Bound(0.10, 4.0),
    "NE, content_view": Bound(0.10, 0.0),
    "NE, click": Bound(0.10, 0.0),
    "NE, purchase": Bound(0.15, 0.0),
}
LEAST_MOVED = 0.9
"""Of the looks, so many must see it learn: the topic is filled as fast as it goes."""
_TOPIC = "soak"
_SETTINGS = """
[[tasks]]
name = "content_view"
[[tasks]]
name = "click"
window = "30m"
[[tasks]]
name = "purchase"
window = "2h"
[events]
max_open = 100_000
deduplicate_max = 10_000
[features]
users = 2_000
items = 2_000
pairs = 8_192
values = 8_192
covisits = 8_192
recent_items = 4_096
[embedding]
max_mib = 1
[evaluation]
window = "12h"
[batch]
span = "2m"
[snapshot]
directory = "{directory}"
every = "{every_seconds}s"
delta_seconds = {delta_seconds}
keep = 3
hold_above_ne = 0
[metrics]
port = {port}
[kafka]
bootstrap_servers = "{servers}"
topic = "{topic}"
instance = "soak"
session_timeout = "{session_timeout}"
"""

Command = Sequence[str]
ANABRANCH: Command = (sys.executable, "-m", "cli.main")


def lives_of(seconds: float) -> list[tuple[float, signal.Signals]]:
    """How long each life lasts and what ends it: six short ones, stopped and killed in turn, then one for the rest."""
    ends = itertools.cycle([signal.SIGTERM, signal.SIGKILL])
    return [(seconds / 12, end) for end, _ in zip(ends, range(6), strict=False)] + [(seconds / 2, signal.SIGTERM)]


def soak(
    servers: str,
    topic: str,
    folder: Path,
    lives: Sequence[tuple[float, signal.Signals]],
    *,
    look_seconds: float = 2.0,
    every_seconds: float = 10.0,
    delta_seconds: float = 2.0,
    session_timeout: str = "45s",
    command: Command = ANABRANCH,
) -> list[Sample]:
    """Learn a topic through several lives of the process, and look at it meanwhile.

    :param lives: seconds since the first event, and the signal that ends it.
    :param session_timeout: how long a life behind a kill waits on a broker that knows no `kafka.instance`.
    :param command: what `learn` is run by.
    :raises RuntimeError: a life ended by itself; the message holds the end of its log.
    """
    port, snapshots = free_port(), folder / "snapshots"
    config = folder / "settings.toml"
    names = {"servers": servers, "topic": topic, "port": port, "directory": snapshots}
    seconds = {"every_seconds": every_seconds, "delta_seconds": delta_seconds, "session_timeout": session_timeout}
    config.write_text(shop_toml() + _SETTINGS.format(**names, **seconds))
    samples: list[Sample] = []
    started = time.monotonic()
    n_events = 0
    for life, (life_seconds, end) in enumerate(lives):
        log = folder / f"learn-{life}.log"
        with log.open("wb") as output:
            process = subprocess.Popen([*command, "learn", "-c", str(config)], stdout=output, stderr=output)
        born = None
        try:
            while born is None or time.monotonic() - born < life_seconds:
                if process.poll() is not None:
                    raise RuntimeError(f"`learn` ended with {process.returncode}:\n{log.read_text()[-3000:]}")
                told = _metrics(port)
                # Not the newest event's time: a snapshot tells that before the topic is read.
                if "anabranch_consumer_lag_messages" in told:
                    now = time.monotonic()
                    born = born or now
                    values = _held(process.pid, snapshots) | _quality(told)
                    event_time = told.get("anabranch_last_event_timestamp_seconds", 0.0)
                    samples.append(Sample(life, now - born, now - started, event_time, values))
                time.sleep(look_seconds)
            process.send_signal(end)
            process.wait(120)
        finally:
            process.kill()
            process.wait()
        n_events += int(told.get("anabranch_events_consumed_total", 0))
        say(f"  life {life + 1} of {len(lives)} ended by {end.name}: {n_events:,} events so far; {_caps(told)}")
    return samples


def _metrics(port: int) -> dict[str, float]:
    """Samples by ``name`` or ``name{task}``, of the sliding window where there are two; empty while nobody answers."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as reply:
            text = reply.read().decode()
    except OSError:
        return {}
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.labels.get("window") == "all":
                continue
            name = f"{sample.name}{{{sample.labels['task']}}}" if "task" in sample.labels else sample.name
            found[name] = found.get(name, 0.0) + sample.value
    return found


def _held(pid: int, snapshots: Path) -> dict[str, float]:
    """What the process and its children hold, and what lies in the snapshot directory."""
    resident_kb = n_threads = n_descriptors = 0
    for one in _family(pid):
        try:
            status = dict(line.split(":", 1) for line in Path(f"/proc/{one}/status").read_text().splitlines())
            n_descriptors += len(list(Path(f"/proc/{one}/fd").iterdir()))
            resident_kb += int(status["VmRSS"].split()[0])
            n_threads += int(status["Threads"])
        except (OSError, KeyError):  # it ended meanwhile
            continue
    sizes = list(_sizes(snapshots))
    return {
        "resident memory, MiB": resident_kb / 1024,
        "descriptors": n_descriptors,
        "threads": n_threads,
        "snapshot directory, files": len(sizes),
        "snapshot directory, MiB": sum(sizes) / (1 << 20),
    }


def _family(pid: int) -> Iterator[int]:
    yield pid
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in path.read_text().split():
            yield from _family(int(child))


def _sizes(folder: Path) -> Iterator[int]:
    for place, _, names in os.walk(folder):  # passes over folders that are deleted meanwhile
        for name in names:
            with suppress(OSError):
                yield Path(place, name).stat().st_size


def _quality(told: dict[str, float]) -> dict[str, float]:
    prefix = "anabranch_prequential_ne{"
    return {f"NE, {name[len(prefix) : -1]}": value for name, value in told.items() if name.startswith(prefix)}


def _caps(told: dict[str, float]) -> str:
    names = {
        "rows evicted": "anabranch_embedding_evicted_total",
        "exposures given up": "anabranch_joiner_evicted_total",
        "lag": "anabranch_consumer_lag_messages",
    }
    return ", ".join(f"{what} {told.get(name, 0):,.0f}" for what, name in names.items())


def draw(samples: Sequence[Sample], path: Path) -> None:
    """One panel for each kind of value, over event time; the lives in turns of colour."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(len(BOUNDS), 1, sharex=True, figsize=(8, 1.3 * len(BOUNDS)), layout="constrained")
    for axis, name in zip(axes, BOUNDS, strict=True):
        for life in sorted({sample.life for sample in samples}):
            of_life = [sample for sample in samples if sample.life == life]
            days = [(sample.event_time_seconds - START_MS / 1000) / 86_400 for sample in of_life]
            values = [sample.values.get(name, float("nan")) for sample in of_life]
            axis.plot(days, values, color=f"C{life % 2}", linewidth=1)
        axis.set_title(name, fontsize=8, loc="left")
        axis.tick_params(labelsize=7)
        axis.set_ylim(bottom=0)
    axes[-1].set_xlabel("days of event time; a change of colour is a restart", fontsize=8)
    figure.savefig(path)


@contextmanager
def _shop(servers: str, topic: str) -> Iterator[None]:
    """`anabranch simulate` into a topic, as fast as it can, until the context ends."""
    create_topics(servers, {topic: 1})
    shop = ["--rate", str(RATE_PER_SECOND), "--users", "4000", "--items", "4000", "--duration", "100d"]
    process = subprocess.Popen([*ANABRANCH, "simulate", "--kafka", servers, "--topic", topic, *shop])
    try:
        yield
        if process.poll() is not None:
            raise RuntimeError(f"`simulate` ended with {process.returncode}: for some of the time nothing came.")
    finally:
        process.kill()
        process.wait()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=25.0, help="%(default)s; in five the directory fills")
    parser.add_argument("--plot", type=Path, help="an SVG of all that was seen")
    parser.add_argument("--json", type=Path, help="every sample")
    options = parser.parse_args()
    apache = apache_kafka()
    if missing := apache.why_not():
        parser.error(f"Apache Kafka did not run: {missing}")
    broker = apache.ApacheKafka().start()
    lives = lives_of(options.minutes * 60)
    try:
        with tempfile.TemporaryDirectory() as folder, _shop(broker.bootstrap_servers, _TOPIC):
            samples = soak(broker.bootstrap_servers, _TOPIC, Path(folder), lives)
    finally:
        broker.stop()
    if options.json:
        options.json.write_text(json.dumps([asdict(sample) for sample in samples]))
    if options.plot:
        draw(samples, options.plot)
    # The first two lives fill what has a cap; a third of a short life, and buffers have grown and code is loaded.
    verdicts = judge([sample for sample in samples if sample.life >= 2], lives[0][0] / 3, BOUNDS)
    days = (samples[-1].event_time_seconds - START_MS / 1000) / 86_400
    console = Console(width=120, highlight=False)
    moved = share_moved(samples)
    console.print(f"{days:.1f} days of event time, {len(lives)} lives; learning in {moved:.0%} of the looks")
    console.print(table(verdicts))
    return 0 if moved > LEAST_MOVED and all(verdict.is_flat for verdict in verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())
