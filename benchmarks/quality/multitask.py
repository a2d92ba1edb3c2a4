"""Does learning the tasks together help? The default model beside equal-width single-task nets, on the simulated shop.

python -m benchmarks.quality.multitask [--seeds 5] [--events 200000]

A simulation: three tasks, one purchase in two hundred exposures. Each seed is another shop and another network; both
models learn the same stream in one pass (`evaluate --compare single_task`). The interval is over the seeds.
"""

import argparse
import math
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry
from rich import box
from rich.console import Console
from rich.table import Table
from scipy import stats

from benchmarks.figures import say
from benchmarks.pipeline import write_log
from benchmarks.workloads import shop_settings
from cli._assembly import assemble_behind
from cli._ingest import log_inputs
from cli._variants import variants
from contracts.settings import Settings
from learner.metrics import LearnerMetrics
from streamer.feed import OpenInputs
from streamer.prefetch import ThreadFeed
from streamer.simulator import ShopSimulator, SimulatorSettings

_RIVAL = "single_task"
_PURCHASE_RATE = 0.096  # of clicks, which are 6 % of exposures; those after the end of the log are missing


def shop_report(seed: int, n_events: int, rivals: Sequence[str]) -> dict[str, Any]:
    """One shop: the report of `evaluate --compare RIVALS`."""
    settings = shop_settings(batch={"span": "1m"}, seed=seed, processes=1, train={"threads": 1})
    shop = ShopSimulator(SimulatorSettings(seed=seed, events=n_events, rate=20.0, purchase_rate=_PURCHASE_RATE))
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "shop.jsonl"
        write_log(log, shop.events())
        return compare(settings, partial(log_inputs, settings, None, log, None), rivals)


def compare(settings: Settings, inputs: OpenInputs, rivals: Sequence[str]) -> dict[str, Any]:
    """The default and its rivals in one pass over a stream."""
    registry = CollectorRegistry()
    with ThreadFeed() as feed:
        feed.open(settings.unsaved(), inputs, registry, lambda: False)
        metrics = LearnerMetrics(registry, settings.evaluation.detector)
        assembly = assemble_behind(settings, feed, metrics, variants=variants(settings, rivals))
        assembly.run()
        assembly.close_open_windows()
        return assembly.report(0.0, settings.model.name)


def interval(values: NDArray[np.float64]) -> tuple[float, float, float]:
    """Mean, and the 95 % interval of Student's t about it; without bounds for one value."""
    n = len(values)
    half = stats.sem(values) * stats.t.ppf(0.975, n - 1) if n > 1 else math.nan
    return values.mean(), values.mean() - half, values.mean() + half


def table(reports: Sequence[dict[str, Any]], n_events: int) -> Table:
    """NE of both by task, whole stream and last half, and their difference with its interval over the reports."""
    model = reports[0]["model"]
    title = f"NE on {len(reports)} simulated shops of {n_events:,} events; difference: {_RIVAL} minus {model}"
    made = Table(title=title, box=box.SIMPLE)
    for name in ("task", "positive", "part", model, _RIVAL, "difference", "95 % interval over seeds"):
        made.add_column(name, justify="left" if name in ("task", "part") else "right")
    for task in reports[0]["tasks"]:
        positives, examples = (sum(report["tasks"][task][of] for report in reports) for of in ("positives", "examples"))
        for part in ("all", "last_half"):
            own = np.array([report["tasks"][task][part]["ne"] for report in reports])
            other = np.array([report["compare"][_RIVAL][task][part]["ne"] for report in reports])
            mean, low, high = interval(other - own)
            made.add_row(
                task if part == "all" else "",
                f"{positives / examples:.2%}" if part == "all" else "",
                part.replace("_", " "),
                f"{own.mean():.4f}",
                f"{other.mean():.4f}",
                f"{mean:+.4f}",
                f"{low:+.4f} to {high:+.4f}",
            )
    return made


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.quality.multitask",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--events", type=int, default=200_000, help="of each shop (%(default)s)")
    given = parser.parse_args()
    reports = []
    for seed in range(given.seeds):
        say(f"seed {seed}: {given.events:,} events")
        reports.append(shop_report(seed, given.events, [_RIVAL]))
    Console(highlight=False, width=130).print(table(reports, given.events))


if __name__ == "__main__":
    main()
