"""Quality for people: the table under `evaluate`, `learn --until-end` and `demo`."""

import json
import sys
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

_WIDTH = 160
_METRICS = {
    "ne": "NE",
    "auc": "AUC",
    "log_loss": "loss",
    "calibration": "calib.",
    "accuracy": "acc.",
    "precision": "prec.",
    "recall": "recall",
    "f1": "F1",
}


def write_report(report: dict[str, Any], path: str | None) -> None:
    """As tables, and as JSON where a path is given; ``-`` prints the JSON instead."""
    if path == "-":
        sys.stdout.write(json.dumps(report) + "\n")
        return
    if path is not None:
        Path(path).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    # A table in a file or a pipe is as wide as it needs to be.
    print_report(Console(highlight=False, width=None if sys.stdout.isatty() else _WIDTH), report)


def print_report(console: Console, report: dict[str, Any]) -> None:
    """The report's tasks as tables; what is undefined is a dash."""
    made = Table(title=f"Prequential quality of `{report['model']}`: scored before learned", box=box.SIMPLE)
    made.add_column("task", no_wrap=True)
    made.add_column("part", no_wrap=True)
    for name in ("labels", "positive", *_METRICS.values()):
        made.add_column(name, justify="right", no_wrap=True)
    for task, found in report["tasks"].items():
        counts = (f"{found['examples']:,}", f"{found['positives']:,}")
        made.add_row(task, "all", *counts, *_row(found["all"]))
        made.add_row("", "last half", "", "", *_row(found["last_half"]))
        if found.get("oracle"):
            made.add_row("", "oracle", "", "", *_row(found["oracle"]), style="dim")
    console.print(made)
    _print_order(console, report)
    if "compare" in report:
        _print_comparison(console, report)
    seconds = report["seconds"]
    console.print(
        f"{report['events']:,} events, {report['examples']:,} labels, {report['rejected']:,} rejected, {seconds:.1f} s "
        f"({report['events'] / max(seconds, 1e-9):,.0f} events/s). NE below 1 beats the base rate."
    )


def _print_order(console: Console, report: dict[str, Any]) -> None:
    """Ranking among 99 others, and within the lists that were shown."""
    made = Table(
        title="Order: the event's item among 99 others; clicked items within the list that was shown", box=box.SIMPLE
    )
    made.add_column("task")
    for name in ("ranked", "HR@10", "NDCG@10", "MRR", "AUC", "new items", "lists", "MRR", "NDCG@10"):
        made.add_column(name, justify="right")
    n_rows = 0
    for task, found in report["tasks"].items():
        ranking, lists = found["ranking"], found["list"]
        if ranking["events"] or lists["requests"]:
            n_rows += 1
            made.add_row(
                task,
                f"{ranking['events']:,}",
                *(_number(ranking[name]) for name in ("hr@10", "ndcg@10", "mrr", "sampled_auc")),
                f"{ranking['new_item_events']:,}",
                f"{lists['requests']:,}",
                _number(lists["mrr"]),
                _number(lists["ndcg@10"]),
            )
    if n_rows:
        console.print(made)


def _print_comparison(console: Console, report: dict[str, Any]) -> None:
    """Each variant minus the base, with its interval; the better one in words, where the interval says so."""
    made = Table(title=f"Difference to `{report['model']}` on the same examples, and its 95 % interval", box=box.SIMPLE)
    made.add_column("variant", overflow="fold")
    for name in ("task", "part", "ΔNE", "ΔAUC", "NE is"):
        made.add_column(name, no_wrap=True)
    notes: dict[str, None] = {}
    for variant, tasks in report["compare"].items():
        told = variant
        for task, found in tasks.items():
            for part, named in (("all", task), ("last_half", "")):
                one = found["difference"][part]
                made.add_row(
                    told,
                    named,
                    part.replace("_", " "),
                    *(" ".join(difference_cells(one[name])) for name in ("ne", "auc")),
                    verdict(one["ne"]),
                )
                told = ""
                if "note" in one:
                    notes[f"{task}, {part.replace('_', ' ')}: {one['note']}"] = None
    console.print(made)
    for note in notes:
        console.print(note, markup=False)


def difference_cells(difference: dict[str, float | None]) -> tuple[str, str]:
    """The value with its sign, and its interval, empty where there is none."""
    signed = {name: "–" if value is None else f"{value:+.4f}" for name, value in difference.items()}
    no_interval = difference["low"] is None
    return signed["value"], "" if no_interval else f"({signed['low']} … {signed['high']})"


def verdict(difference: dict[str, float | None]) -> str:
    """For a metric of which less is better: what the interval says of the variant."""
    low, high = difference["low"], difference["high"]
    if low is None or high is None:
        return "–"
    return "better" if high < 0 else "worse" if low > 0 else "not told apart"


def _row(metrics: dict[str, Any]) -> list[str]:
    return [_number(metrics.get(name)) for name in _METRICS]


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"
