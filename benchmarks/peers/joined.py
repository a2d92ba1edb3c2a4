"""The examples that every rival gets: ours, joined, in order of exposure, with labels that are final at once.

Rivals have no join: an exposure comes to them with the outcomes that its windows will hold, minutes early.
That is an easier job than ours, which learns each outcome when it happens. Ids, attributes and sampled items are the
same.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry

from contracts.batch import Batch, Float32s, Int64s
from contracts.settings import HOUR, Settings
from learner.prequential import TaskQuality, summary
from streamer.deadletter import MemoryDeadLetters
from streamer.decode import EventDecoder
from streamer.metrics import StreamMetrics
from streamer.pipeline import Ingest
from streamer.sources.file import FileSource


@dataclass(frozen=True)
class Labelled:
    """One task's examples in the order in which their labels became final: the order of our own quality figures.

    :param rows: shape ``[M]``, rows of :class:`Joined`.
    :param labels: shape ``[M]``, in {0, 1}.
    :param times_ms: shape ``[M]``, event time at which each label was known.
    """

    rows: Int64s
    labels: Float32s
    times_ms: Int64s


@dataclass(frozen=True)
class Joined:
    """N joined rows in stream order: exposures, and the sampled items that the exposure's own task is learned against.

    :param fields: names of the id columns.
    :param ids: shape ``[N, F]``, hashes of the values; a rival takes each as a string or a number of its own.
    :param numbers: shape ``[N, K]``, numeric attributes, standardised.
    :param behaviour: shape ``[N, D]``, our dense features: those numbers, and what the profiles know of user and item.
    :param tasks: each task's labelled rows.
    :param n_events: events that these rows were made of.
    """

    fields: tuple[str, ...]
    ids: Int64s
    numbers: Float32s
    behaviour: Float32s
    tasks: Mapping[str, Labelled]
    n_events: int

    def with_behaviour(self) -> "Joined":
        """The same rows, with all that our own model sees."""
        return replace(self, numbers=self.behaviour)

    def in_order(self, task: str) -> tuple[Int64s, Float32s]:
        """Rows and labels of a task in the order of exposure: the order in which a rival learns."""
        labelled = self.tasks[task]
        order = np.argsort(labelled.rows, kind="stable")
        return labelled.rows[order], labelled.labels[order]

    def ne(self, task: str, logits: Float32s) -> float | None:
        """Normalised entropy over the last half, by the code and in the order that our own figures are made by.

        :param logits: shape ``[M]``, the task's rows in order of exposure, each as scored before it was learned.
        """
        labelled = self.tasks[task]
        of_rows = np.zeros(len(self.ids), np.float32)
        of_rows[self.in_order(task)[0]] = logits
        quality = TaskQuality(threshold=0.5, window_ms=HOUR)
        quality.update(of_rows[labelled.rows], labelled.labels, labelled.times_ms)
        found = summary(quality.last_half())["ne"]
        return None if found is None else float(found)

    @classmethod
    def of(cls, path: Path, settings: Settings) -> "Joined":
        """What our own ingest makes of a log: decode, de-duplicate, join."""
        made = _Collector(settings)
        with FileSource(path) as source:
            decoder = EventDecoder(settings, None, lambda: 1 << 52)
            ingest = Ingest(settings, source, decoder, MemoryDeadLetters(), StreamMetrics(CollectorRegistry()))
            for cut in ingest.stream():
                if isinstance(cut, Batch):
                    made.take(cut)
            made.take(ingest.close_open_windows())
        layout = ingest.schema.layout
        numeric = [column for column, name in enumerate(layout.dense) if name.endswith(" value")]
        dense = np.concatenate(made.dense)
        return cls(
            fields=layout.fields,
            ids=np.concatenate(made.ids),
            numbers=dense[:, numeric],
            behaviour=dense,
            tasks={name: made.labelled(column) for column, name in enumerate(layout.tasks)},
            n_events=ingest.n_events,
        )


class _Collector:
    """Follows each row from its batch to the batch that tells its label, as the learner's store does."""

    def __init__(self, settings: Settings) -> None:
        self.ids: list[Int64s] = []
        self.dense: list[Float32s] = []
        self._known: list[list[tuple[NDArray[Any], ...]]] = [[] for _ in settings.tasks]
        self._row_of_slot = np.zeros(1024, np.int64)
        self._n_rows = 0

    def take(self, batch: Batch) -> None:
        self.ids.append(batch.rows.ids.copy())
        self.dense.append(batch.rows.dense.copy())
        rows = self._n_rows + np.arange(len(batch.rows))
        self._n_rows += len(batch.rows)
        kept = np.flatnonzero(batch.slot >= 0)
        if len(kept):
            missing = int(batch.slot[kept].max()) + 1 - len(self._row_of_slot)
            self._row_of_slot = np.concatenate([self._row_of_slot, np.zeros(max(missing, 0), np.int64)])
            self._row_of_slot[batch.slot[kept]] = rows[kept]
        for task, known in enumerate(self._known):
            now, later = np.flatnonzero(batch.known[:, task]), np.flatnonzero(batch.matured_known[:, task])
            known.append((rows[now], batch.labels[now, task], batch.time_ms[now]))
            then = self._row_of_slot[batch.matured_slot[later]]
            known.append((then, batch.matured_labels[later, task], np.full(len(later), batch.watermark_ms)))

    def labelled(self, task: int) -> Labelled:
        return Labelled(*(np.concatenate(column) for column in zip(*self._known[task], strict=True)))
