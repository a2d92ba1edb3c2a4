"""Ranking quality on public logs, beside memories that learn nothing and linear models on the same features.

python -m benchmarks.quality [--data DIR] [--movielens ml-100k.inter] [--seeds 3] [--most 30000] [--only anabranch]

DIR holds `taobao/UserBehavior.csv.gz`; nothing is downloaded. A log is read in the order of its lines: sort
ml-100k.inter by time first. Every method sees the same stream, the same sampled items and the same candidates in one
pass; each event is ranked among 99 other items before it is learned. A seed decides samples, candidates and initial
weights.
"""

import argparse
import os
from collections.abc import Mapping
from contextlib import closing
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np
from prometheus_client import CollectorRegistry
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.figures import say
from benchmarks.quality.methods import Memory, Method, Metrics, Net, Popularity, River, VowpalWabbit
from cli._ingest import log_inputs
from cli._inputs import settings_and_mapping
from contracts.batch import Batch
from contracts.settings import Settings
from features.schema import FeatureSchema
from learner.trainer import use_threads
from streamer.feed import OpenInputs
from streamer.prefetch import ThreadFeed

_METRICS = {"hr@10": "HR@10", "mrr": "MRR", "sampled_auc": "AUC"}
_TAOBAO = "taobao/UserBehavior.csv.gz"
_TELL_EVERY = 10_000
_VOWPAL_WABBIT = [("-q", "ui"), ("--lrq", "ui4")]
_WIDTH = 130


class Log(NamedTuple):
    """A public log, and of each task how many of its events are ranked."""

    name: str
    path: Path
    format: str
    mapping: str
    shares: Mapping[str, float]


def logs(data: Path, movielens: Path) -> list[Log]:
    """Those that are there."""
    taobao = str(Path(__file__).with_name("taobao.toml"))
    every = [
        Log("Taobao", data / _TAOBAO, "csv", taobao, {"pv": 0.2, "cart": 1.0, "fav": 1.0, "buy": 1.0}),
        Log("MovieLens-100k", movielens, "tsv", "movielens", {"content_view": 0.2, "like": 0.2}),
    ]
    return [log for log in every if log.path.is_file()]


def ranked(log: Log, seed: int) -> tuple[Settings, OpenInputs]:
    """The defaults but for the log's tasks and shares; and its events."""
    overrides = {
        "seed": seed,
        "processes": 1,
        "train": {"threads": 1},
        "tasks": [{"name": name} for name in log.shares],
        "evaluation": {"ranking": dict(log.shares)},
    }
    settings, how = settings_and_mapping(None, log.mapping, overrides)
    return settings, partial(log_inputs, settings, how, log.path, log.format)


def run(log: Log, seed: int, most: int, only: str = "") -> tuple[dict[str, list[Metrics]], int]:
    """One pass of all methods, or those whose name holds ``only``: the metrics of each task by method, and how many
    events that were."""
    settings, inputs = ranked(log, seed)
    use_threads(settings)
    layout = FeatureSchema.of(settings).layout
    every: list[Method] = [
        Popularity(layout),
        Memory(layout),
        River.logistic_regression(layout),
        River.factorisation_machine(layout, seed),
        *(VowpalWabbit(layout, flags) for flags in _VOWPAL_WABBIT if find_spec("vowpalwabbit")),
        *(Net(settings, layout, name) for name in ("single_task", "shared_bottom", "mmoe")),
    ]
    methods = [method for method in every if only.lower() in method.name.lower()]
    n_events = 0
    with ThreadFeed() as feed:
        feed.open(settings.unsaved(), inputs, CollectorRegistry(), lambda: False)
        with closing(feed.stream()) as stream:
            for batch in stream:
                if not isinstance(batch, Batch):
                    batch.release()  # the ingest makes no further barrier before
                    continue
                for method in methods:
                    method.step(batch)
                if n_events // _TELL_EVERY < (n_events := n_events + batch.n_events) // _TELL_EVERY:
                    say(f"  {log.name}, seed {seed}: {n_events:,} events")
                if n_events >= most:
                    break
    return {method.name: method.metrics() for method in methods}, n_events


def show(log: Log, found: list[dict[str, list[Metrics]]], n_events: int) -> None:
    """The mean over the seeds, and half the distance between the greatest and the least."""
    what = "HR@10 / MRR / AUC among 100, mean ± half the range"
    made = Table(title=f"{log.name}: {n_events:,} events, {len(found)} seeds; {what}", box=box.SIMPLE)
    made.add_column("method", no_wrap=True)
    for task, share in log.shares.items():
        made.add_column(task if share == 1 else f"{task} ({share:.0%} of events)", no_wrap=True)
    for method in found[0]:
        cells = []
        for task in range(len(log.shares)):
            values = np.array([[one[method][task][name] for name in _METRICS] for one in found])  # [S, 3]
            spread = (values.max(0) - values.min(0)) / 2
            cells.append(f"{' / '.join(f'{mean:.3f}' for mean in values.mean(0))} ±{spread.max():.3f}")
        made.add_row(method, *cells)
    Console(highlight=False, width=max(_WIDTH, 50 + 32 * len(log.shares))).print(made)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.quality", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("ANABRANCH_DATA", "../shared/data")))
    parser.add_argument("--movielens", type=Path, default=Path("ml-100k.inter"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--most", type=int, default=1 << 60, help="events of each log")
    parser.add_argument("--only", default="", help="methods whose name holds this, such as anabranch or river")
    given = parser.parse_args()
    chosen = logs(given.data, given.movielens)
    if not chosen:
        parser.error(f"neither {given.data / _TAOBAO} nor {given.movielens} is there: give --data or --movielens")
    if find_spec("vowpalwabbit") is None:
        say("without Vowpal Wabbit, which is not installed: make bench-quality, or pip install '.[bench]'")
    for log in chosen:
        runs = [run(log, seed, given.most, given.only) for seed in range(given.seeds)]
        show(log, [found for found, _ in runs], runs[0][1])


if __name__ == "__main__":
    main()
