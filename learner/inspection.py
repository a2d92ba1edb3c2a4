"""What a trained model rests on: importance of its fields, use of its experts, calibration of its probabilities.

All of it is looked at after the stream, on the last labelled examples, with the final weights. Of an example that was
learned the model knows more than of a new one, so levels are optimistic; what is compared is the same examples with one
field's values shuffled.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import fields, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from contracts.batch import Batch, Float32s, Int64s, Rows
from features.schema import FeatureSchema
from learner.models._base import gate_entropies
from learner.prequential import BINS, MAX_LOGIT, Block
from learner.trainer import Trainer

N_ROWS = 8192
"""Labelled examples kept for each task."""
_CHUNK = 4096
_POSITIVES_A_POINT = 5
_COLUMNS = [field.name for field in fields(Rows)]

Float64s = NDArray[np.float64]


class Importance(NamedTuple):
    """How much worse a task is predicted without a field."""

    field: str
    ne: float
    """Normalised entropy with the field's values shuffled, minus that with the true ones."""
    error: float
    """Standard error of that, over examples."""


class LastRows:
    """The last labelled rows of each task, as their features were at the exposure; bounded memory.

    :param trainer: of the stream that :meth:`take` sees, stepped before it.
    """

    def __init__(self, trainer: Trainer, n_rows: int = N_ROWS, seed: int = 0) -> None:
        self._trainer = trainer
        self._n_rows = n_rows
        self._rng = np.random.default_rng(seed)
        self._kept: list[deque[tuple[Rows, Float32s]]] = [deque() for _ in trainer.layout.tasks]

    def take(self, batch: Batch) -> None:
        """Keep what became known with this batch."""
        for task in range(len(self._kept)):
            now = np.flatnonzero(batch.known[:, task])[-self._n_rows :]
            self._keep(task, batch.rows.at(now), batch.labels[now, task])
            later = np.flatnonzero(batch.matured_known[:, task])[-self._n_rows :]
            self._keep(task, self._trainer.stored_rows(batch.matured_slot[later]), batch.matured_labels[later, task])

    def finish(self, batch: Batch) -> None:
        """At the end of a log, labels as they stand: a sample, for the newest exposures have no outcomes yet."""
        for task in range(len(self._kept)):
            later = np.flatnonzero(batch.matured_known[:, task])
            if len(later) > self._n_rows:
                later = np.sort(self._rng.choice(later, self._n_rows, replace=False))
            self._keep(task, self._trainer.stored_rows(batch.matured_slot[later]), batch.matured_labels[later, task])

    def of(self, task: int) -> tuple[Rows, Float32s] | None:
        """At most ``n_rows`` rows of a task, and their labels, shape ``[N]``; None where no label became known."""
        kept = self._kept[task]
        if not kept:
            return None
        rows = Rows(*(np.concatenate([getattr(one, name) for one, _ in kept]) for name in _COLUMNS))
        last = slice(-self._n_rows, None)
        return rows.at(last), np.concatenate([labels for _, labels in kept])[last]

    def _keep(self, task: int, rows: Rows, labels: Float32s) -> None:
        if not len(labels):
            return
        kept = self._kept[task]
        kept.append((rows, labels))
        n_kept = sum(len(labels) for _, labels in kept)
        while n_kept - len(kept[0][1]) >= self._n_rows:
            n_kept -= len(kept.popleft()[1])


def importances(
    trainer: Trainer, schema: FeatureSchema, task: int, rows: Rows, labels: Float32s, *, seed: int
) -> list[Importance]:
    """Permutation importance (Breiman 2001; Fisher et al. 2019) of each field for a task, the greatest first.

    A field is an id column (or the slots of several), the history of one event type, or the dense columns that tell
    of one thing; its values move together from row to row. Two fields that say the same cover for each other: both
    then seem to matter little.

    :param rows: N rows with their ``labels``, shape ``[N]``.
    :returns: empty where the labels are of one class: there is no entropy to normalise by.
    """
    rate = float(labels.mean()) if len(labels) else 0.0
    if not 0 < rate < 1:
        return []
    entropy = -(rate * np.log(rate) + (1 - rate) * np.log1p(-rate))
    order = np.random.default_rng(seed).permutation(len(rows))
    true = _losses(trainer, rows, labels, task)
    found = []
    for field, shuffled in _shuffled(rows, schema, order):
        excess = (_losses(trainer, shuffled, labels, task) - true) / entropy  # [N]
        found.append(Importance(field, float(excess.mean()), float(excess.std() / np.sqrt(len(excess)))))
    return sorted(found, key=lambda one: -one.ne)


