"""Clicks of the Open Bandit logs, predicted before they are learned, by the default model; normalised entropy.

python -m benchmarks.quality.open_bandit [--data DIR] [--seeds 3] [--only random/men]

DIR holds `open_bandit/{random,bts}/{all,men,women}.csv.gz` (ZOZOTOWN's fashion shop: two policies, three pages, 10,000
impressions each); nothing is downloaded. The files are of the same days: they are merged by time into one stream and
read by the ready mapping `open_bandit`. A seed decides initial weights. NE is normalised by the share of clicks of the
whole stream, which nobody knows beforehand.
"""

import argparse
import csv
import gzip
import heapq
import json
import math
import os
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from prometheus_client import CollectorRegistry
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.figures import say
from cli._assembly import assemble
from cli._inputs import settings_and_mapping, wall_clock_ms
from contracts.records import Record
from streamer.deadletter import MemoryDeadLetters
from streamer.decode import EventDecoder
from streamer.sources.memory import MemorySource

_FILES = [f"{policy}/{page}" for policy in ("random", "bts") for page in ("all", "men", "women")]
_TASK = "click"


def rows_of(path: Path) -> Iterator[dict[str, str]]:
    """A file's rows in their order, which is that of time."""
    with gzip.open(path, "rt", newline="") as file:
        yield from csv.DictReader(file)


def merged(paths: list[Path]) -> list[Record]:
    """All rows as records of one partition, by time."""
    rows = heapq.merge(*map(rows_of, paths), key=lambda row: datetime.fromisoformat(row["timestamp"]))
    return [Record("log", 0, place, None, json.dumps(row).encode()) for place, row in enumerate(rows)]


def run(records: list[Record], seed: int) -> dict[str, Any]:
    """What `evaluate` tells of the clicks."""
    settings, mapping = settings_and_mapping(None, "open_bandit", {"seed": seed, "processes": 1})
    source, dead = MemorySource({("log", 0): records}), MemoryDeadLetters()
    decoder = EventDecoder(settings, mapping, wall_clock_ms)
    assembly = assemble(settings.unsaved(), source, decoder, dead, CollectorRegistry())
    with assembly.feed:
        assembly.run()
        assembly.close_open_windows()
        report = assembly.report(0.0, settings.model.name)
    found: dict[str, Any] = report["tasks"][_TASK]
    return found


def running_share_ne(records: list[Record]) -> float:
    """Of a constant that follows the share of clicks, one in a hundred at first, labels known at once."""
    clicks = np.array([json.loads(record.value)["click"] == "1" for record in records])
    shares = (0.01 + np.cumsum(clicks) - clicks) / (1 + np.arange(len(clicks)))
    loss = -np.log(np.where(clicks, shares, 1 - shares)).mean()
    rate = clicks.mean()
    return float(loss / -(rate * math.log(rate) + (1 - rate) * math.log(1 - rate)))


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.quality.open_bandit",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("ANABRANCH_DATA", "../shared/data")))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", default="", help="files whose name holds this, such as random/men")
    given = parser.parse_args()
    paths = [given.data / "open_bandit" / f"{name}.csv.gz" for name in _FILES if given.only in name]
    if missing := [str(path) for path in paths if not path.is_file()] or not paths:
        parser.error(f"not there: {missing}; give --data")
    records = merged(paths)
    say(f"{len(records):,} impressions; the running share has an NE of {running_share_ne(records):.3f}")
    made = Table(title=f"Open Bandit, clicks: NE; {given.seeds} seeds", box=box.SIMPLE)
    for name in ("seed", "impressions", "clicks", "NE", "NE, last half", "AUC", "predicted / true"):
        made.add_column(name, justify="right")
    found = []
    for seed in range(given.seeds):
        task = run(records, seed)
        whole, half = task["all"], task["last_half"]
        found.append([whole["ne"], half["ne"], whole["auc"], whole["calibration"]])
        figures = (f"{value:.3f}" for value in found[-1])
        made.add_row(str(seed), f"{task['examples']:,}", f"{task['positives']:,}", *figures)
    made.add_row("mean", "", "", *(f"{value:.3f}" for value in np.mean(found, 0)))
    Console(highlight=False, width=100).print(made)


if __name__ == "__main__":
    main()
