"""A measured figure with its spread, the one table of all, and the progress told meanwhile."""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from rich.console import Console
from rich.table import Table

RUNS = 5
_WIDTH = 150

T = TypeVar("T")


@dataclass(frozen=True)
class Figure:
    """What was measured, in every run.

    :param values: one a run; none: it could not be measured, and ``note`` says why and what to do.
    :param ne: normalised entropy per task on the same events, last half; None where it is undefined.
    :param note: printed under the table.
    """

    what: str
    values: Sequence[float]
    unit: str
    digits: int = 0
    ne: Mapping[str, float | None] = field(default_factory=dict)
    note: str = ""


def in_turn(jobs: Mapping[str, Callable[[], T]], runs: int = RUNS) -> dict[str, list[T]]:
    """Each job ``runs`` times, taking turns, so that a slow minute of the machine falls on all alike.

    One turn before those warms caches and compiles, and is not kept.
    """
    found: dict[str, list[T]] = {name: [] for name in jobs}
    for turn in range(runs + 1):
        for name, job in jobs.items():
            say(f"  {'warm-up' if turn == 0 else f'run {turn} of {runs}'}: {name}")
            result = job()
            if turn:
                found[name].append(result)
    return found


def shares(found: Mapping[str, Sequence[float]], one: str, others: Mapping[str, str]) -> list[Figure]:
    """One job's rate in percent of others', by pair within a turn, so that a slow minute falls on both.

    :param found: what :func:`in_turn` gave.
    :param others: the jobs to compare with, by what the figure is called.
    """
    return [
        Figure(what, [100 * own / rival for own, rival in zip(found[one], found[other], strict=True)], "%", 1)
        for what, other in others.items()
    ]


def rates(work: Callable[[], int], runs: int = RUNS) -> list[float]:
    """Units per second of each run; the first call, which compiles and warms caches, is not counted."""
    work()
    found = []
    for _ in range(runs):
        started = time.perf_counter()
        done = work()
        found.append(done / (time.perf_counter() - started))
    return found


def arguments(what: str, n_events: int) -> argparse.Namespace:
    """The options of a benchmark that is run alone: ``events`` and ``runs``."""
    parser = argparse.ArgumentParser(description=what)
    parser.add_argument("--events", type=int, default=n_events, help="%(default)s")
    parser.add_argument("--runs", type=int, default=RUNS, help="of each, after one to warm up (%(default)s)")
    return parser.parse_args()


def say(line: str) -> None:
    """Progress, beside the table: it takes minutes."""
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def show(parts: Mapping[str, Sequence[Figure]]) -> None:
    """Print the one table, each part under its title."""
    made = Table(
        title="Median of the runs, least and greatest; NE: normalised entropy per task, below 1 beats the base rate"
    )
    for column in ("what", "median", "min", "max", "runs", "unit", "NE, last half"):
        made.add_column(column, justify="left" if column in {"what", "unit", "NE, last half"} else "right")
    notes: dict[str, None] = {}
    for title, figures in parts.items():
        made.add_section()
        made.add_row(f"[bold]{title}[/bold]")
        for figure in figures:
            made.add_row(figure.what, *_spread(figure), str(len(figure.values) or ""), figure.unit, _ne(figure.ne))
            if figure.note:
                notes[figure.note] = None
    console = Console(width=_WIDTH, highlight=False)
    console.print(made)
    for note in notes:
        console.print(f"* {note}", markup=False)


def _spread(figure: Figure) -> tuple[str, str, str]:
    if not figure.values:
        return ("–", "–", "–")
    low, middle, high = min(figure.values), statistics.median(figure.values), max(figure.values)
    digits = figure.digits
    return f"{middle:,.{digits}f}", f"{low:,.{digits}f}", f"{high:,.{digits}f}"


def _ne(found: Mapping[str, float | None]) -> str:
    return "  ".join(f"{task} {'–' if value is None else f'{value:.3f}'}" for task, value in found.items())
