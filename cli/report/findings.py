"""What the page tells, taken from a run that has ended."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cli._assembly import Assembly
from contracts.batch import Int64s
from contracts.settings import Settings
from features.schema import FeatureSchema
from learner.inspection import Importance, LastRows, gate_use, importances, reliability
from learner.prequential import CurvePoint
from streamer.join import delay_bounds_ms


@dataclass(frozen=True)
class Gates:
    """Use of experts: mean weights ``[T, G]`` of the experts named, and each task's entropy."""

    names: list[str]
    weights: NDArray[np.float64]
    entropies: list[float]


@dataclass(frozen=True)
class Delays:
    """Of a task's outcomes: the share that came within each time."""

    n_outcomes: int
    within_ms: NDArray[np.float64]
    share: NDArray[np.float64]


@dataclass(frozen=True)
class Findings:
    """All that is shown; by task, where a dictionary."""

    log: str
    settings: Settings
    report: dict[str, Any]
    """As `evaluate --json`."""
    curves: dict[str, list[CurvePoint]]
    reliability: dict[str, list[dict[str, Any]]]
    gates: Gates | None
    field_gates: dict[str, float]
    """By id field and history, the factor's size; empty without ``model.field_gates``."""
    importances: dict[str, list[Importance]]
    n_inspected: dict[str, int]
    """Examples that importances are of."""
    delays: dict[str, Delays]


def find(log: str, settings: Settings, assembly: Assembly, last_rows: LastRows, report: dict[str, Any]) -> Findings:
    """Look at a run whose stream has ended; the feed is still open.

    :param report: what the assembly reported.
    """
    trainer, tasks = assembly.trainer, assembly.trainer.layout.tasks
    schema = FeatureSchema.of(settings)
    kept = {task: rows for column, task in enumerate(tasks) if (rows := last_rows.of(column)) is not None}
    use = gate_use(trainer, next(iter(kept.values()))[0]) if kept else None
    return Findings(
        log=log,
        settings=settings,
        report=report,
        curves={task: trainer.quality.curve(column) for column, task in enumerate(tasks)},
        reliability={
            task: reliability(trainer.quality.block(column, last_half=True)) for column, task in enumerate(tasks)
        },
        gates=Gates(use[0], use[1], use[2].tolist()) if use else None,
        field_gates=trainer.network.field_weights(),
        importances={
            task: importances(trainer, schema, tasks.index(task), rows, labels, seed=settings.seed)
            for task, (rows, labels) in kept.items()
        },
        n_inspected={task: len(labels) for task, (_, labels) in kept.items()},
        delays=dict(_delays(tasks, assembly.feed.label_delays())),
    )


def _delays(tasks: tuple[str, ...], counts: Int64s) -> list[tuple[str, Delays]]:
    found = []
    for task, cells in zip(tasks, counts, strict=True):
        n_outcomes = int(cells.sum())
        if n_outcomes:
            used = slice(None, int(np.flatnonzero(cells)[-1]) + 1)
            found.append((task, Delays(n_outcomes, delay_bounds_ms()[used], np.cumsum(cells[used]) / n_outcomes)))
    return found
