"""Which architecture at equal cost? `mmoe`, the default, beside the others.

python -m benchmarks.quality.architectures [--data DIR] [--shops 5] [--events 200000] [--seeds 3] [--runs 5]
    [--rivals ple shared_bottom ...]

First what a step of each costs, in turn, on batches of 1,024 rows (three tasks, ten id fields): each at the default's
own width, and so wide or narrow that its step takes about as long. Then what each reaches on the same streams
(`evaluate --compare`): simulated shops with one purchase in two hundred exposures, and Taobao's UserBehavior, where
DIR holds it, a fifth of pv ranked.
"""

import argparse
import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.bench_step import COMPARED_ROWS, N_BATCHES, rate
from benchmarks.figures import RUNS, Figure, in_turn, say, shares, show
from benchmarks.quality.__main__ import logs, ranked
from benchmarks.quality.multitask import compare, interval, shop_report
from benchmarks.workloads import random_batches, ten_field_settings
from cli._variants import variants
from features.schema import FeatureSchema
from learner.trainer import Trainer, use_threads

RIVALS = (
    "shared_bottom",
    "shared_bottom+model.expert_layers=[160,64]",
    "ple",
    "ple+model.expert_layers=[40,32]",
    "single_task+model.width=8+model.expert_layers=[32,16]",
)
_DEFAULT = "the default"
_WIDTH = 190


def cost(rivals: Sequence[str], runs: int) -> list[Figure]:
    """Examples a second of each, and as a share of the default's by pair."""
    settings = ten_field_settings()
    use_threads(settings)
    layout = FeatureSchema.of(settings).layout
    batches = random_batches(settings, N_BATCHES, COMPARED_ROWS)
    ways = {_DEFAULT: settings, **variants(settings, rivals)}
    found = in_turn({name: partial(rate, Trainer(of, layout), batches) for name, of in ways.items()}, runs)
    made = [Figure(name, rates, "examples/s") for name, rates in found.items()]
    return made + [share for name in rivals for share in shares(found, name, {f"{name}, of {_DEFAULT}": _DEFAULT})]


def table(title: str, rivals: Sequence[str], reports: Sequence[Mapping[str, Any]], *, is_ranked: bool) -> Table:
    """Variant minus default: mean, and its 95 % interval over the reports."""
    made = Table(title=title, box=box.SIMPLE)
    made.add_column("variant", no_wrap=True)
    for task in reports[0]["tasks"]:
        made.add_column(task, no_wrap=True)
    metrics = [("ΔNE", "all", "ne", 4), *([("ΔMRR", "ranking", "mrr", 3)] if is_ranked else [])]
    for name in rivals:
        for sign, part, metric, digits in metrics:
            cells = []
            for task in reports[0]["tasks"]:
                other = np.array([report["compare"][name][task][part][metric] for report in reports])
                own = np.array([report["tasks"][task][part][metric] for report in reports])
                mean, low, high = interval(other - own)
                cells.append(f"{mean:+.{digits}f} ({low:+.{digits}f}, {high:+.{digits}f})")
            made.add_row(f"{name}, {sign}", *cells)
    return made


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.quality.architectures",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("ANABRANCH_DATA", "../shared/data")))
    parser.add_argument("--shops", type=int, default=5, help="simulated shops (%(default)s)")
    parser.add_argument("--events", type=int, default=200_000, help="of each shop (%(default)s)")
    parser.add_argument("--seeds", type=int, default=3, help="passes over Taobao (%(default)s)")
    parser.add_argument("--runs", type=int, default=RUNS, help="of each step, after one to warm up (%(default)s)")
    parser.add_argument("--rivals", nargs="+", default=RIVALS, help="others, as `evaluate --compare` names them")
    given = parser.parse_args()
    console = Console(highlight=False, width=_WIDTH)
    if given.runs:
        show({f"A step, {COMPARED_ROWS:,} rows, three tasks": cost(given.rivals, given.runs)})
    if given.shops:
        shops = []
        for seed in range(given.shops):
            say(f"shop {seed}: {given.events:,} events")
            shops.append(shop_report(seed, given.events, given.rivals))
        title = f"{given.shops} simulated shops of {given.events:,} events"
        console.print(table(title, given.rivals, shops, is_ranked=False))
    found = logs(given.data, Path())
    if given.seeds and not found:
        say(f"no Taobao log in {given.data}: give --data")
    for log in found if given.seeds else []:
        passes = []
        for seed in range(given.seeds):
            say(f"{log.name}, seed {seed}")
            passes.append(compare(*ranked(log, seed), given.rivals))
        console.print(table(f"{log.name}, {given.seeds} seeds", given.rivals, passes, is_ranked=True))


if __name__ == "__main__":
    main()