def gate_use(trainer: Trainer, rows: Rows) -> tuple[list[str], Float64s, Float64s] | None:
    """Mean weight of each expert in each task, over these rows.

    :returns: names of the G weights, the weights ``[T, G]``, the gates' entropies ``[T]``; None without gates or rows.
    """
    gated = trainer.network.gated
    if gated is None or not len(rows):
        return None
    with torch.no_grad():
        embedded = trainer.table.embed(*trainer.table.rows(rows))
        gates = trainer.network.expert_weights(embedded, torch.from_numpy(rows.dense))
    if gates is None:
        return None
    return gated.gate_names, gates.mean(2).double().numpy(), gate_entropies(gates).double().numpy()


def reliability(block: Block, n_points: int = 12) -> list[dict[str, Any]]:
    """The reliability diagram: examples in order of their score, in parts of equally many positives.

    :param n_points: parts; fewer where there are not five positives for each.
    :returns: for each part ``predicted`` and ``observed`` (mean probability, share of positives), ``examples``,
        ``positives``.
    """
    negatives, positives = block.histogram
    n_positives = int(positives.sum())
    n_points = min(n_points, n_positives // _POSITIVES_A_POINT)
    if not n_points:
        return []
    centres = (np.arange(BINS) + 0.5) * (2 * MAX_LOGIT / BINS) - MAX_LOGIT
    probabilities = 1 / (1 + np.exp(-centres))
    before = np.cumsum(positives) - positives
    part = np.minimum(before * n_points // n_positives, n_points - 1)
    points = []
    for one in np.unique(part):
        cells = part == one
        counts = (negatives + positives)[cells]
        n, n_yes = int(counts.sum()), int(positives[cells].sum())
        if n_yes:
            predicted = float(probabilities[cells] @ counts) / n
            points.append({"predicted": predicted, "observed": n_yes / n, "examples": n, "positives": n_yes})
    return points


def _losses(trainer: Trainer, rows: Rows, labels: Float32s, task: int) -> Float64s:
    """Log-loss of each row, shape ``[N]``."""
    logits = np.concatenate(
        [trainer.logits(rows.at(slice(start, start + _CHUNK)))[:, task] for start in range(0, len(rows), _CHUNK)]
    )
    return np.logaddexp(0.0, np.where(labels > 0.5, -logits, logits).astype(np.float64))


def _shuffled(rows: Rows, schema: FeatureSchema, order: Int64s) -> Iterator[tuple[str, Rows]]:
    """Each field's name, and the rows with its values in another order."""
    layout = schema.layout
    for name, end, n_slots in zip(layout.fields, np.cumsum(layout.slots).tolist(), layout.slots, strict=True):
        ids = rows.ids.copy()
        slots = slice(end - n_slots, end)
        ids[:, slots] = ids[order, slots]
        yield f"{name}, embedding", replace(rows, ids=ids)
    for kind, name in enumerate(layout.event_types):
        history = rows.history.copy()
        history[:, kind] = history[order, kind]
        yield f"user's last {name} items, embeddings", replace(rows, history=history)
    numbers = {field.name for reader in (schema.user, schema.context, schema.item) for field in reader.numeric}
    start = 0
    for name, n_columns in schema.dense_groups:
        columns = slice(start, start + n_columns)
        dense = rows.dense.copy()
        dense[:, columns] = dense[order, columns]
        start += n_columns
        yield f"{name}, {'number' if name in numbers else 'counters'}", replace(rows, dense=dense)
